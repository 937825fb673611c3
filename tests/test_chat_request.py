import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opendify.errors import InvalidRequest
from opendify.protocols.base import ChatPrompt, DifyOptions, Message
from opendify.protocols.openai.chat_request import IGNORED_FIELDS, ChatRequest
from opendify.protocols.turns import split_turn
from tests.support.bodies import to_request

HI = {"role": "user", "content": "Hi"}
SCHEMAS = Path(__file__).parent / "data" / "openai-chat-schemas.json"


def parsed(**fields: Any) -> ChatRequest:
    return to_request({"model": "tiny", "messages": [HI], **fields})


def test_the_smallest_request_has_all_defaults() -> None:
    prompt = ChatPrompt(
        model="tiny",
        messages=(Message("user", "Hi"),),
        stream=False,
        stop=(),
        user="",
        fallback_user="",
        chat_id="",
        has_tools=False,
        options=DifyOptions(),
    )
    assert parsed() == ChatRequest(prompt, include_usage=False, ignored=())


FIELDS = [
    pytest.param({"stream": True}, "stream", True, id="stream"),
    pytest.param({"stream": None}, "stream", False, id="stream null"),
    pytest.param(
        {"stream_options": {"include_usage": True}}, "include_usage", True, id="include_usage"
    ),
    pytest.param({"stream_options": {}}, "include_usage", False, id="no include_usage"),
    pytest.param({"stream_options": None}, "include_usage", False, id="stream_options null"),
    pytest.param({"user": "u"}, "user", "u", id="user"),
    pytest.param({"user": " u "}, "user", "u", id="user with blanks"),
    pytest.param({"user": 5}, "user", "5", id="user as a number"),
    pytest.param({"user": "a\0b"}, "user", "ab", id="user with NUL"),
    pytest.param({"user": None}, "user", "", id="user null"),
    pytest.param({"safety_identifier": "s"}, "fallback_user", "s", id="safety_identifier"),
    pytest.param({"metadata": {"user_id": 7}}, "fallback_user", "7", id="user in metadata"),
    pytest.param(
        {"safety_identifier": "s", "metadata": {"user_id": "m"}},
        "fallback_user",
        "m",
        id="metadata before safety_identifier",
    ),
    pytest.param({"metadata": {"a": "b"}}, "fallback_user", "", id="metadata"),
    pytest.param({"metadata": {"chat_id": "m"}}, "chat_id", "m", id="chat id in metadata"),
    pytest.param({"chat_id": "b"}, "chat_id", "b", id="chat id in the body"),
    pytest.param(
        {"chat_id": "b", "metadata": {"chat_id": "m"}}, "chat_id", "m", id="metadata before body"
    ),
    pytest.param({"n": 1}, "ignored", (), id="n of one"),
    pytest.param({"n": None}, "ignored", (), id="n null"),
    pytest.param({"tool_choice": "auto"}, "ignored", (), id="tool_choice auto"),
    pytest.param({"tool_choice": "none"}, "ignored", (), id="tool_choice none"),
    pytest.param({"tool_choice": {"type": "auto"}}, "ignored", (), id="tool_choice auto, spelt"),
    pytest.param(
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": []},
            }
        },
        "ignored",
        ("tool_choice",),
        id="tool_choice of allowed tools",
    ),
    pytest.param(
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
        "ignored",
        ("tool_choice",),
        id="tool_choice of allowed tools, flat",
    ),
    pytest.param({"function_call": "auto"}, "ignored", (), id="function_call"),
    pytest.param({"modalities": ["text"]}, "ignored", (), id="modalities text"),
    pytest.param({"temperature": 0}, "ignored", ("temperature",), id="a zero is a value"),
    pytest.param({"temperature": None}, "ignored", (), id="null is no value"),
    pytest.param({"tools": []}, "ignored", (), id="no tools"),
    pytest.param({"tools": []}, "has_tools", True, id="an empty list of tools"),
    pytest.param({"tools": None}, "has_tools", False, id="tools null"),
    pytest.param({"tools": [{"type": "function"}]}, "has_tools", True, id="tools"),
    pytest.param(
        {"top_p": 1.0, "logit_bias": {}, "response_format": {"type": "text"}},
        "ignored",
        (),
        id="what OpenAI does by itself",
    ),
    pytest.param(
        {"response_format": {"type": "json_object"}, "store": True, "logprobs": True},
        "ignored",
        ("logprobs", "response_format", "store"),
        id="what it does when asked",
    ),
    pytest.param(
        {"top_p": 0.5, "response_format": {"type": "json_schema", "json_schema": {"a": "b" * 300}}},
        "ignored",
        ("top_p", "response_format"),
        id="a long value",
    ),
    pytest.param({"my_own": 1, "mine": None}, "ignored", ("my_own",), id="an unknown name"),
    pytest.param(
        {
            "X-你": 1,
            "a\r\nX-Forged: 1": 1,
            "a, b": 1,
            "": 1,
            "x" * 41: 1,
            "\0": 1,
            "x" * 40: 1,
            "a.b-c_D1": 1,
        },
        "ignored",
        ("x" * 40, "a.b-c_D1"),
        id="names that do not go into a header",
    ),
    pytest.param(
        {f"n{n}": n for n in range(100)},
        "ignored",
        tuple(f"n{n}" for n in range(20)),
        id="more names than a header needs",
    ),
    pytest.param(
        {"my_own": 1, "max_tokens": 5, "temperature": 2},
        "ignored",
        ("temperature", "max_tokens", "my_own"),
        id="several, in a fixed order",
    ),
]


@pytest.mark.parametrize(("fields", "name", "value"), FIELDS)
def test_a_field_is_understood(fields: dict[str, Any], name: str, value: Any) -> None:
    request = parsed(**fields)
    assert getattr(request if hasattr(request, name) else request.prompt, name) == value


IMAGE = {"type": "image", "transfer_method": "remote_url", "url": "https://a.example/b.png"}
OPTIONS = [
    pytest.param({"conversation_id": "c"}, DifyOptions(conversation_id="c"), id="conversation_id"),
    pytest.param(
        {"metadata": {"conversation_id": "c"}}, DifyOptions(conversation_id="c"), id="in metadata"
    ),
    pytest.param(
        {"conversation_id": "b", "metadata": {"conversation_id": "m"}},
        DifyOptions(conversation_id="b"),
        id="the body before metadata",
    ),
    pytest.param({"inputs": {"a": 1}}, DifyOptions(inputs={"a": 1}), id="inputs"),
    pytest.param(
        {"inputs": {"a": 1}, "metadata": {"inputs": {"a": 2, "b": 3}}},
        DifyOptions(inputs={"a": 1, "b": 3}),
        id="inputs before those in metadata",
    ),
    pytest.param(
        {"metadata": {"inputs": '{"a": "1", "b": 2}', "inputs.b": "3", "inputs.c": "4"}},
        DifyOptions(inputs={"a": "1", "b": "3", "c": "4"}),
        id="inputs as OpenAI's metadata can hold them",
    ),
    pytest.param({"files": [IMAGE]}, DifyOptions(files=(IMAGE,)), id="files"),
    pytest.param({"files": []}, DifyOptions(), id="no files"),
    pytest.param({"auto_generate_name": True}, DifyOptions(auto_generate_name=True), id="a name"),
    pytest.param({"workflow_id": "w"}, DifyOptions(workflow_id="w"), id="workflow_id"),
    pytest.param({"trace_id": "t"}, DifyOptions(trace_id="t"), id="trace_id"),
]


@pytest.mark.parametrize(("fields", "options"), OPTIONS)
def test_the_fields_of_dify_pass_through(fields: dict[str, Any], options: DifyOptions) -> None:
    assert parsed(**fields).prompt.options == options


REFUSED = [
    pytest.param({"stop": ["x"] * 17}, "stop", id="seventeen stops"),
    pytest.param({"stop": "x" * 257}, "stop", id="a long stop"),
    pytest.param({"model": None}, "model", id="model null"),
    pytest.param({"model": ""}, "model", id="model empty"),
    pytest.param({"model": 5}, "model", id="model a number"),
    pytest.param({"model": ["tiny"]}, "model", id="model a list"),
    pytest.param({"messages": None}, "messages", id="messages null"),
    pytest.param({"messages": [{"role": "user"}] * 10_001}, "messages", id="endless messages"),
    pytest.param({"n": 2}, "n", id="two answers"),
    pytest.param({"n": 0}, "n", id="no answer"),
    pytest.param({"n": True}, "n", id="n true"),
    pytest.param({"n": "1"}, "n", id="n a string"),
    pytest.param({"tool_choice": "required"}, "tool_choice", id="a tool is required"),
    pytest.param(
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choice",
        id="a named tool",
    ),
    pytest.param(
        {"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice", id="custom"
    ),
    pytest.param(
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required"}}},
        "tool_choice",
        id="one of the allowed tools",
    ),
    pytest.param({"tool_choice": 5}, "tool_choice", id="tool_choice a number"),
    pytest.param({"function_call": {"name": "f"}}, "function_call", id="a named function"),
    pytest.param({"modalities": ["text", "audio"]}, "modalities", id="audio"),
    pytest.param({"stream": "true"}, "stream", id="stream a string"),
    pytest.param({"stream": 1}, "stream", id="stream a number"),
    pytest.param({"stream_options": True}, "stream_options", id="stream_options true"),
    pytest.param(
        {"stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
        id="include_usage a number",
    ),
    pytest.param({"user": ["u"]}, "user", id="user a list"),
    pytest.param({"user": True}, "user", id="user true"),
    pytest.param({"safety_identifier": {}}, "safety_identifier", id="safety_identifier an object"),
    pytest.param({"metadata": "m"}, "metadata", id="metadata a string"),
    pytest.param({"metadata": {"chat_id": []}}, "metadata.chat_id", id="a chat id that is a list"),
    pytest.param({"metadata": {"inputs": []}}, "metadata.inputs", id="inputs in metadata a list"),
    pytest.param({"chat_id": {}}, "chat_id", id="chat_id an object"),
    pytest.param({"inputs": []}, "inputs", id="inputs a list"),
    pytest.param({"files": {}}, "files", id="files an object"),
    pytest.param({"files": ["f"]}, "files", id="a file that is a string"),
    pytest.param({"files": [{"type": "image"}]}, "files", id="a file that Dify would drop"),
    pytest.param(
        {"metadata": {"inputs": '{"a":' + "[" * 120 + "]" * 120 + "}"}},
        "metadata.inputs",
        id="inputs that are deep, as text",
    ),
    pytest.param(
        {"metadata": {"inputs": '{"a":' + "[" * 940 + "]" * 940 + "}"}},
        "metadata.inputs",
        id="deeper",
    ),
    pytest.param(
        {"metadata": {"inputs": '{"a":[' + "[]," * 200_000 + "0]}"}},
        "metadata.inputs",
        id="inputs that are many, as text",
    ),
    pytest.param(
        {"metadata": {"inputs": '{"a":1e999}'}}, "metadata.inputs", id="an endless number, as text"
    ),
    pytest.param({"metadata": {"inputs": "{"}}, "metadata.inputs", id="inputs that are no JSON"),
    pytest.param({"metadata": {"inputs": "[]"}}, "metadata.inputs", id="inputs that are a list"),
    pytest.param({"workflow_id": "../../messages?a="}, "workflow_id", id="a way out of a path"),
    pytest.param({"conversation_id": ".."}, "conversation_id", id="a conversation that is a path"),
    pytest.param(
        {"metadata": {"conversation_id": "a/b"}}, "metadata.conversation_id", id="one in metadata"
    ),
    pytest.param({"trace_id": "t" * 129}, "trace_id", id="a trace that is too long"),
    pytest.param({"conversation_id": []}, "conversation_id", id="conversation_id a list"),
    pytest.param({"auto_generate_name": "no"}, "auto_generate_name", id="a name that is a string"),
    pytest.param({"workflow_id": {}}, "workflow_id", id="workflow_id an object"),
    pytest.param({"trace_id": []}, "trace_id", id="trace_id a list"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_would_make_the_answer_wrong_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**fields)
    assert caught.value.param == param
    assert f"'{param}" in caught.value.message
    assert caught.value.message.endswith(".")


@pytest.mark.parametrize("body", [None, True, 5, 1.5, "x", [], [{}]], ids=repr)
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(InvalidRequest):
        to_request(body)


def test_a_model_or_messages_that_are_absent_are_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_request({"messages": [HI]})
    assert caught.value.param == "model"
    with pytest.raises(InvalidRequest) as caught:
        to_request({"model": "tiny"})
    assert caught.value.param == "messages"


OBEYED = {
    "model",
    "messages",
    "stream",
    "stream_options",
    "stop",
    "n",
    "user",
    "safety_identifier",
    "metadata",
}


def properties(schema: Any, all_schemas: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        return properties(all_schemas[schema["$ref"].rpartition("/")[2]], all_schemas)
    found = set(schema.get("properties", {}))
    return found.union(*(properties(part, all_schemas) for part in schema.get("allOf", [])))


def test_every_field_of_openai_is_obeyed_or_named_as_ignored() -> None:
    all_schemas = json.loads(SCHEMAS.read_text())["components"]["schemas"]
    fields = properties(all_schemas["CreateChatCompletionRequest"], all_schemas)
    assert len(fields) > 30
    assert fields - OBEYED <= set(IGNORED_FIELDS)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from([*IGNORED_FIELDS, *OBEYED, *DifyOptions.__dataclass_fields__, "chat_id"])
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio", "file", "refusal"])},
    optional={
        "text": JSON_VALUES,
        "image_url": JSON_VALUES | st.fixed_dictionaries({"url": JSON_VALUES}),
        "input_audio": JSON_VALUES | st.fixed_dictionaries({"data": JSON_VALUES}),
        "file": JSON_VALUES | st.fixed_dictionaries({"file_data": JSON_VALUES}),
    },
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | JSON_VALUES},
    optional={
        "content": st.text() | st.lists(PARTS | JSON_VALUES, max_size=3) | JSON_VALUES,
        "name": JSON_VALUES,
    },
)


@given(body=JSON_VALUES)
def test_any_json_value_is_a_request_or_an_invalid_request(body: Any) -> None:
    try:
        assert isinstance(to_request(body), ChatRequest)
    except InvalidRequest as exc:
        assert exc.message


@example(fields={}, messages=[{"role": "tool"}])
@example(fields={}, messages=[{"role": "system", "content": "Hi"}])
@given(
    fields=st.dictionaries(NAMES, JSON_VALUES),
    messages=st.lists(MESSAGES, max_size=3) | JSON_VALUES,
)
def test_any_value_of_any_field_is_a_request_or_an_invalid_request(
    fields: dict[str, Any], messages: Any
) -> None:
    try:
        request = to_request({"model": "tiny", **fields, "messages": messages})
    except InvalidRequest as exc:
        assert exc.message
        return
    assert isinstance(request, ChatRequest)
    assert set(request.ignored) <= {name for name, value in fields.items() if value is not None}
    turn = split_turn(request.prompt.messages)
    assert turn.asked or turn.is_continuation
