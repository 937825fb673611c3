"""The rules of an answer, through the whole application: cut, replaced, failed, silent, paused."""

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.support.fake_dify import (
    CLOSE,
    FOREVER,
    PING,
    Chat,
    FakeDify,
    Request,
    Steps,
    event,
    refused,
    replayed,
    streamed,
)
from tests.support.streams import Streamed, read_stream

FILES = {
    "file_upload": {
        "enabled": True,
        "allowed_file_types": ["image"],
        "allowed_file_upload_methods": ["local_file"],
        "number_limits": 3,
    }
}
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
NAMES = {"task_id": "t", "workflow_run_id": "r"}
STARTED = event(event="workflow_started", data={"id": "r"}, **NAMES)


def test_a_ping_that_a_gateway_writes_out_is_no_event(api: FlaskClient, dify: FakeDify) -> None:
    ping = b"event: ping\ndata:\n\nevent: ping\ndata: \n\n"
    dify.answer = lambda r: streamed(ping, Chat().text("a"), ping, Chat().end())
    assert both(api)[0] == "a"


def finished(status: str, **data: Any) -> bytes:
    return event(event="workflow_finished", data={"status": status, **data}, **NAMES)


def chunk(text: str) -> bytes:
    return event(event="text_chunk", data={"text": text}, **NAMES)


def app(mode: str, run: Steps, **parameters: Any) -> Callable[[Request], Steps]:
    """A Dify with one app, which answers every run with these steps."""

    def answer(request: Request) -> Steps:
        path = request.path.partition("?")[0].removeprefix("/v1")
        if path == "/info":
            return refused(200, {"mode": mode, "name": "App"})
        if path == "/parameters":
            return refused(200, {"user_input_form": [], **parameters})
        return run

    return answer


@pytest.fixture
def workflow(dify: FakeDify) -> Callable[..., None]:
    """Makes the Dify one with a workflow that runs like this."""
    dify.tells_of_its_app = True
    form = [{"paragraph": {"variable": "query", "required": True}}]

    def make(*steps: Any) -> None:
        dify.answer = app("workflow", streamed(*steps), user_input_form=form)

    return make


def ask(api: FlaskClient, stream: bool = False, **more: Any) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    return api.post("/v1/chat/completions", json=body | more, buffered=True)


def both(api: FlaskClient, **more: Any) -> tuple[str, Streamed]:
    """The text of the whole answer, and the stream."""
    whole = ask(api, **more)
    assert whole.status_code == 200, whole.json
    response = ask(api, stream=True, **more)
    assert response.status_code == 200, response.json
    return whole.json["choices"][0]["message"]["content"], read_stream(response.data)


def stops_of(dify: FakeDify, count: int) -> list[Request]:
    until = time.monotonic() + 10
    while len(dify.stopped()) < count:
        assert time.monotonic() < until, "no stop was sent"
        time.sleep(0.02)
    return dify.stopped()


def test_a_stop_sequence_ends_the_answer_and_stops_the_run(
    dify: FakeDify, api: FlaskClient
) -> None:
    chat = Chat()
    dify.answer = lambda r: streamed(chat.text("One "), chat.text("ST"), chat.text("OP!"), FOREVER)
    text, stream = both(api, stop=["STOP"], stream_options={"include_usage": True})
    assert text == stream.text == "One "
    assert stream.finish_reason == "stop"
    for stop in stops_of(dify, 2):
        assert stop.path == f"/v1/chat-messages/{chat.task_id}/stop"
        assert stop.json == {"user": "default_user"}


def test_what_is_left_of_a_stop_sequence_at_the_end_is_said(
    dify: FakeDify, api: FlaskClient
) -> None:
    dify.answer = lambda r: Chat().says("One ", "STO")
    text, stream = both(api, stop="STOP")
    assert text == stream.text == "One STO"
    assert not dify.stopped()


def test_a_replaced_answer(dify: FakeDify, api: FlaskClient) -> None:
    chat = Chat()
    bad = [chat.text("<think>bad</think>Bad "), chat.event("message_replace", answer="Sorry.")]
    dify.answer = lambda r: streamed(*bad, chat.end())
    whole = ask(api).json["choices"][0]
    assert whole["message"]["content"] == "Sorry."
    assert "reasoning_content" not in whole["message"]
    stream = read_stream(ask(api, stream=True).data)
    assert stream.text == "Bad \n\nSorry."
    assert whole["finish_reason"] == stream.finish_reason == "content_filter"


def test_an_answer_that_is_replaced_at_once_is_rendered_once(
    dify: FakeDify, api: FlaskClient
) -> None:
    chat = Chat()
    dify.answer = lambda r: streamed(chat.event("message_replace", answer="Sorry."), chat.end())
    text, stream = both(api)
    assert text == stream.text == "Sorry."


def test_a_silent_dify_is_noticed_and_a_pinging_one_is_waited_for(
    dify: FakeDify, api: FlaskClient
) -> None:
    dify.answer = lambda r: streamed(PING, FOREVER)
    silent = ask(api)
    assert (silent.status_code, silent.json["error"]["code"]) == (504, "upstream_timeout")
    assert silent.headers["x-should-retry"] == "false"
    pings = [step for _ in range(3) for step in (PING, 0.9)]  # longer than the patience of 2 s
    dify.answer = lambda r: streamed(*pings, Chat().text("Late"), Chat().end())
    assert ask(api).json["choices"][0]["message"]["content"] == "Late"


def test_a_workflow_that_fails_within_its_200(
    workflow: Callable[..., None], api: FlaskClient
) -> None:
    workflow(STARTED, chunk("Half"), finished("failed", error="[x] Rate Limit Error, slow down"))
    whole = ask(api)
    assert (whole.status_code, whole.json["error"]["code"]) == (429, "rate_limit_exceeded")
    stream = read_stream(ask(api, stream=True).data)
    assert (stream.text, stream.error) == ("Half", whole.json["error"])


def test_a_workflow_that_waits_for_a_person(
    workflow: Callable[..., None], dify: FakeDify, api: FlaskClient
) -> None:
    form = {"form_content": "Please review", "actions": [{"title": "Approve"}]}
    workflow(
        STARTED,
        event(event="human_input_required", data=form, **NAMES),
        event(event="workflow_paused", data={"status": "paused"}, **NAMES),
        FOREVER,
    )
    text, stream = both(api)
    expected = "Please review\n\n(Approve)\n\n(waiting for human input in Dify)"
    assert text == stream.text == expected
    assert stream.finish_reason == "stop"
    assert not dify.stopped()


def test_a_workflow_of_which_a_part_failed_is_marked(
    workflow: Callable[..., None], api: FlaskClient
) -> None:
    workflow(STARTED, finished("partial-succeeded", outputs={"text": "Half"}, total_tokens=9))
    whole = ask(api).json
    note = "(The run ended with errors in some of its steps.)"
    assert whole["choices"][0]["message"]["content"] == f"Half\n\n{note}"
    assert whole["dify"]["status"] == "partial-succeeded"
    assert whole["usage"] == {"prompt_tokens": 0, "completion_tokens": 9, "total_tokens": 9}


def test_a_run_that_only_outputs_tell_of_is_streamed_at_its_end(
    workflow: Callable[..., None], api: FlaskClient
) -> None:
    workflow(STARTED, finished("succeeded", outputs={"猫": "<think>\nHm\n</think>\n\nMiau"}))
    text, stream = both(api)
    assert text == stream.text == "Miau"
    assert stream.reasoning == "Hm"


BUSY = "Too many requests. Please try again later."
REFUSALS = [
    (401, "unauthorized", "Access token is invalid", 502, "upstream_auth_error"),
    (403, "forbidden", "The app's API service has been disabled.", 502, "upstream_auth_error"),
    (400, "invalid_param", "Workflow not published", 502, "model_not_ready"),
    (400, "agent_not_published", "Agent has not been published", 502, "model_not_ready"),
    (400, "provider_quota_exceeded", "Your quota is used up", 429, "insufficient_quota"),
    (
        400,
        "invalid_param",
        "Too many requests. Please try again later.",
        429,
        "rate_limit_exceeded",
    ),
    (429, "too_many_requests", "Too many requests.", 429, "rate_limit_exceeded"),
    (400, "completion_request_error", "[x] maximum context length", 400, "context_length_exceeded"),
    (400, "completion_request_error", "[x] Connection Error", 502, "run_failed"),
    (400, "invalid_param", "city is required in input form", 400, "rejected_by_dify"),
    (404, "not_found", "Workflow not found with id: w", 400, "rejected_by_dify"),
    (403, "workflow_version_execution_not_allowed", "No.", 400, "rejected_by_dify"),
    (503, "", "", 503, "upstream_unavailable"),
    (504, "", "", 504, "upstream_timeout"),
]


@pytest.mark.parametrize("where", ["before", "in the stream", "after text"])
@pytest.mark.parametrize(("status", "dify_code", "message", "expected", "code"), REFUSALS)
def test_a_refusal_means_the_same_wherever_it_stands(
    where: str,
    status: int,
    dify_code: str,
    message: str,
    expected: int,
    code: str,
    dify: FakeDify,
    api: FlaskClient,
) -> None:
    body = {"code": dify_code, "message": message, "status": status}
    error = event(event="error", **body)  # Dify up to 1.8 leaves out the status of some
    steps = {
        "before": refused(status, body),
        "in the stream": streamed(PING, error, FOREVER),
        "after text": streamed(Chat().text("Half"), error, CLOSE),
    }[where]
    dify.answer = lambda r: steps
    whole = ask(api)
    assert (whole.status_code, whole.json["error"]["code"]) == (expected, code)
    assert not message or message[:20] in whole.json["error"]["message"]
    response = ask(api, stream=True)
    if where == "after text":
        stream = read_stream(response.data)
        assert (stream.text, stream.error) == ("Half", whole.json["error"])
    else:
        assert (response.status_code, response.json) == (expected, whole.json)


def test_an_app_that_became_another_is_asked_in_its_own_way(
    workflow: Callable[..., None], dify: FakeDify, api: FlaskClient
) -> None:
    dify.tells_of_its_app = True
    dify.answer = app("chat", Chat().says("Hello"))
    assert ask(api).status_code == 200
    changed = refused(400, {"code": "not_chat_app", "message": "m", "status": 400})
    workflow(STARTED, finished("succeeded", outputs={"text": "Done"}))
    dify.answers = [changed]
    assert ask(api).json["choices"][0]["message"]["content"] == "Done"


def failed(status: int, code: str, message: str) -> dict[str, Any]:
    return {"status": status, "code": code, "message": message}


ENDED = failed(
    400, "conversation_completed", "The conversation has ended. Please start a new conversation."
)
# The ways in which Dify tells that a conversation cannot be continued.
LOST: dict[str, Steps] = {
    "404": refused(404, failed(404, "not_found", "Conversation Not Exists.")),
    "404 within a stream": streamed(
        PING, event(event="error", **failed(404, "not_found", "Conversation Not Exists.")), FOREVER
    ),
    "ended": refused(400, ENDED),
    "ended within a stream": streamed(event(event="error", **ENDED)),
    "an agent that has asked a person": replayed("1.16.1/agent-ask2/turn_while_asking"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("way", LOST)
def test_a_conversation_that_dify_does_not_continue_is_replaced_with_the_history_sent(
    way: str, stream: bool, dify: FakeDify, api: FlaskClient
) -> None:
    chat: dict[str, Any] = {"chat_id": "c-1", "user": "u"}
    first = ask(api, **chat).json["choices"][0]["message"]
    again = {"role": "user", "content": "And now?"}
    chat["messages"] = [{"role": "user", "content": "Hi"}, first, again]
    dify.answers = [LOST[way], Chat("new").says("Again"), Chat("new").says("Once more")]
    assert said(ask(api, stream, **chat), stream) == "Again"
    chat["messages"] += [{"role": "assistant", "content": "Again"}, again]
    assert said(ask(api, stream, **chat), stream) == "Once more"
    asked = [request.json["conversation_id"] for request in dify.asked()]
    assert asked == ["", Chat().conversation_id, "", "new"]
    told = dify.asked()[2].json["query"]
    assert "Hi" in told
    assert "Hello" in told
    assert "And now?" in told


def said(response: Any, stream: bool) -> str:
    assert response.status_code == 200, response.data
    if stream:
        return read_stream(response.data).text
    return str(response.json["choices"][0]["message"]["content"])


def test_an_agent_that_has_asked_a_person_says_so_where_the_caller_chose_the_conversation(
    dify: FakeDify, api: FlaskClient
) -> None:
    ask(api, user="u")
    dify.answers = [LOST["an agent that has asked a person"]]
    response = ask(api, user="u", dify={"conversation_id": Chat().conversation_id})
    assert response.status_code == 404
    assert response.json["error"]["code"] == "conversation_not_found"
    assert "ask_human" in response.json["error"]["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_file_that_a_chatflow_has_lost_is_uploaded_again(
    stream: bool, dify: FakeDify, api: FlaskClient
) -> None:
    """Dify 1.16 tells it within its 200, after the event that begins a run."""
    uploads: list[Request] = []
    refusal = replayed("1.16.1/flow/file_unknown_id")

    def answer(request: Request) -> Steps:
        path = request.path.partition("?")[0].removeprefix("/v1")
        if path == "/files/upload":
            uploads.append(request)
            return refused(201, {"id": f"f-{len(uploads)}"})
        is_new = path == "/chat-messages" and request.json["files"][0]["upload_file_id"] == "f-2"
        return Chat().says("Seen") if is_new else app("advanced-chat", refusal, **FILES)(request)

    dify.tells_of_its_app = True
    dify.answer = answer
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    message = {"role": "user", "content": [{"type": "text", "text": "Look"}, image]}
    assert said(ask(api, stream, messages=[message]), stream) == "Seen"
    assert len(uploads) == 2


ESCAPED = rb'data: {"event": "message", "task_id": "t", "answer": "\u4f60\u597d \ud83c\udf89"}'


def test_dify_before_1_8_escapes_what_is_not_ascii(dify: FakeDify, api: FlaskClient) -> None:
    dify.answer = lambda r: streamed(ESCAPED + b"\n\n", Chat().end())
    text, stream = both(api)
    assert text == stream.text == "你好 🎉"


HALVES = [
    ([rb"Hi \ud83c", rb"\udf89!"], "Hi 🎉!"),
    ([rb"\ud83c", b"", rb"\udf89"], "🎉"),
    ([rb"a\ud83c", b"b"], "a\ufffdb"),
    ([rb"\udf89a"], "\ufffda"),
    ([rb"a\ud83c"], "a\ufffd"),
    ([rb"\ud83c\ud83c", rb"\udf89"], "\ufffd🎉"),
]


@pytest.mark.parametrize(("texts", "expected"), HALVES)
def test_a_character_that_comes_in_two_halves_is_one(
    texts: list[bytes], expected: str, dify: FakeDify, api: FlaskClient
) -> None:
    start = b'data: {"event": "message", "task_id": "t", "conversation_id": "c", "answer": "'
    dify.answer = lambda r: streamed(*(start + t + b'"}\n\n' for t in texts), Chat().end())
    text, stream = both(api)
    assert text == stream.text == expected
