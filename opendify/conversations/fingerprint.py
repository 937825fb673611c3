"""Fingerprints of chat histories. No I/O.

A fingerprint consists of one chained digest of everything and a short digest for each of the last
messages; the texts themselves are not stored. ``branches`` compares them.

What the digests must tolerate, measured with Open WebUI 0.12: answers come back without their
reasoning and trimmed; a turn with a file was wrapped in a retrieval prompt or an
``<attached_files>`` block when it was sent. So such wrapping is never included, and files are
compared only where the history has some.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from opendify.protocols.base import Attachment, Message

# How many of the last messages have their own digest; a longer history must match as a whole.
MAX_ITEMS = 64

_WRAPPER_START = "### Task:"
_CONTEXT_END = "</context>"
# How retrieval prompts before Open WebUI 0.7 enclosed the user's text.
_QUERY_START, _QUERY_END = "<user_query>", "</user_query>"
_ATTACHED = re.compile(r"<(?P<end>/?)(?P<name>attached_files)>")
# Reasoning may stand before each part of an answer.
_REASONING = re.compile(r"<(?P<end>/?)(?P<name>think|thinking|details)\b[^<>]*>", re.IGNORECASE)
_CUT_REASONING = re.compile(r"\s*<think\b", re.IGNORECASE)
_FOOTNOTE = re.compile(r"\[\^?\d+\]")
_SOURCES = "**Sources**"
_SOURCE = re.compile(r"\d+\. .*|\s*")

_CHAIN_DIGITS = 16
_ITEM_DIGITS = 8
_ANSWER_DIGITS = 8
_MESSAGE_DIGITS = 8
QUESTION_DIGITS = 16
_ENCODED = re.compile(
    rf"[0-9a-f]{{{_CHAIN_DIGITS}}}"
    rf"(?::[0-9a-f]{{{_ITEM_DIGITS}}}(?:\+[0-9a-f]{{{_ITEM_DIGITS}}})?)*"
    rf"(?:@[0-9a-f]{{{_ANSWER_DIGITS}}})?"
    rf"(?:#[0-9a-f]{{{_MESSAGE_DIGITS}}})?"
    rf"(?:=(?:[0-9a-f]{{{_CHAIN_DIGITS}}})?(?:/(?:0|[1-9][0-9]{{0,8}})){{2}})?"
)


@dataclass(frozen=True, slots=True)
class LastTurn:
    """The last turn of a conversation, as long as the client has not sent it back in a history.

    ``chain_before`` is the chained digest of the history before it, ``length`` how many messages it
    has, and ``answer_length`` how many characters of the answer its digest is made of.
    """

    chain_before: str
    length: int
    answer_length: int


@dataclass(frozen=True, slots=True)
class HistoryFingerprint:
    """The history of a conversation. ``items`` are for its last messages: the digest of the text,
    followed by a plus sign and the digest of the files, if any. ``answer`` is the digest of the
    client's id of the last answer, ``message`` that of Dify's; "" where they are unknown.
    ``last_turn`` is None where the client has sent the whole history itself."""

    chain: str = ""
    items: tuple[str, ...] = ()
    answer: str = ""
    message: str = ""
    last_turn: LastTurn | None = None

    def encode(self) -> str:
        """A single word, for the store."""
        answer = f"@{self.answer}" if self.answer else ""
        message = f"#{self.message}" if self.message else ""
        last, turn = "", self.last_turn
        if turn:
            last = f"={turn.chain_before}/{turn.length}/{turn.answer_length}"
        return ":".join((self.chain, *self.items)) + answer + message + last


def decode(word: str) -> HistoryFingerprint | None:
    """The inverse of ``encode``; None where ``word`` is not a fingerprint."""
    if not _ENCODED.fullmatch(word):
        return None
    rest, _, last = word.partition("=")
    rest, _, message = rest.partition("#")
    rest, _, answer = rest.partition("@")
    chain, *items = rest.split(":")
    turn = None
    if last:
        chain_before, length, answer_length = last.split("/")
        turn = LastTurn(chain_before, int(length), int(answer_length))
    return HistoryFingerprint(chain, tuple(items), answer, message, turn)


def unknown(conversation_id: str) -> HistoryFingerprint:
    """A start that matches no history, for a conversation whose history is unknown."""
    return HistoryFingerprint(_digest(f"unknown|{conversation_id}")[:_CHAIN_DIGITS])


def join_user_messages(messages: Sequence[Message]) -> list[Message]:
    """The messages, with those of the user that follow one another as one message, as Dify gets
    them: some clients show them so afterwards."""
    joined: list[Message] = []
    for message in messages:
        if message.role == "user" and joined and joined[-1].role == "user":
            text = f"{joined[-1].text}\n\n{message.text}"
            message = Message("user", text, joined[-1].attachments + message.attachments)
            joined.pop()
        joined.append(message)
    return joined


def text_digests(messages: Sequence[Message]) -> list[str]:
    """The digests of the texts, for callers that need them twice."""
    return [_text_digest(message) for message in messages]


def extend(
    previous: HistoryFingerprint,
    messages: Sequence[Message],
    answer_id: str = "",
    texts: Sequence[str] | None = None,
    message_id: str = "",
) -> HistoryFingerprint:
    """The fingerprint after these messages as well. ``answer_id`` is the client's id of the last of
    them and ``message_id`` Dify's; ``texts`` are their text digests if already computed."""
    chain, items = previous.chain, list(previous.items)
    for message, text in zip(messages, texts or text_digests(messages), strict=True):
        chain = _digest(f"{chain}|{text}")[:_CHAIN_DIGITS]
        files = f"+{_files_digest(message.attachments)}" if message.attachments else ""
        items.append(text[:_ITEM_DIGITS] + files)
    last_items = tuple(items[-MAX_ITEMS:])
    return HistoryFingerprint(
        chain, last_items, answer_digest(answer_id), message_digest(message_id)
    )


def after_turn(
    before: HistoryFingerprint,
    turn: Sequence[Message],
    texts: Sequence[str],
    answer_id: str,
    message_id: str,
) -> HistoryFingerprint:
    """The fingerprint after a turn, whose last message is the answer as it was sent to the client.
    ``texts`` are the text digests of its messages."""
    extended = extend(before, turn, answer_id, texts, message_id)
    last = LastTurn(before.chain, len(turn), len(_normalized(turn[-1])))
    return replace(extended, last_turn=last)


def answer_begins_or_ends_alike(stored: HistoryFingerprint, shown: Message) -> bool:
    """Whether an answer, as the client shows it, is the last answer of a conversation, possibly
    with text before or after it. False where the conversation does not end with a turn that was
    sent to the client."""
    if not stored.last_turn or shown.role != "assistant":
        return False
    sent, length = stored.items[-1].partition("+")[0], stored.last_turn.answer_length
    text = _normalized(shown)
    if not length or len(text) < length:
        return _item(shown.role, text) == sent
    candidates = (text[:length], text[len(text) - length :])
    return any(_item(shown.role, one) == sent for one in candidates)


def last_exchange_id(history: Sequence[Message], texts: Sequence[str] | None = None) -> str:
    """An id of the last exchange of a history, under which the conversations of clients without
    chat ids are stored; "" where the history does not end with an answer. ``texts`` are the text
    digests of the history if already computed."""
    if not ends_with_answer(history):
        return ""
    last_question = max(i for i, message in enumerate(history) if message.role == "user")
    return _digest(
        "|".join(texts[last_question:] if texts else text_digests(history[last_question:]))
    )[:32]


def ends_with_answer(history: Sequence[Message]) -> bool:
    """Whether there is a user message and the last message is an answer."""
    roles = [message.role for message in history]
    return "user" in roles and roles[-1] == "assistant"


def same_items(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the items of two fingerprints stand for the same messages, compared from the last one
    backwards, as far as both reach. Files are compared only where both have some."""
    return one == other or all(map(_is_same_item, reversed(one), reversed(other)))


def _is_same_item(one: str, other: str) -> bool:
    text, _, files = one.partition("+")
    other_text, _, other_files = other.partition("+")
    return text == other_text and (not files or not other_files or files == other_files)


def own_text(text: str) -> str:
    """What the user wrote, without what Open WebUI wraps around it."""
    if text.startswith(_WRAPPER_START) and _CONTEXT_END in text:
        text = text.rpartition(_CONTEXT_END)[2].strip()
        if text.startswith(_QUERY_START) and text.endswith(_QUERY_END):
            text = text[len(_QUERY_START) : -len(_QUERY_END)]
    return (_strip_elements(_ATTACHED, text) if "<" in text else text).strip()


def _answer_text(text: str) -> str:
    """The text of an answer without its reasoning, sources and footnotes."""
    if "<" in text:
        text = _strip_elements(_REASONING, text)
        if _CUT_REASONING.match(text):  # unterminated where an answer was cut off
            return ""
    body, _, sources = text.rpartition(_SOURCES)
    if body and all(map(_SOURCE.fullmatch, sources.splitlines())):
        text = body
    return _FOOTNOTE.sub("", text) if "[" in text else text


def _strip_elements(tag: re.Pattern[str], text: str) -> str:
    """The text without the elements of these tags, each up to the first end tag of its name. Takes
    time linear in the length of the text, whatever callers send."""
    # Searched twice instead of stored: a list of a million matches blocks all threads for seconds.
    last_ends = {
        match["name"].lower(): match.start() for match in tag.finditer(text) if match["end"]
    }
    parts, position, inside = [], 0, ""
    for match in tag.finditer(text):
        name = match["name"].lower()
        if inside and match["end"] and name == inside:
            position, inside = match.end(), ""
        elif not inside and not match["end"] and last_ends.get(name, 0) > match.start():
            parts.append(text[position : match.start()])
            inside = name
    return "".join([*parts, text[position:]])


def _text_digest(message: Message) -> str:
    return _digest(f"{message.role}|{_normalized(message)}")


def _normalized(message: Message) -> str:
    """What counts of the text of a message, without white space."""
    text = _answer_text(message.text) if message.role == "assistant" else own_text(message.text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return "".join(text.split())


def _item(role: str, normalized: str) -> str:
    return _digest(f"{role}|{normalized}")[:_ITEM_DIGITS]


def is_in_query(message: Message, query: str) -> bool:
    """Whether a query to Dify contains the text of a message, as the client shows it."""
    text = _normalized(message)
    return bool(text) and text in _normalized(Message("tool", query))


def turn_digest(messages: Sequence[Message]) -> str:
    """The digest of the query of a turn that consists of these messages alone."""
    return question_digest("".join(message.text for message in messages))


def answer_digest(answer_id: str) -> str:
    """The digest of a client's id of an answer; "" for no id."""
    return _digest(answer_id)[:_ANSWER_DIGITS] if answer_id else ""


def question_digest(query: str) -> str:
    """The digest of a query to Dify, ignoring whitespace: Dify may return it with some removed."""
    return _digest("".join(query.replace("\0", "").split()))[:QUESTION_DIGITS]


def system_digest(system: str) -> str:
    """The digest of a system prompt; "-" for none."""
    return _digest(system)[:_ITEM_DIGITS] if system else "-"


def message_digest(message_id: str) -> str:
    """The digest of Dify's id of a message; "" for no id."""
    return _digest(message_id)[:_MESSAGE_DIGITS] if message_id else ""


def _files_digest(attachments: Sequence[Attachment]) -> str:
    return _digest("|".join(a.url or a.data or a.file_id for a in attachments))[:_ITEM_DIGITS]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
