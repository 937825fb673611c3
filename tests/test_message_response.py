"""The objects of the Messages API that are answered."""

import pytest

from opendify import errors
from opendify.dify.events import Ids, Usage
from opendify.protocols.anthropic import message
from opendify.protocols.responses import ResponseMeta, WholeResponse
from opendify.rendering.deltas import Completion
from tests.support import anthropic_events
from tests.test_docs import all_errors

META = ResponseMeta("m-1", 2, "tiny", Ids(conversation_id="c-1"))


def whole(
    text: str = "Hi", reasoning: str = "", *, shows_thinking: bool = True, **ended: object
) -> dict[str, object]:
    completion = Completion(**ended)  # type: ignore[arg-type]
    response = WholeResponse(META, text, reasoning, completion)
    answer = message.whole_message(response, shows_thinking)
    anthropic_events.assert_message(answer)
    return answer


def test_a_whole_message() -> None:
    assert whole(usage=Usage(7, 5, 12)) == {
        "id": "msg_m-1",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 5},
        "dify": {"conversation_id": "c-1"},
    }


@pytest.mark.parametrize(
    ("reason", "sequence", "told"),
    [
        ("stop", "", ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("length", "", ("max_tokens", None)),
        ("content_filter", "", ("refusal", None)),
    ],
)
def test_why_an_answer_ended(reason: str, sequence: str, told: tuple[str, str | None]) -> None:
    answer = whole(finish_reason=reason, stop_sequence=sequence)
    assert (answer["stop_reason"], answer["stop_sequence"]) == told


def test_thinking_comes_first_and_is_signed() -> None:
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": message.SIGNATURE}
    assert whole(reasoning="Hm.")["content"] == [thinking, {"type": "text", "text": "Hi"}]
    hidden = whole(reasoning="Hm.", shows_thinking=False)["content"]
    assert hidden == [{"type": "text", "text": "Hi"}]


def test_every_error_has_anthropics_form() -> None:
    for kind in all_errors(errors.OpenDifyError):
        body = message.error_body(kind("What is wrong is told here."), "req-1")
        anthropic_events.assert_error(body)
        assert (body["error"]["type"] in ("api_error", "overloaded_error", "timeout_error")) == (
            kind.status >= 500
        ), kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidRequest, "invalid_request_error"),
        (errors.InvalidApiKey, "authentication_error"),
        (errors.OriginNotAllowed, "permission_error"),
        (errors.ModelNotFound, "not_found_error"),
        (errors.RequestTooLarge, "request_too_large"),
        (errors.CallerRateLimited, "rate_limit_error"),
        (errors.Overloaded, "overloaded_error"),
        (errors.UpstreamTimeout, "timeout_error"),
        (errors.RunFailed, "api_error"),
    ],
)
def test_the_type_of_an_error(error: type[errors.OpenDifyError], kind: str) -> None:
    assert message.error_body(error("No."), "r")["error"]["type"] == kind


def test_an_error_names_its_field_and_a_thread_as_the_sdks_expect_it() -> None:
    error = errors.InvalidRequest("No.", param="system")
    assert message.error_body(error, "r")["error"]["details"] == {
        "error_code": "invalid_request",
        "param": "system",
    }
    error = errors.InvalidRequest("No.", param="thread", code=message.THREAD_UNSUPPORTED)
    assert message.error_body(error, "r")["error"]["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }


def test_a_list_of_models_is_one_page() -> None:
    models = [message.model("a", ""), message.model("b", "App b")]
    for one in models:
        anthropic_events.assert_model(one)
    assert [one["display_name"] for one in models] == ["a", "App b"]
    page = message.model_list(models)
    assert page == {"data": models, "has_more": False, "first_id": "a", "last_id": "b"}
    assert message.model_list([])["first_id"] is None
