"""The background tasks of clients other than Open WebUI, by the prompts that they send. No I/O.

These clients mark such a request in no way, so each is known by its own prompt: the first and last
words of the instruction, where it stands, and what stands around it. A person who asks for a title
or a summary in words of their own is never taken for a client. A prompt that somebody has rewritten
in the settings of a client is not recognised either: the setting ``keep`` of a model is for that.

Where the prompts are, with the commits that were read; and what an empty answer does:

* NextChat: ``app/store/chat.ts`` (043a672), ``Prompt.Topic`` and ``Prompt.Summarize`` in
  ``app/locales`` (012598f: cn en no; 0fa2c3a: ar bn cs fr; 98372c6: jp sk; 6ce2b50: it ko; a2af72b:
  tw; 308a277: da; 89d6f07: uz; the other languages, and second forms, from copies in other
  repositories). The title is the last message, of the user and not streamed; the summary is asked
  for in a system message at the end. An empty title leaves "New Conversation", and is asked for
  again after each answer. An empty summary replaces the memory of all earlier messages.
* LibreChat: ``src/utils/title.ts`` of its agents package, earlier ``titleConvo`` of its OpenAI
  client and ``summaryPrompts.js`` (from copies). One message. An empty title becomes "Untitled
  Conversation" (``packages/api/src/utils/sanitizeTitle.ts``, 1aba565). A summary replaces old
  messages.
* LobeChat: ``packages/prompts/src/chains`` (title 2430838, history 50af0e9, translation b9634d5,
  query 4dd4c59, emoji 9e4fd07, names 23bc8f5, descriptions 9e3c8e7, tags c46875b, chunks 442b801,
  compression, topic summary and quick replies 5e912a4; titles in Chinese or as JSON and the
  detection of languages from copies). The topic takes an empty title as its name. A summary
  replaces old messages; a person waits for the rest.
* Cherry Studio: ``src/renderer/src/services/ApiService.ts`` (0095f5c); prompts, the JSON form and
  the search from copies. An empty title is not taken. From an empty answer to the search prompt no
  question is read, and nothing is searched for.
* Chatbox: ``src/renderer/packages/prompts.ts`` (1792d0b). The chat takes an empty name.

So a title for which Dify has no name is the beginning of what the person said first, and summaries,
translations and the like are answered by a run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from opendify.chat.tasks import COMPACTION, QUERIES, TEXT, TITLE, TRANSLATION, UNKNOWN, Task
from opendify.protocols.base import ChatPrompt, Message

# Where the instruction stands.
_ALONE = "alone"  # the only message, of a user or of the system
_AFTER_CHAT = "after chat"  # a user's message after the answers of the chat
_SYSTEM_AFTER_CHAT = "system after chat"  # a system message after the messages of the chat
_SYSTEM = "system"  # a system message; then messages of the user only
_SYSTEM_BEFORE_TURNS = "system before turns"  # a system message; then turns, perhaps made-up ones

_SYSTEM_ROLES = ("system", "developer")

# A title is at most so long, and shows no more of what the person said.
MAX_TITLE_CHARACTERS = 40

# An instruction that does not hold the chat itself is shorter.
_MAX_INSTRUCTION = 4_000

# In what follows the first text is the beginning of an instruction and the second its end.
_Words = tuple[str, str]

_NEXTCHAT_TITLES: tuple[_Words, ...] = (
    # en, uz
    ("Please generate a four to five word title summarizing", "Remove enclosing quotation marks."),
    ("使用四到五个字直接返回这句话的简要主题", "请直接返回“闲聊”"),  # cn
    # tw
    ("Use the language used by the user (e.g. en for", "of the conversation in first sight."),
    ("استخدم أربع إلى خمس كلمات لإرجاع ملخص", "'دردشة عامة'"),  # ar
    ("চার থেকে পাঁচটি শব্দ ব্যবহার করে এই বাক্যের", "'বেকার' বলুন"),  # bn
    ("Použijte čtyři až pět slov pro stručné téma", "vraťte pouze 'neformální chat'."),  # cs
    ("Find en kort overskrift med 4-5 ord om emnet.", "eller anførselstegn."),  # da
    ("Geben Sie ein kurzes Thema in vier bis fünf", "„Allgemeines Gespräch“ zurück."),  # de
    ("Devuelve un tema breve de esta frase en cuatro a cinco", "devuelve 'charlas casuales'"),  # es
    ("Por favor, genera un título de cuatro a cinco palabras", "las comillas que lo envuelven."),
    ("Utilisez quatre à cinq mots pour retourner le sujet", "« discussion informelle »"),  # fr
    ("Gunakan empat hingga lima kata untuk langsung", "langsung jawab 'Obrolan Santai'"),  # id
    ("Buat judul berisi empat hingga lima kata", "Silakan coba dengan kutipan berakhir."),
    ("Riporta il tema di questa frase in modo conciso", "direttamente con 'chit-chat'"),  # it
    ("この文の簡潔なテーマを四から五文字で", "「雑談」と返してください"),  # jp
    ("네 글자에서 다섯 글자로 이 문장의 간략한", "'잡담'이라고만 반환하세요."),  # ko
    ("Bruk fire til fem ord for å returnere en kort", 'returner bare "sladder".'),  # no
    ("Por favor, gere um título de quatro a cinco palavras", "Remova as aspas que o envolvem."),
    ("Укажите краткую тему этого сообщения в четырех-пяти", "просто напишите 'Болтовня'"),  # ru
    ("Пожалуйста, сгенерируйте заголовок из четырех-пяти слов", "кавычки."),
    ("Prosím, vygenerujte štvor- až päťslovný titul", "Odstráňte uzatváracie úvodzovky."),  # sk
    ("Bu cümlenin dört ila beş kelimelik kısa başlığını", "doğrudan 'Sohbet' yanıtını verin."),
    ("Lütfen herhangi bir giriş, noktalama işareti", "tırnak işaretlerini kaldırın."),  # tr
    ("Sử dụng bốn đến năm từ để trả lại chủ đề", 'hãy trả lại "Tán gẫu"'),  # vi
)
_NEXTCHAT_SUMMARIES: tuple[_Words, ...] = (
    ("Summarize the discussion briefly in 200 words", "prompt for future context."),  # en, uz
    ("Summarize our discussion briefly in 200 words", "prompt for future context."),
    ("简要总结一下对话内容，用作后续的上下文提示", "控制在 200 字以内"),  # cn
    ("Use the language used by the user (e.g. en-us", "the conversation in the future."),  # tw
    ("قم بتلخيص محتوى الدردشة باختصار", "في حدود 200 كلمة"),  # ar
    ("আলোচনার বিষয়বস্তু সংক্ষিপ্তভাবে সারাংশ", "সীমাবদ্ধ রাখুন"),  # bn
    ("Stručně shrňte obsah konverzace", "do 200 slov"),  # cs
    ("Skriv et kort resumé (under 200 ord)", "til senere brug."),  # da
    ("Fassen Sie den Gesprächsinhalt zusammen", "unter 200 Zeichen"),  # de
    ("Resume brevemente el contenido de la conversación", "dentro de 200 palabras"),  # es
    ("Resuma nuestra discusión brevemente en 200", "para futuros contextos."),
    ("Faites un résumé succinct de la discussion", "en moins de 200 mots"),  # fr
    ("Berikan ringkasan singkat tentang konten obrolan", ""),  # id
    ("Buat ringkasan percakapan dalam 200 kata", "di masa depan."),
    ("Riassumi brevemente il contenuto della conversazione", "entro 200 parole"),  # it
    ("対話の内容を簡潔に要約し", "200文字以内に抑えてください"),  # jp
    ("대화 내용을 간략히 요약하여", "200자 이내로 작성하세요."),  # ko
    ("Oppsummer samtalen kort som en kontekstuell", "hold det innen 200 tegn"),  # no
    ("Resuma a discussão brevemente em 200 palavras", "para o contexto futuro."),  # pt
    ("Кратко подведите итоги содержимого беседы", "не более 200 слов"),  # ru
    ("Кратко изложите обсуждение в 200 словах", "для будущего контекста."),
    ("Stručne zhrňte diskusiu na menej ako 200 slov", "pre budúci kontext."),  # sk
    ("Sohbet içeriğini kısaca özetleyin", "200 kelime içinde tutun"),  # tr
    ("Gelecekteki bağlam için bir bilgi istemi", "200 kelimeyle özetleyin."),
    ("Tóm tắt nội dung cuộc trò chuyện", "giữ trong vòng 200 từ"),  # vi
)


@dataclass(frozen=True, slots=True)
class _Shape:
    """One kind of request of one client.

    ``words`` are the beginning and end of the instruction, in all its languages; ``also`` is a text
    that it contains as well; ``asked`` is one that the last message contains. ``is_streamed`` is
    None where the client may do either. ``quotes`` are the texts before and after what the person
    said first, as the last message quotes the chat; without them, or where they are absent, it is
    the first message of the user. ``key`` and ``other_keys`` are those of ``Task``.
    """

    client: str
    kind: str
    place: str
    words: tuple[_Words, ...]
    also: str = ""
    asked: str = ""
    is_streamed: bool | None = None
    quotes: tuple[tuple[str, str], ...] = ()
    key: str = ""
    other_keys: tuple[str, ...] = ()
    has_content: bool = False  # the message with the instruction also holds the chat


_LOBE_QUOTES = (("<user>\n", "\n</user>"), ("user: ", "\nassistant: "), ("user: ", "\n"))
_LOBE_TITLE = (("You are a professional conversation summarizer. Generate a concise title", ""),)

_SHAPES = (
    _Shape("NextChat", TITLE, _AFTER_CHAT, _NEXTCHAT_TITLES, is_streamed=False),
    _Shape("NextChat", COMPACTION, _SYSTEM_AFTER_CHAT, _NEXTCHAT_SUMMARIES),
    _Shape(
        "LibreChat",  # titleMethod: completion, the default
        TITLE,
        _ALONE,
        (("Provide a concise, 5-word-or-less title for the conversation, using", ""),),
        also="return the title itself",
        asked="\nConversation:\n",
        quotes=(("\nUser: ", "\nAI: "),),
        has_content=True,
    ),
    _Shape(
        "LibreChat",  # titleMethod: structured
        TITLE,
        _ALONE,
        (("Analyze this conversation and provide:\n1. The detected language of the", ""),),
        also="\n2. A concise title in the detected language",
        quotes=(("\nUser: ", "\nAI: "),),
        key="title",
        other_keys=("language",),
        has_content=True,
    ),
    _Shape(
        "LibreChat",  # earlier
        TITLE,
        _ALONE,
        (
            ("Please generate a concise, 5-word-or-less title for the conversation", "||>Title:"),
            ("Detect user language and write in the same language an extremely", "||>Title:"),
        ),
        also="||>User:",
        quotes=(('||>User:\n"', '"\n||>Response:'),),
        has_content=True,
    ),
    _Shape(
        "LibreChat",  # earlier
        COMPACTION,
        _ALONE,
        (("Summarize the conversation by integrating new lines into the current summary.", ""),),
        also="\nNew lines:\n",
        has_content=True,
    ),
    _Shape(
        "LobeChat",
        TITLE,
        _SYSTEM,
        _LOBE_TITLE,
        also='a single "title" string',
        quotes=_LOBE_QUOTES,
        key="title",
    ),
    _Shape(
        "LobeChat",
        TITLE,
        _SYSTEM,
        _LOBE_TITLE,
        also="Return title and description strings",
        quotes=_LOBE_QUOTES,
        key="title",
        other_keys=("description",),
    ),
    _Shape(
        "LobeChat",
        TITLE,
        _SYSTEM,
        _LOBE_TITLE,
        also="specified by the locale code:",
        quotes=_LOBE_QUOTES,
    ),
    _Shape(
        "LobeChat",  # in Chinese
        TITLE,
        _SYSTEM,
        (("你是一名擅长会话的助理，你需要将用户的会话总结为", ""),),
        asked="请总结上述对话为10个字以内的标题",
        quotes=_LOBE_QUOTES,
    ),
    _Shape(
        "LobeChat",
        COMPACTION,
        _SYSTEM,
        (("You're an assistant who's good at extracting key takeaways from conversations", ""),),
        asked="<chat_history>",
    ),
    _Shape(
        "LobeChat",
        COMPACTION,
        _SYSTEM,
        (("You are a conversation context compressor.", ""),),
    ),
    _Shape(
        "LobeChat",
        COMPACTION,
        _SYSTEM,
        (("Summarize the conversation for future reference.\n\nRequirements:", ""),),
        also="suitable for a topic card",
    ),
    _Shape(
        "LobeChat",
        TRANSLATION,
        _SYSTEM,
        (("You are a professional translator. Translate the input text to", ""),),
        also="- Output ONLY the translated text",
    ),
    _Shape(
        "LobeChat",
        QUERIES,
        _SYSTEM,
        (("Given the following conversation and a follow-up question, rephrase", ""),),
        also="<chatHistory>",
        asked=", it's standalone query:",
        quotes=(("Follow Up Input: ", ", it's standalone query:"),),
        has_content=True,
    ),
    _Shape(
        "LobeChat",
        UNKNOWN,
        _SYSTEM,
        (("You are a sidecar that extracts 0-4 quick-reply suggestions", ""),),
        asked="Last assistant message:",
        key="chips",
    ),
    _Shape(
        "LobeChat",
        TEXT,
        _SYSTEM_BEFORE_TURNS,
        (
            ("你是一名精通全世界语言的语言专家，你需要识别用户输入的内容", ""),
            ("你是一名擅长起名的起名大师", "{角色名}"),
            ("你是一名擅长技能总结的助理", "{简介}"),
            ("你是一名擅长会话标签总结的助理", "{标签}"),
            ("你是一名擅长从 chunk 中提取摘要的助理", "所使用的语种"),
        ),
    ),
    _Shape(
        "LobeChat",
        TEXT,
        _SYSTEM_BEFORE_TURNS,
        (("You are an emoji expert who selects the most appropriate emoji to", ""),),
        also="- Output ONLY a single emoji",
    ),
    _Shape(
        "Cherry Studio",
        TITLE,
        _SYSTEM,
        (
            ("Summarize the conversation into a title in", "without anything else."),
            ("总结给出的会话，将其总结为语言为", "不要输出标题以外的内容。"),
        ),
        is_streamed=False,
    ),
    _Shape(
        "Cherry Studio",  # earlier
        TITLE,
        _SYSTEM,
        (
            ("You are an assistant skilled in conversation. You need to summarize", "symbols"),
            ("You are an assistant skilled in conversation. You need to summarize", "symbols."),
            ("你是一名擅长会话的助理，你需要将用户的会话总结为 10 个字以内的标题", "特殊符号"),
            ("你是一名擅长会话的助理，你需要将用户的会话总结为 10 个字以内的标题", "特殊符号。"),
        ),
        is_streamed=False,
        quotes=(("User: ", "\n"),),
    ),
    _Shape(
        "Cherry Studio",
        TEXT,
        _SYSTEM_BEFORE_TURNS,
        (("You are an AI question rephraser.", ""),),
        also="<question>",
        has_content=True,
    ),
    _Shape(
        "Cherry Studio",
        TRANSLATION,
        _ALONE,
        (("You are a translation expert. Your only task is to translate text enclosed with", ""),),
        also="<translate_input>",
        has_content=True,
    ),
    _Shape(
        "Cherry Studio",
        TRANSLATION,
        _SYSTEM,
        (("You are a translation expert. Your only task is to translate text enclosed with", ""),),
        also="<translate_input>",
        has_content=True,
    ),
    _Shape(
        "Chatbox",
        TITLE,
        _ALONE,
        (("Based on the chat history, give this conversation a name.", "The name is:"),),
        also="\nHere's the conversation:\n\n```\n",
        quotes=(("\n```\n", "\n\n---------"), ("\n```\n", "\n```")),
        has_content=True,
    ),
)

_PLACES = tuple(dict.fromkeys(shape.place for shape in _SHAPES))
_STARTS = tuple(start for shape in _SHAPES for start, _ in shape.words)

# Cherry Studio quotes the chat as JSON, whatever the prompt for the title says.
_CHERRY_START, _CHERRY_TEXT, _NO_THINKING = '[{"role":"', "mainText", " /no_think"
_CHERRY_KEYS = {"role", _CHERRY_TEXT, "files"}


def find(chat: ChatPrompt) -> Task | None:
    """The task of a client; None for a turn of a chat."""
    if chat.has_tools:
        return None
    asking = _asking_messages(chat.messages)
    for shape in _SHAPES if asking else ():
        if shape.place in asking and _matches(shape, chat, asking[shape.place]):
            return _task(shape, chat.messages)
    return _named_by_cherry_studio(chat)


def as_question(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages of a task that asks in a system message, with a user's message that asks: a
    system message of Dify's is set in its app, and a client's may be dropped."""
    *before, last = messages
    if last.role in _SYSTEM_ROLES:
        return (*before, replace(last, role="user"))
    instructions = [one.text for one in before if one.role in _SYSTEM_ROLES]
    others = (one for one in before if one.role not in _SYSTEM_ROLES)
    return (*others, replace(last, text="\n\n".join([*instructions, last.text])))


def title_of(text: str) -> str:
    """The beginning of a text, as a title."""
    words = " ".join(text[: 10 * MAX_TITLE_CHARACTERS].split())
    if len(words) <= MAX_TITLE_CHARACTERS:
        return words
    return words[: MAX_TITLE_CHARACTERS - 1].rstrip() + "…"


def _asking_messages(messages: Sequence[Message]) -> dict[str, Message]:
    """The messages, by their place, that begin as the instruction of some task does."""
    asking: dict[str, Message] = {}
    for place in _PLACES:
        message = _asking_message(place, messages)
        if message is not None and not message.attachments:
            beginning = message.text[
                :_MAX_INSTRUCTION
            ].lstrip()  # a chat in it can be megabytes long
            if beginning.startswith(_STARTS):
                asking[place] = message
    return asking


def _matches(shape: _Shape, chat: ChatPrompt, asking: Message) -> bool:
    if shape.is_streamed is not None and shape.is_streamed != chat.stream:
        return False
    text, last = asking.text.strip(), chat.messages[-1].text
    if not shape.has_content and len(text) > _MAX_INSTRUCTION:
        return False
    if shape.also not in text or shape.asked not in last:
        return False
    return any(text.startswith(start) and text.endswith(end) for start, end in shape.words)


def _asking_message(place: str, messages: Sequence[Message]) -> Message | None:
    """The message at this place; None where the request is built in another way."""
    first, last = messages[0], messages[-1]
    roles = [one.role for one in messages]
    if place == _ALONE:
        return first if len(roles) == 1 and first.role in ("user", *_SYSTEM_ROLES) else None
    if place == _AFTER_CHAT:
        return last if roles[-2:] == ["assistant", "user"] else None
    if place == _SYSTEM_AFTER_CHAT:
        return last if last.role in _SYSTEM_ROLES and "user" in roles else None
    if first.role not in _SYSTEM_ROLES or last.role != "user":
        return None
    return first if place == _SYSTEM_BEFORE_TURNS or {*roles[1:]} == {"user"} else None


def _task(shape: _Shape, messages: Sequence[Message]) -> Task:
    default: str | tuple[str, ...] = ""
    if shape.kind == TITLE:
        default = title_of(_said_first(shape, messages))
    elif shape.kind == QUERIES:
        default = _said_first(shape, messages)
    elif shape.kind == UNKNOWN:
        default = ()
    asks_in_system = shape.place not in (_ALONE, _AFTER_CHAT) or messages[0].role != "user"
    return Task(shape.kind, shape.key, default, shape.other_keys, asks_in_system)


def _said_first(shape: _Shape, messages: Sequence[Message]) -> str:
    text = messages[-1].text
    for before, after in shape.quotes:
        _, start, rest = text.partition(before)
        said, end, _ = rest.partition(after)
        if start and end and said.strip():
            return said.strip()
    said_by_user = (one.text for one in messages if one.role == "user")
    return "" if shape.place == _ALONE else next(said_by_user, "")


def _named_by_cherry_studio(chat: ChatPrompt) -> Task | None:
    first, last = chat.messages[0], chat.messages[-1]
    roles = [one.role for one in chat.messages]
    if chat.stream or first.role not in _SYSTEM_ROLES or roles[1:] != ["user"]:
        return None
    if not last.text.startswith(_CHERRY_START) or last.attachments:
        return None
    said = _cherry_messages(last.text.removesuffix(_NO_THINKING))
    if not said:
        return None
    by_user = (one[_CHERRY_TEXT] for one in said if one.get("role") == "user")
    return Task(TITLE, default=title_of(next(by_user, "")), asks_in_system=True)


def _cherry_messages(text: str) -> list[dict[str, Any]]:
    """The messages of Cherry Studio's JSON; empty for any other JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    is_chat = isinstance(found, list) and all(
        isinstance(one, dict)
        and one.keys() <= _CHERRY_KEYS
        and isinstance(one.get(_CHERRY_TEXT), str)
        for one in found
    )
    return found if is_chat else []
