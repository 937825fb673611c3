"""What a request of the Messages API means, and which ones are refused."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.errors import InvalidRequest, RequestTooLarge
from opendify.protocols.anthropic.message_request import (
    IGNORED_FIELDS,
    MessageRequest,
    parse_count_request,
    parse_message_request,
)
from opendify.protocols.anthropic.token_count import token_count
from opendify.protocols.base import Attachment, Message
from opendify.protocols.json_object import parse_object
from opendify.protocols.turns import split_turn
from tests.support.bodies import to_object

PNG = base64.b64encode(b"\x89PNG").decode()
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}


def parse(**fields: Any) -> MessageRequest:
    body = {"model": "tiny", "max_tokens": 100, "messages": [user("Hi")], **fields}
    return parse_message_request(to_object(body), "req-1")


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": blocks[0] if isinstance(blocks[0], str) else list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return user(*blocks) | {"role": "assistant"}


def text(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def messages(*items: Any, **fields: Any) -> tuple[Message, ...]:
    return parse(messages=list(items), **fields).prompt.messages


def test_the_smallest_request() -> None:
    parsed = parse()
    assert parsed.prompt.model == "tiny"
    assert parsed.prompt.messages == (Message("user", "Hi"),)
    assert not parsed.prompt.stream
    assert not parsed.shows_thinking
    assert parsed.ignored == ("max_tokens",)


def test_what_is_obeyed() -> None:
    prompt = parse(
        stream=True,
        stop_sequences=["END", ""],
        metadata={"user_id": "ann", "chat_id": "c-1", "task": "title_generation"},
        inputs={"city": "Rome"},
        tools=[{"name": "x", "input_schema": {}}],
    ).prompt
    assert (prompt.stream, prompt.stop) == (True, ("END",))
    assert (prompt.fallback_user, prompt.chat_id) == ("ann", "c-1")
    assert (prompt.task, prompt.has_tools) == ("title_generation", True)
    assert prompt.options.inputs == {"city": "Rome"}


@pytest.mark.parametrize(
    ("fields", "chat"),
    [
        ({"chat_id": "a"}, "a"),
        ({"session_id": "b"}, "b"),
        ({"metadata": {"chat_id": 3}, "chat_id": "a"}, "3"),
        ({}, ""),
    ],
)
def test_a_chat_is_named_as_in_other_requests(fields: dict[str, Any], chat: str) -> None:
    assert parse(**fields).prompt.chat_id == chat


@pytest.mark.parametrize(
    ("thinking", "shown"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive"}, True),
        ({"type": "adaptive", "display": "omitted"}, False),
        ({"type": "disabled"}, False),
        (None, False),
    ],
)
def test_thinking_is_shown_to_those_who_ask_for_it(thinking: Any, shown: bool) -> None:
    assert parse(thinking=thinking).shows_thinking is shown


def test_fields_without_effect_are_named() -> None:
    assert parse(
        temperature=0.5,
        top_k=5,
        tools=[{"name": "x", "input_schema": {}}],
        output_config={"effort": "high"},
        context_management={"edits": [{"type": "x"}]},
        invented=1,
    ).ignored == (
        "max_tokens",
        "temperature",
        "top_k",
        "tools",
        "output_config",
        "context_management",
        "invented",
    )


def test_defaults_and_nulls_are_not_named() -> None:
    defaults = {"temperature": 1, "tools": [], "tool_choice": {"type": "auto"}, "metadata": {}}
    nulls = dict.fromkeys((*IGNORED_FIELDS[1:], "thread", "stop_sequences", "system"))
    assert parse(**nulls | defaults).ignored == ("max_tokens",)


def test_a_system_prompt_is_text_or_blocks() -> None:
    blocks = [text("Be short.", cache_control={"type": "ephemeral"}), text("In English.")]
    for system, said in (("Be short.", "Be short."), (blocks, "Be short.\nIn English.")):
        assert messages(user("Hi"), system=system)[0] == Message("system", said)


def test_a_system_message_after_the_users_is_no_question() -> None:
    first = messages(
        user(text("<system-reminder>"), text("Hi")), {"role": "system", "content": "X"}
    )
    assert [one.text for one in split_turn(first).asked] == ["<system-reminder>\nHi"]
    assert [one.text for one in split_turn(first).instructions] == ["X"]


IMAGE = "messages[0].content[0].source"


@pytest.mark.parametrize(
    ("block", "file"),
    [
        pytest.param(
            {"type": "image", "source": {"type": "base64", "media_type": "image/PNG", "data": PNG}},
            Attachment("image", data=PNG, media_type="image/png"),
            id="an image in base64",
        ),
        pytest.param(
            {"type": "image", "source": {"type": "url", "url": "https://e.com/a.png"}},
            Attachment("image", url="https://e.com/a.png"),
            id="the address of an image",
        ),
        pytest.param(
            {"type": "document", "title": "A.pdf", "source": {"type": "base64", "data": PNG}},
            Attachment("file", data=PNG, media_type="application/pdf", name="A.pdf"),
            id="a document",
        ),
        pytest.param(
            {"type": "document", "source": {"type": "url", "url": "http://e.com/a"}},
            Attachment("file", url="http://e.com/a"),
            id="the address of a document",
        ),
        pytest.param(
            {"type": "document", "source": {"type": "text", "data": "你"}},
            Attachment("file", data="5L2g", media_type="text/plain"),
            id="a document of text",
        ),
        pytest.param(
            {"type": "document", "source": {"type": "file", "file_id": "f-1"}},
            Attachment("file", file_id="f-1"),
            id="an earlier upload",
        ),
    ],
)
def test_files_are_those_of_the_turn(block: dict[str, Any], file: Attachment) -> None:
    (message,) = messages(user(block, text("What is it?")))
    assert message == Message("user", "What is it?", (file,))
    assert message.attachments[0].path == IMAGE


def test_documents_made_of_blocks_and_search_results_are_text() -> None:
    document = {"type": "document", "source": {"type": "content", "content": [text("One."), 7]}}
    found = {"type": "search_result", "title": "T", "source": "S", "content": [text("Two.")]}
    assert messages(user(document, found))[0].text == "One.\nT\nS\nTwo."


def test_calls_and_results_of_tools_are_text() -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("3 °C")]}
    failed = {"type": "tool_result", "tool_use_id": "?", "content": "No.", "is_error": True}
    chat = messages(
        user("Weather?"), assistant(text("I look."), CALL), user(result, failed, text("So?"))
    )
    assert chat == (
        Message("user", "Weather?"),
        Message("assistant", 'I look.\n[weather({"city": "Oslo"})]'),
        Message("tool", "3 °C", name="weather"),
        Message("tool", "Error:\nNo."),
        Message("user", "So?"),
    )
    assert [one.role for one in split_turn(chat).asked] == ["tool", "tool", "user"]


def test_a_result_without_words_is_a_turn_of_its_own() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [image]}
    *_, last = messages(user("Look."), assistant(CALL), user(result))
    assert (last.role, last.name, last.attachments[0].data) == ("tool", "weather", PNG)


def test_thoughts_and_unknown_blocks_of_answers_are_passed_over() -> None:
    thoughts = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    search = {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {}}
    answer = assistant(thoughts, {"type": "redacted_thinking", "data": "x"}, search, text("Yes."))
    assert messages(user("Hi"), answer, user("And?"))[1] == Message("assistant", "Yes.")


def test_an_earlier_message_may_hold_what_cannot_be_read() -> None:
    unknown = user({"type": "container_upload", "file_id": "f"}, text("See."))
    first, *_ = messages(unknown, assistant("Yes."), user("And?"))
    assert first == Message("user", "See.", unusable=("file",))


WRONG = [
    pytest.param({"model": ""}, "model", id="no model"),
    pytest.param({"max_tokens": None}, "max_tokens", id="no limit"),
    pytest.param({"max_tokens": 0}, "max_tokens", id="a limit of nothing"),
    pytest.param({"max_tokens": "9"}, "max_tokens", id="a limit in words"),
    pytest.param({"max_tokens": True}, "max_tokens", id="a limit that is true"),
    pytest.param({"messages": []}, "messages", id="no messages"),
    pytest.param({"messages": "Hi"}, "messages", id="a text for messages"),
    pytest.param({"messages": [7]}, "messages[0]", id="a number for a message"),
    pytest.param({"messages": [{"role": "tool"}]}, "messages[0]", id="a role of OpenAI's"),
    pytest.param({"messages": [{"role": "user"}]}, "messages[0].content", id="no content"),
    pytest.param({"messages": [user(text(""))]}, "messages", id="an empty question"),
    pytest.param({"messages": [assistant("Hi")]}, "messages", id="no question"),
    pytest.param({"messages": [user({"type": "x"})]}, "messages[0].content[0]", id="a block"),
    pytest.param({"messages": [user(7, 8)]}, "messages[0].content[0]", id="a number for a block"),
    pytest.param(
        {"messages": [user({"type": "text"})]}, "messages[0].content[0]", id="text without text"
    ),
    pytest.param({"messages": [user({"type": "image"})]}, IMAGE, id="an image without source"),
    pytest.param(
        {"messages": [user({"type": "image", "source": {"type": "url", "url": "file:///a"}})]},
        IMAGE,
        id="an address on a disk",
    ),
    pytest.param({"system": 7}, "system", id="a number for a system prompt"),
    pytest.param({"system": [{"type": "x"}]}, "system[0]", id="a block in a system prompt"),
    pytest.param({"stream": "yes"}, "stream", id="a text for stream"),
    pytest.param({"stop_sequences": [1]}, "stop_sequences", id="a number for a sequence"),
    pytest.param({"metadata": "ann"}, "metadata", id="a text for metadata"),
    pytest.param({"thinking": True}, "thinking", id="thinking that is true"),
    pytest.param({"tool_choice": {"type": "any"}}, "tool_choice", id="any tool"),
    pytest.param({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice", id="one tool"),
    pytest.param({"tool_choice": "any"}, "tool_choice", id="OpenAI's form of a choice"),
    pytest.param({"thread": {"type": "create"}}, "thread", id="a thread"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_a_wrong_request_is_refused_and_names_its_field(fields: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert f"'{param}" in caught.value.message or "last message" in caught.value.message


def test_a_thread_has_the_code_that_makes_sdks_send_everything() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(thread={"type": "continue", "previous_message_id": "msg_1"})
    assert caught.value.code == "thread_unsupported_request"


def test_more_text_than_is_allowed_is_refused() -> None:
    body = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"%s"}]}' % (b"x" * 99)
    with pytest.raises(RequestTooLarge):
        parse_message_request(parse_object(body, 80), "r")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "Hi", "text", "image"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "source", "content", "data", "url", "input", "id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
BLOCKS = st.dictionaries(st.sampled_from(["text", "source", "content", "title"]), JSON)
TYPED = st.builds(
    lambda block, kind: block | {"type": kind},
    BLOCKS,
    st.sampled_from(["text", "image", "document", "tool_use", "tool_result", "search_result", "x"]),
)
MESSAGES = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant", "system", "x"]),
    JSON | st.lists(TYPED, max_size=3),
)


@given(
    st.lists(MESSAGES, max_size=4) | JSON,
    st.dictionaries(st.sampled_from([*IGNORED_FIELDS, "system", "metadata", "thinking"]), JSON),
)
def test_any_json_is_a_request_or_refused(sent: Any, fields: dict[str, Any]) -> None:
    try:
        assert isinstance(parse(messages=sent, **fields), MessageRequest)
    except InvalidRequest as exc:
        assert exc.param


def count(**fields: Any) -> int:
    body = {"model": "tiny", "messages": [user("Hi")], **fields}
    answer = token_count(parse_count_request(to_object(body)))
    assert answer["is_estimate"] is True
    return int(answer["input_tokens"])


def test_tokens_are_estimated_from_everything_that_is_sent() -> None:
    assert count() == 5
    assert count(messages=[user("x" * 400)]) == 104
    assert count(messages=[user("你" * 100)]) == 104
    assert count(system="x" * 400) == 109
    assert count(tools=[{"name": "x" * 400}]) > 100
    image = {"type": "image", "source": {"type": "url", "url": "https://e.com/a.png"}}
    assert count(messages=[user(image)]) == 1604


def test_a_count_needs_no_limit_but_messages() -> None:
    with pytest.raises(InvalidRequest):
        count(messages=None)
