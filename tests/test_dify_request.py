from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.chat import dify_request
from opendify.chat.dify_request import MAX_HISTORY_CHARACTERS, Prompt
from opendify.chat.form_inputs import TemplateVars
from opendify.config.models import Model
from opendify.dify.apps import App
from opendify.files.attachments import PreparedFiles
from opendify.protocols.base import Message
from tests.support.bodies import to_prompt as parse_prompt

CONTINUE = "Please continue your last answer exactly where it stopped."
SYSTEM = Message("system", "Be brief.")
ASKED = Message("user", "What is a fish?")
ANSWERED = Message("assistant", "An animal.")
ASKED_AGAIN = Message("user", "And a bird?")
CHAT = [SYSTEM, ASKED, ANSWERED, ASKED_AGAIN]

DIALOGUES = [
    pytest.param([ASKED], Prompt("", (), "What is a fish?"), id="one question"),
    pytest.param(CHAT, Prompt("Be brief.", (ASKED, ANSWERED), "And a bird?"), id="a chat"),
    pytest.param(
        [SYSTEM, ASKED, Message("developer", "Be kind.")],
        Prompt("Be brief.\n\nBe kind.", (), "What is a fish?"),
        id="system and developer, wherever they stand",
    ),
    pytest.param(
        [Message("system", ""), ASKED], Prompt("", (), "What is a fish?"), id="an empty system"
    ),
    pytest.param(
        [ASKED, ANSWERED], Prompt("", (ASKED, ANSWERED), CONTINUE), id="continue your answer"
    ),
    pytest.param(
        [ASKED, Message("tool", "4", name="add")],
        Prompt("", (ASKED,), "Tool result (add): 4"),
        id="the result of a tool",
    ),
    pytest.param(
        [ASKED, Message("function", "4")],
        Prompt("", (ASKED,), "Tool result (tool): 4"),
        id="the result of a function without a name",
    ),
    pytest.param([Message("user", " ")], Prompt("", (), ""), id="only a file"),
    pytest.param([Message("user", " x ")], Prompt("", (), " x "), id="blanks around the text"),
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
    **fields: Any,
) -> dict[str, Any]:
    prompt = parse_prompt({"model": "tiny", "messages": raw(*messages), **fields})
    model = Model("tiny", "app-x", "http://dify/v1", **(settings or {}))
    dialogue = dify_request.to_prompt(prompt.messages)
    facts = TemplateVars("u", system=dialogue.system)
    question = dify_request.to_dify_request(
        prompt.options,
        dialogue,
        model,
        App("chat"),
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
    body = asked(*history, ASKED_AGAIN)
    position = 0
    for message in history:
        if message.text.replace("\0", "").strip():
            text = message.text.replace("\0", "")
            position = body["query"].index(f": {text}", position) + len(text)
    assert body["query"].endswith("And a bird?")


def test_of_a_long_history_the_oldest_messages_go() -> None:
    history = [Message("user", f"{number} " + "x" * 1000) for number in range(100)]
    query = asked(*history, ASKED_AGAIN)["query"]
    assert "User: 99 x" in query
    assert "User: 69 x" in query
    assert "User: 1 x" not in query
    assert len(query) < MAX_HISTORY_CHARACTERS + 500


def test_of_one_long_message_the_end_stays() -> None:
    long = Message("user", "old " + "x" * 2 * MAX_HISTORY_CHARACTERS + " new")
    query = asked(long, ANSWERED, ASKED_AGAIN)["query"]
    assert "An animal." in query
    assert len(query) < MAX_HISTORY_CHARACTERS + 500
    alone = asked(long, ASKED_AGAIN)["query"]
    assert " new" in alone
    assert "old" not in alone
