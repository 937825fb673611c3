from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.errors import InvalidRequest
from opendify.protocols.base import ChatPrompt, Message
from opendify.protocols.openai.completion_request import (
    IGNORED_FIELDS,
    CompletionRequest,
    parse_completion_request,
)
from tests.support.bodies import to_object


def parsed(**fields: Any) -> CompletionRequest:
    return parse_completion_request(to_object({"model": "tiny", "prompt": "Hi", **fields}))


def test_the_prompt_is_one_message_of_the_user() -> None:
    prompt = ChatPrompt(model="tiny", messages=(Message("user", "Hi"),))
    assert parsed() == CompletionRequest(prompt, echo="", include_usage=False, ignored=())


FIELDS = [
    pytest.param({"prompt": ["Hi"]}, "messages", (Message("user", "Hi"),), id="a list of one text"),
    pytest.param({"prompt": "a\0b\n"}, "messages", (Message("user", "ab\n"),), id="NUL"),
    pytest.param({"stream": True}, "stream", True, id="stream"),
    pytest.param({"stop": "\nuser:"}, "stop", ("\nuser:",), id="stop"),
    pytest.param({"stop": ["a", "b"]}, "stop", ("a", "b"), id="several stops"),
    pytest.param({"user": "u"}, "user", "u", id="user"),
    pytest.param({"metadata": {"chat_id": "c"}}, "chat_id", "c", id="chat id in metadata"),
    pytest.param({"session_id": "c"}, "chat_id", "c", id="chat id in the body"),
    pytest.param({"echo": True}, "echo", "Hi", id="echo"),
    pytest.param({"echo": False}, "echo", "", id="no echo"),
    pytest.param({"suffix": ""}, "ignored", (), id="an empty suffix"),
    pytest.param({"stream_options": {"include_usage": True}}, "include_usage", True, id="usage"),
    pytest.param(
        {"n": 1, "logprobs": None, "seed": None, "frequency_penalty": 0, "best_of": 1},
        "ignored",
        (),
        id="what LangChain sends",
    ),
    pytest.param(
        {"logprobs": 0, "best_of": 3, "max_tokens": 256, "top_p": 1.0, "mine": 1},
        "ignored",
        ("logprobs", "max_tokens", "best_of", "mine"),
        id="what has no effect",
    ),
]


@pytest.mark.parametrize(("fields", "name", "value"), FIELDS)
def test_a_field_is_read(fields: dict[str, Any], name: str, value: Any) -> None:
    request = parsed(**fields)
    assert getattr(request if hasattr(request, name) else request.prompt, name) == value


WRONG = [
    pytest.param({"model": None}, "model", "GET /v1/models", id="no model"),
    pytest.param({"prompt": None}, "prompt", "must be a text", id="no prompt"),
    pytest.param({"prompt": []}, "prompt", "must be a text", id="an empty list"),
    pytest.param({"prompt": [1, 2]}, "prompt", "tokens cannot be read", id="tokens"),
    pytest.param({"prompt": [[1, 2]]}, "prompt", "tokens cannot be read", id="lists of tokens"),
    pytest.param({"prompt": {"a": 1}}, "prompt", "must be a text", id="an object"),
    pytest.param({"prompt": ["a", "b"]}, "prompt", "a request for each", id="two texts"),
    pytest.param({"prompt": " \0\n"}, "prompt", "is empty", id="blanks"),
    pytest.param({"suffix": "}"}, "suffix", "another provider for code completion", id="suffix"),
    pytest.param({"n": 2}, "n", "must be 1", id="two answers"),
    pytest.param({"echo": "yes"}, "echo", "true or false", id="echo in words"),
    pytest.param({"stream": 1}, "stream", "true or false", id="stream as a number"),
    pytest.param({"stop": 1}, "stop", "a string or an array", id="stop as a number"),
]


@pytest.mark.parametrize(("fields", "param", "message"), WRONG)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**fields)
    assert caught.value.param == param
    assert message in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(["prompt", "echo", "suffix", "stop", "n", "stream", "user", "metadata"])


@given(st.dictionaries(NAMES | st.sampled_from(IGNORED_FIELDS), JSON))
def test_any_json_is_a_request_or_an_error_that_names_its_field(fields: dict[str, Any]) -> None:
    try:
        parsed(**fields)
    except InvalidRequest as exc:
        assert exc.param
        assert exc.param.partition(".")[0] in {*fields, "prompt"}
