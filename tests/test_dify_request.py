import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.chat import dify_request
from opendify.chat.dify_request import Prompt
from opendify.chat.form_inputs import TemplateVars
from opendify.config.history_words import parse_history_words
from opendify.config.models import Model
from opendify.dify.apps import App, FormField
from opendify.files.attachments import PreparedFiles
from opendify.protocols.base import Attachment, DifyOptions, Message
from tests.support.bodies import to_prompt as parse_prompt

CONTINUE = "Please continue your last answer exactly where it stopped."
SYSTEM = Message("system", "Be brief.")
ASKED = Message("user", "What is a fish?")
ANSWERED = Message("assistant", "An animal.")
ASKED_AGAIN = Message("user", "And a bird?")
CHAT = [SYSTEM, ASKED, ANSWERED, ASKED_AGAIN]
CHATBOT = App("chat")

TITLE = Message("system", "Make a title.")
GREET = Message("developer", "Greet the user.")
EMPTY = Message("assistant", "")
SENT_AGAIN = Message("user", "Please.")
CAT = Attachment("image", url="https://cdn.example/cat.jpg")
DOG = Attachment("image", url="https://cdn.example/dog.jpg")
PICTURE = Message("user", "", (CAT,))
CALLED = Message("assistant", "")
RESULT = Message("tool", "4", name="add")


def prompt(
    turn: str,
    *messages: Message,
    system: str = "",
    history: tuple[Message, ...] = (),
    **more: Any,
) -> Prompt:
    return Prompt(system, history, turn, messages=messages, **more)


TOLD = (ASKED, ANSWERED)
CONTINUED = prompt(CONTINUE, history=TOLD, is_continuation=True)

DIALOGUES = [
    pytest.param([ASKED], prompt("What is a fish?", ASKED), id="one question"),
    pytest.param(
        CHAT,
        prompt("And a bird?", ASKED_AGAIN, system="Be brief.", history=TOLD),
        id="a chat",
    ),
    pytest.param(
        [SYSTEM, ASKED, Message("developer", "Be kind.")],
        prompt("What is a fish?", ASKED, system="Be brief.\n\nBe kind."),
        id="system and developer, wherever they stand",
    ),
    pytest.param(
        [Message("system", ""), ASKED], prompt("What is a fish?", ASKED), id="an empty system"
    ),
    pytest.param([ASKED, ANSWERED], CONTINUED, id="continue your answer"),
    pytest.param([ASKED, ANSWERED, EMPTY], CONTINUED, id="continue your answer, with a place"),
    pytest.param([Message("user", " ")], prompt("", Message("user", " ")), id="blanks"),
    pytest.param([PICTURE], prompt("", PICTURE, attachments=(CAT,)), id="only a file"),
    pytest.param(
        [Message("user", " x ")], prompt(" x ", Message("user", " x ")), id="blanks around the text"
    ),
    # Several messages in a row
    pytest.param(
        [ASKED, ASKED_AGAIN],
        prompt("What is a fish?\n\nAnd a bird?", ASKED, ASKED_AGAIN),
        id="two questions in a row",
    ),
    pytest.param(
        [ASKED, ANSWERED, ASKED_AGAIN, SYSTEM, SENT_AGAIN],
        prompt("And a bird?\n\nPlease.", ASKED_AGAIN, SENT_AGAIN, system="Be brief.", history=TOLD),
        id="two questions in a row, with an instruction between them",
    ),
    pytest.param(
        [ASKED, PICTURE],
        prompt("What is a fish?", ASKED, PICTURE, attachments=(CAT,)),
        id="a text and then a picture",
    ),
    pytest.param(
        [PICTURE, Message("user", "", (DOG,)), ASKED],
        prompt(
            "What is a fish?", PICTURE, Message("user", "", (DOG,)), ASKED, attachments=(CAT, DOG)
        ),
        id="pictures and then a text",
    ),
    pytest.param(
        [ASKED, Message("user", " "), Message("user", "")],
        prompt("What is a fish?", ASKED, Message("user", " "), Message("user", "")),
        id="blank ones are left out of the question",
    ),
    # Results of tools
    pytest.param(
        [ASKED, CALLED, RESULT],
        prompt("Tool result (add): 4", RESULT, history=(ASKED, CALLED)),
        id="the result of a tool",
    ),
    pytest.param(
        [ASKED, CALLED, RESULT, Message("tool", "", name="sub"), ASKED_AGAIN],
        prompt(
            "Tool result (add): 4\n\nAnd a bird?",
            RESULT,
            Message("tool", "", name="sub"),
            ASKED_AGAIN,
            history=(ASKED, CALLED),
        ),
        id="the results of tools, and a question",
    ),
    pytest.param(
        [ASKED, CALLED, Message("tool", "", name="add")],
        prompt("Tool result (add): ", Message("tool", "", name="add"), history=(ASKED, CALLED)),
        id="a tool that returned nothing",
    ),
    pytest.param(
        [ASKED, CALLED, Message("function", "4")],
        prompt("Tool result (tool): 4", Message("function", "4"), history=(ASKED, CALLED)),
        id="the result of a function without a name",
    ),
    pytest.param(
        [ASKED, CALLED, Message("tool", "", name="draw", unusable=("image",))],
        prompt(
            "Tool result (draw): [image]",
            Message("tool", "", name="draw", unusable=("image",)),
            history=(ASKED, CALLED),
        ),
        id="the picture of a tool that cannot be sent",
    ),
    # A place for the answer to come
    pytest.param([ASKED, EMPTY], prompt("What is a fish?", ASKED), id="an empty answer at the end"),
    pytest.param(
        [ASKED, ANSWERED, ASKED_AGAIN, EMPTY, Message("assistant", " \n")],
        prompt("And a bird?", ASKED_AGAIN, history=TOLD),
        id="several of them",
    ),
    pytest.param(
        [ASKED, EMPTY, SYSTEM],
        prompt("What is a fish?", ASKED, system="Be brief."),
        id="an instruction behind an empty answer",
    ),
    pytest.param(
        [ASKED, EMPTY, ASKED_AGAIN],
        prompt("And a bird?", ASKED_AGAIN, history=(ASKED, EMPTY)),
        id="an empty answer in the middle",
    ),
    # Instructions that ask
    pytest.param(
        [SYSTEM, ASKED, ANSWERED, TITLE],
        prompt("Make a title.", system="Be brief.", history=TOLD, is_auxiliary=True),
        id="an instruction after the answer",
    ),
    pytest.param(
        [ASKED, ANSWERED, TITLE, Message("system", " "), GREET, EMPTY],
        prompt("Make a title.\n\nGreet the user.", history=TOLD, is_auxiliary=True),
        id="instructions after the answer",
    ),
    pytest.param(
        [ASKED, ANSWERED, Message("user", ""), TITLE],
        prompt("Make a title.", Message("user", ""), history=TOLD, is_auxiliary=True),
        id="an instruction after an empty question",
    ),
    pytest.param(
        [ANSWERED, TITLE],
        prompt("Make a title.", history=(ANSWERED,), is_auxiliary=True),
        id="an instruction after a greeting",
    ),
    pytest.param(
        [SYSTEM, Message("system", "Be kind."), GREET],
        prompt("Greet the user.", system="Be brief.\n\nBe kind."),
        id="only instructions",
    ),
    pytest.param([GREET, Message("system", "")], prompt("Greet the user."), id="only one"),
    pytest.param(
        [ASKED, ANSWERED, TITLE, ASKED_AGAIN],
        prompt("And a bird?", ASKED_AGAIN, system="Make a title.", history=TOLD),
        id="an instruction before the question",
    ),
]


@pytest.mark.parametrize(("messages", "dialogue"), DIALOGUES)
def test_the_question_is_separated_from_the_history(
    messages: list[Message], dialogue: Prompt
) -> None:
    assert dify_request.to_prompt(messages) == dialogue


def raw(*messages: Message) -> list[dict[str, Any]]:
    return [{"role": m.role, "content": m.text, "name": m.name or None} for m in messages]


def asked(
    *messages: Message,
    conversation_id: str = "",
    settings: dict[str, Any] | None = None,
    app: App = CHATBOT,
    chat_id: str = "",
    **fields: Any,
) -> dict[str, Any]:
    prompt = parse_prompt({"model": "tiny", "messages": raw(*messages), **fields})
    model = Model("tiny", "app-x", "http://dify/v1", **(settings or {}))
    dialogue = dify_request.to_prompt(prompt.messages, model.history_words)
    facts = TemplateVars("u", chat_id=chat_id, system=dialogue.system)
    question = dify_request.to_dify_request(
        prompt.options,
        dialogue,
        model,
        app,
        facts,
        conversation_id,
        PreparedFiles(),
        "Look at these.",
    )
    return dict(question.body)


def test_a_question_is_asked_in_a_new_conversation() -> None:
    assert asked(ASKED) == {
        "inputs": {},
        "query": "What is a fish?",
        "user": "u",
        "response_mode": "streaming",
        "conversation_id": "",
        "auto_generate_name": False,
    }


def test_a_message_of_nothing_but_files_asks_what_the_operator_has_set() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://cdn.example/cat.jpg"}}
    blank = {"type": "text", "text": " "}
    for content in ([image], [blank, image]):
        messages = [{"role": "user", "content": content}]
        assert asked(messages=messages)["query"] == "Look at these."


@pytest.mark.parametrize("stream", [True, False])
def test_dify_is_always_asked_to_stream(stream: bool) -> None:
    assert asked(ASKED, stream=stream)["response_mode"] == "streaming"


TRANSCRIPT = "User: What is a fish?\n\nAssistant: An animal."
FRAMED = f"The conversation so far:\n\n{TRANSCRIPT}\n\nThe user now says:\n\nAnd a bird?"
FIRST = {"system": "first"}
EVERY = {"system": "every"}
DROP = {"system": "drop"}
INPUT = {"system": "input:rules"}

QUERIES = [
    pytest.param({}, "", f"Be brief.\n\n{FRAMED}", {}, id="new: system and transcript"),
    pytest.param({}, "c", "And a bird?", {}, id="known: the last turn alone"),
    pytest.param(FIRST, "", f"Be brief.\n\n{FRAMED}", {}, id="system first, new"),
    pytest.param(FIRST, "c", "And a bird?", {}, id="system first, known"),
    pytest.param(EVERY, "", f"Be brief.\n\n{FRAMED}", {}, id="system every, new"),
    pytest.param(EVERY, "c", "Be brief.\n\nAnd a bird?", {}, id="system every, known"),
    pytest.param(DROP, "", FRAMED, {}, id="system drop, new"),
    pytest.param(DROP, "c", "And a bird?", {}, id="system drop, known"),
    pytest.param(INPUT, "", FRAMED, {"rules": "Be brief."}, id="system input, new"),
    pytest.param(INPUT, "c", "And a bird?", {"rules": "Be brief."}, id="system input, known"),
    pytest.param({"history": "drop"}, "", "Be brief.\n\nAnd a bird?", {}, id="history drop"),
    pytest.param(
        {"history": "input:before"},
        "",
        "Be brief.\n\nAnd a bird?",
        {"before": TRANSCRIPT},
        id="history input, new",
    ),
    pytest.param({"history": "input:before"}, "c", "And a bird?", {}, id="history input, known"),
]


@pytest.mark.parametrize(("settings", "conversation_id", "query", "inputs"), QUERIES)
def test_a_conversation_is_sent_the_messages_that_it_lacks(
    settings: dict[str, Any], conversation_id: str, query: str, inputs: dict[str, Any]
) -> None:
    body = asked(*CHAT, conversation_id=conversation_id, settings=settings)
    assert (body["query"], body["inputs"]) == (query, inputs)
    assert body["conversation_id"] == conversation_id


def test_a_continued_answer_is_sent_to_a_new_conversation() -> None:
    query = asked(ASKED, ANSWERED)["query"]
    assert query == f"The conversation so far:\n\n{TRANSCRIPT}\n\nThe user now says:\n\n{CONTINUE}"
    assert asked(ASKED, ANSWERED, conversation_id="c")["query"] == CONTINUE


def test_no_system_text_fills_no_input() -> None:
    assert asked(ASKED, settings=INPUT)["inputs"] == {}


def test_inputs_of_the_request_win_over_those_of_the_model() -> None:
    settings = {"inputs": {"a": 1, "b": 2}}
    fields = {"inputs": {"b": 3}, "metadata": {"inputs": {"b": 4, "c": 5}}}
    assert asked(ASKED, settings=settings, **fields)["inputs"] == {"a": 1, "b": 3, "c": 5}


IMPOSTORS = [
    pytest.param({"inputs": {"who": "victim"}}, id="inputs"),
    pytest.param({"inputs": {"who": None}}, id="null"),
    pytest.param({"metadata": {"inputs": {"who": "victim"}}}, id="metadata.inputs"),
    pytest.param({"metadata": {"inputs": '{"who": "victim"}'}}, id="metadata.inputs as text"),
    pytest.param({"metadata": {"inputs.who": "victim"}}, id="metadata, one by one"),
]


@pytest.mark.parametrize("fields", IMPOSTORS)
def test_inputs_that_tell_who_asks_are_not_the_caller_s_to_set(fields: dict[str, Any]) -> None:
    settings = {"inputs": {"who": "{user}", "tone": "warm"}}
    assert asked(ASKED, settings=settings, **fields)["inputs"] == {"who": "u", "tone": "warm"}
    prompt = parse_prompt({"model": "tiny", "messages": raw(ASKED), **fields})
    model = Model("tiny", "app-x", "http://dify/v1", **settings)
    assert dify_request.ignored_inputs(prompt.options, model) == ("inputs.who",)


def test_other_inputs_of_the_request_are_not_ignored() -> None:
    settings = {"inputs": {"who": "{user}", "tone": "warm", "system": "{system}"}}
    prompt = parse_prompt(
        {"model": "tiny", "messages": raw(ASKED), "inputs": {"tone": "cold", "system": "x", "a": 1}}
    )
    model = Model("tiny", "app-x", "http://dify/v1", **settings)
    assert dify_request.ignored_inputs(prompt.options, model) == ()


def test_the_inputs_of_a_model_are_sent_on_every_turn_and_stay_as_they_are() -> None:
    inputs = {"a": 1}
    settings = {"inputs": inputs, **INPUT}
    assert asked(*CHAT, conversation_id="c", settings=settings)["inputs"]["a"] == 1
    assert inputs == {"a": 1}


def test_the_fields_of_dify_pass_through() -> None:
    files = [{"type": "image", "transfer_method": "remote_url", "url": "https://x/y.png"}]
    body = asked(ASKED, files=files, workflow_id="w", trace_id="t", auto_generate_name=True)
    assert body["files"] == files
    assert (body["workflow_id"], body["trace_id"]) == ("w", "t")
    assert body["auto_generate_name"] is True


SESSIONS = [
    pytest.param("", None, id="no chat"),
    pytest.param("79d6c649-f362-421d", "79d6c649-f362-421d", id="a plain id"),
    pytest.param("x" * 128, "x" * 128, id="the longest id"),
]


@pytest.mark.parametrize(("chat_id", "session"), SESSIONS)
def test_the_runs_of_a_chat_are_one_session_of_traces(chat_id: str, session: str | None) -> None:
    assert asked(ASKED, chat_id=chat_id).get("trace_session_id") == session


@given(st.text(min_size=1))
def test_any_other_chat_is_named_by_a_digest(chat_id: str) -> None:
    session = asked(ASKED, chat_id=chat_id)["trace_session_id"]
    assert re.fullmatch("[A-Za-z0-9_-]{1,128}", session)
    assert session != asked(ASKED, chat_id=chat_id + "x")["trace_session_id"]


def test_fields_of_openai_do_not_pass_through() -> None:
    body = asked(ASKED, temperature=1, max_tokens=5, tools=[{"type": "function"}], seed=1)
    assert set(body) == set(asked(ASKED))


HISTORIES = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=12)),
    max_size=8,
)


@given(history=HISTORIES)
def test_every_earlier_message_with_text_is_in_the_transcript_in_order(
    history: list[Message],
) -> None:
    body = asked(*history, ANSWERED, ASKED_AGAIN)
    position = 0
    for message in history:
        if message.text.replace("\0", "").strip():
            text = message.text.replace("\0", "")
            position = body["query"].index(f": {text}", position) + len(text)
    assert body["query"].endswith("And a bird?")


def test_of_a_long_history_the_oldest_messages_go() -> None:
    history = [Message("user", f"{number} " + "x" * 1000) for number in range(100)]
    query = asked(*history, ANSWERED, ASKED_AGAIN, settings={"history_max_chars": 32_000})["query"]
    assert "User: 99 x" in query
    assert "User: 69 x" in query
    assert "User: 1 x" not in query
    assert len(query) < 32_500


def test_as_many_characters_of_the_history_are_told_as_the_operator_allows() -> None:
    history = [ASKED, ANSWERED]
    for max_chars in range(len(TRANSCRIPT) + 2):
        query = asked(*history, ASKED_AGAIN, settings={"history_max_chars": max_chars})["query"]
        told = query.partition("The conversation so far:\n\n")[2].partition("\n\nThe user now")[0]
        assert len(told) <= max_chars
        assert TRANSCRIPT.endswith(told)
        assert (told == TRANSCRIPT) is (max_chars >= len(TRANSCRIPT))
        assert query.endswith("And a bird?")
    assert asked(*history, ASKED_AGAIN, settings={"history_max_chars": 0})["query"] == "And a bird?"


def test_of_one_long_message_the_end_stays() -> None:
    long = Message("user", "old " + "x" * 200_000 + " new")
    query = asked(long, ANSWERED, ASKED_AGAIN)["query"]
    assert "An animal." in query
    assert len(query) < 100_500
    alone = asked(Message("user", "Hi"), Message("assistant", long.text), ASKED_AGAIN)["query"]
    assert " new" in alone
    assert "old" not in alone


def test_files_of_earlier_messages_are_named_by_their_kind() -> None:
    history = [
        Message("user", "look at this", (CAT,)),
        Message("assistant", "Nice."),
        Message("user", "", (DOG, Attachment("file", file_id="f")), unusable=("audio",)),
        Message("assistant", "I see.", unusable=("video",)),
    ]
    query = dify_request.to_prompt([*history, ASKED_AGAIN])
    body = to_body(query)
    assert body["query"] == (
        "The conversation so far:\n\n"
        "User: [image] look at this\n\n"
        "Assistant: Nice.\n\n"
        "User: [image] [file] [audio]\n\n"
        "Assistant: [video] I see.\n\n"
        "The user now says:\n\nAnd a bird?"
    )


def to_body(dialogue: Prompt, app: App = CHATBOT, **settings: Any) -> dict[str, Any]:
    request = dify_request.to_dify_request(
        DifyOptions(),
        dialogue,
        Model("tiny", "app-x", "http://dify/v1", **settings),
        app,
        TemplateVars("u", system=dialogue.system),
        "",
        PreparedFiles(),
        "Look at these.",
    )
    return dict(request.body)


# --- the language of the frame --------------------------------------------------------------------

FISH = Message("user", "什么是鱼？")
FISH_IS = Message("assistant", "一种动物。")
BIRD = Message("user", "那鸟呢？")
IN_CHINESE = "此前的对话：\n\n用户：什么是鱼？\n\n助手：一种动物。\n\n用户现在说：\n\n"


def test_a_question_in_chinese_has_a_frame_in_chinese() -> None:
    assert asked(FISH, FISH_IS, BIRD)["query"] == f"{IN_CHINESE}那鸟呢？"
    assert asked(FISH, FISH_IS)["query"] == f"{IN_CHINESE}请从上一个回答中断的地方继续。"
    assert asked(FISH, FISH_IS, conversation_id="c")["query"] == "请从上一个回答中断的地方继续。"
    summarize = Message("system", "请总结对话。")
    assert asked(ASKED, ANSWERED, summarize)["query"].startswith("此前的对话：\n\n用户：What")
    assert asked(FISH, CALLED, RESULT, conversation_id="c")["query"] == "工具返回（add）：4"
    pictures = dify_request.to_prompt([Message("user", "什么", (CAT,)), FISH_IS, BIRD])
    assert "用户：[图片] 什么" in to_body(pictures)["query"]


@pytest.mark.parametrize("text", ["And a bird?", "東京都の鳥は？", "새는 뭐예요?", "А птица?"])
def test_any_other_question_has_one_in_english(text: str) -> None:
    query = asked(FISH, FISH_IS, Message("user", text))["query"]
    assert query.startswith("The conversation so far:\n\nUser: 什么是鱼？")


@pytest.mark.parametrize("text", ["?", "👍", "123", ""])
def test_a_question_without_words_is_in_the_language_of_the_one_before(text: str) -> None:
    for question, answer, start in ((FISH, FISH_IS, "此前的"), (ASKED, ANSWERED, "The conv")):
        chat = [question, answer, Message("user", text, (CAT,))]
        assert to_body(dify_request.to_prompt(chat))["query"].startswith(start)


OWN = {"user": "Usuário:", "assistant": "Assistente:", "history_heading": "A conversa até agora:"}
WORDS = [
    pytest.param("zh", ASKED_AGAIN, "此前的对话：\n\n用户：What", id="always Chinese"),
    pytest.param("en", BIRD, "The conversation so far:\n\nUser: What", id="always English"),
    pytest.param("auto", BIRD, "此前的对话：\n\n用户：What", id="of the question"),
    pytest.param(OWN, BIRD, "A conversa até agora:\n\nUsuário: What", id="the operator's own"),
]


@pytest.mark.parametrize(("value", "question", "start"), WORDS)
def test_the_words_of_the_frame_are_the_operator_s_choice(
    value: Any, question: Message, start: str
) -> None:
    settings = {"history_words": parse_history_words(value, "x")}
    assert asked(ASKED, ANSWERED, question, settings=settings)["query"].startswith(start)


def test_a_tool_may_be_named_in_the_operator_s_own_words() -> None:
    words = parse_history_words({"tool": "Resultado de {name}:"}, "x")
    messages = [ASKED, CALLED, RESULT]
    assert dify_request.to_prompt(messages, words).turn == "Resultado de add: 4"


# --- apps without a memory ------------------------------------------------------------------------

FORM = (FormField("query", "paragraph", True),)
WITHOUT_MEMORY = [App("workflow", form=FORM), App("completion", form=FORM)]


@pytest.mark.parametrize("app", WITHOUT_MEMORY, ids=lambda app: app.mode)
def test_an_app_without_memory_gets_the_turn_alone(app: App) -> None:
    assert asked(*CHAT, app=app)["inputs"] == {"query": "Be brief.\n\nAnd a bird?"}


@pytest.mark.parametrize("app", WITHOUT_MEMORY, ids=lambda app: app.mode)
def test_an_app_without_memory_gets_the_history_where_the_operator_says_so(app: App) -> None:
    told = asked(*CHAT, app=app, settings={"history": "query"})["inputs"]
    assert told == {"query": f"Be brief.\n\n{FRAMED}"}
    inputs = asked(*CHAT, app=app, settings={"history": "input:before"})["inputs"]
    assert inputs == {"query": "Be brief.\n\nAnd a bird?", "before": TRANSCRIPT}


@pytest.mark.parametrize("app", WITHOUT_MEMORY, ids=lambda app: app.mode)
def test_an_app_without_memory_gets_the_history_that_it_is_asked_about(app: App) -> None:
    for last in ([], [TITLE]):
        query = asked(ASKED, ANSWERED, *last, app=app)["inputs"]["query"]
        assert query.startswith(f"The conversation so far:\n\n{TRANSCRIPT}\n\nThe user now says:")
        drop = asked(ASKED, ANSWERED, *last, app=app, settings={"history": "drop"})
        assert TRANSCRIPT not in drop["inputs"]["query"]


@pytest.mark.parametrize("max_length", range(60, 150, 3))
def test_of_the_history_goes_into_an_input_what_fits(max_length: int) -> None:
    form = (FormField("query", "paragraph", True, max_length=max_length),)
    settings = {"history": "query", "history_words": parse_history_words("zh", "x")}
    query = asked(*CHAT, app=App("workflow", form=form), settings=settings)["inputs"]["query"]
    assert len(query) <= max_length
    whole = f"Be brief.\n\n{FRAMED_IN_CHINESE}"
    assert query == whole if len(whole) <= max_length else query.endswith("And a bird?")


FRAMED_IN_CHINESE = (
    "此前的对话：\n\n用户：What is a fish?\n\n助手：An animal.\n\n用户现在说：\n\nAnd a bird?"
)


def test_of_the_history_goes_into_an_input_of_its_own_what_fits() -> None:
    form = (FormField("before", "text-input", False, max_length=12),)
    settings = {"history": "input:before"}
    body = asked(*CHAT, app=App("advanced-chat", form=form), settings=settings)
    assert body["inputs"] == {"before": TRANSCRIPT[-12:]}
