import gzip
import hashlib
import io
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient
from gunicorn.http.errors import InvalidChunkSize

from opendify.api import responder
from opendify.chat import service as chat_service
from opendify.chat import turn
from opendify.config.models import Model
from opendify.conversations.store.json_file import JsonFileStore
from tests.conftest import KEY
from tests.support import schemas, service
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import (
    CLOSE,
    FOREVER,
    PING,
    Chat,
    FakeDify,
    Request,
    Step,
    Steps,
    event,
    head,
    refused,
    replayed,
    streamed,
)
from tests.support.streams import read_stream
from tests.support.waiting import wait_for

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
STREAM_AND_WHOLE = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


def post(api: FlaskClient, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    body = {"model": "tiny", "messages": HI, **fields}
    return api.post(PATH, json=body, headers=headers or {}, buffered=True)


def error_of(response: Any) -> dict[str, Any]:
    assert response.content_type == "application/json"
    schemas.assert_error(response.json)
    error: dict[str, Any] = response.json["error"]
    return error


# --- routes ----------------------------------------------------------------------------------


def test_the_models_are_listed_without_asking_dify(api: FlaskClient, dify: FakeDify) -> None:
    response = api.get("/v1/models")
    schemas.assert_model_list(response.json)
    assert [model["id"] for model in response.json["data"]] == ["tiny", "org/model"]
    assert dify.requests == []


@pytest.mark.parametrize("name", ["tiny", "org/model"])
def test_one_model_is_shown(api: FlaskClient, name: str) -> None:
    response = api.get(f"/v1/models/{name}")
    schemas.assert_model(response.json)
    assert response.json["id"] == name


def test_a_model_that_is_not_there_is_a_404(api: FlaskClient) -> None:
    response = api.get("/v1/models/org/other")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


def test_health_depends_on_nothing(api: FlaskClient, dify: FakeDify) -> None:
    assert api.get("/healthz").json == {"status": "ok"}
    assert dify.requests == []


ELSEWHERE = [
    pytest.param("GET", "/", 404, "not_found", id="the root"),
    pytest.param("GET", "/v1", 404, "not_found", id="the version"),
    pytest.param("GET", "/v1/completions", 405, "method_not_allowed", id="reading a completion"),
    pytest.param("GET", "/%00<script>", 404, "not_found", id="a path of no good"),
    pytest.param("GET", PATH, 405, "method_not_allowed", id="reading a chat"),
    pytest.param("DELETE", PATH, 405, "method_not_allowed", id="deleting a chat"),
    pytest.param("POST", "/v1/models", 405, "method_not_allowed", id="making a model"),
    pytest.param("GET", "/v1/conversation/cleanup", 405, "method_not_allowed", id="reading an act"),
]


@pytest.mark.parametrize(("method", "path", "status", "code"), ELSEWHERE)
def test_an_unknown_route_is_a_404_in_json(
    api: FlaskClient, method: str, path: str, status: int, code: str
) -> None:
    response = api.open(path, method=method)
    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert ("Allow" in response.headers) == (status == 405)


# --- requests --------------------------------------------------------------------------------


BODIES = [
    pytest.param(b"", None, id="nothing"),
    pytest.param(b"  ", None, id="blanks"),
    pytest.param(b"{", None, id="half of JSON"),
    pytest.param(b"{'model':'tiny'}", None, id="Python"),
    pytest.param(b"model=tiny", None, id="a form"),
    pytest.param(b"null", None, id="null"),
    pytest.param(b"[]", None, id="an array"),
    pytest.param(b'"text"', None, id="a string"),
    pytest.param(b'{"model":"tiny","messages":[{"role":"user","content":NaN}]}', None, id="NaN"),
    pytest.param(b'{"model":"tiny","temperature":Infinity}', None, id="Infinity"),
    pytest.param(b'{"n":' + b"9" * 5000 + b"}", "model", id="an endless number"),
    pytest.param(b"[" * 100_000, None, id="endless nesting"),
    pytest.param(b'{"a":' * 100_000, None, id="endless nesting of objects"),
    pytest.param(
        b'{"model":"tiny","messages":[{"role":"user","content":"Hi"}],"inputs":{"a":'
        + b"[" * 120
        + b"]" * 120
        + b"}}",
        "inputs",
        id="nesting that Python could follow",
    ),
    pytest.param(b"\xff\xfe{}", None, id="bytes that are no text"),
    pytest.param('{"model":"tïny"}'.encode("latin-1"), "model", id="Latin-1"),
    pytest.param('{"model":"tiny"}'.encode("utf-16"), None, id="UTF-16"),
    pytest.param(
        b'{"model":"tiny","messages":[{"role":"user","content":"\\ud83d"}]}',
        None,
        id="half a surrogate pair",
    ),
    pytest.param(
        b'{"model":"tiny","messages":[{"role":"user","content":"\\ude00\\ud83d"}]}',
        None,
        id="a surrogate pair the wrong way round",
    ),
    pytest.param(b"{}", "model", id="an empty object"),
    pytest.param(b'{"model":"tiny"}', "messages", id="no messages"),
    pytest.param(b'{"model":"tiny","messages":[]}', "messages", id="empty messages"),
    pytest.param(
        b'{"model":"tiny","messages":[{"role":"user","content":1e999}]}',
        "messages",
        id="a number beyond all numbers",
    ),
]


@pytest.mark.parametrize(("data", "param"), BODIES)
def test_a_bad_body_is_a_400_and_dify_is_not_asked(
    api: FlaskClient, dify: FakeDify, data: bytes, param: str | None
) -> None:
    response = api.post(PATH, data=data, content_type="application/json")
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert dify.requests == []


def test_a_number_that_json_cannot_carry_is_a_400(api: FlaskClient, dify: FakeDify) -> None:
    data = b'{"model":"tiny","messages":[{"role":"user","content":"Hi"}],"inputs":{"a":1e999}}'
    response = api.post(PATH, data=data, content_type="application/json")
    assert response.status_code == 400
    error_of(response)
    assert dify.requests == []


TYPES = [
    pytest.param("application/json", 200, id="JSON"),
    pytest.param("application/json; charset=utf-8", 200, id="with a charset"),
    pytest.param("APPLICATION/JSON", 200, id="in capitals"),
    pytest.param("application/vnd.api+json", 200, id="a kind of JSON"),
    pytest.param(None, 200, id="none"),
    pytest.param("text/plain", 415, id="text"),
    pytest.param("application/x-www-form-urlencoded", 415, id="what curl says by itself"),
    pytest.param("multipart/form-data; boundary=x", 415, id="a form"),
]


@pytest.mark.parametrize(("content_type", "status"), TYPES)
def test_a_body_says_that_it_is_json_or_nothing(
    api: FlaskClient, content_type: str | None, status: int
) -> None:
    data = json.dumps({"model": "tiny", "messages": HI}).encode()
    response = api.post(PATH, data=data, content_type=content_type, buffered=True)
    assert response.status_code == status
    if status != 200:
        assert error_of(response)["code"] == "unsupported_media_type"


def test_a_packed_body_is_refused(api: FlaskClient) -> None:
    data = gzip.compress(json.dumps({"model": "tiny", "messages": HI}).encode())
    response = api.post(
        PATH, data=data, content_type="application/json", headers={"Content-Encoding": "gzip"}
    )
    assert response.status_code == 415
    assert "Content-Encoding" in error_of(response)["message"]


def test_nesting_as_deep_as_tools_have_it_is_no_mistake(api: FlaskClient) -> None:
    value: Any = "x"
    for _ in range(45):
        value = {"a": [value]}
    assert post(api, tools=[value] * 300).status_code == 200


def test_a_byte_order_mark_is_no_mistake(api: FlaskClient) -> None:
    data = b"\xef\xbb\xbf" + json.dumps({"model": "tiny", "messages": HI}).encode()
    response = api.post(PATH, data=data, content_type="application/json", buffered=True)
    assert response.status_code == 200


class Chunks(io.BytesIO):
    """A body in chunks, whose framing breaks at its end where ``broken`` is set."""

    def __init__(self, data: bytes, broken: bool) -> None:
        super().__init__(data)
        self._broken = broken

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data and self._broken:
            raise InvalidChunkSize(b"zz")
        return data


@pytest.mark.parametrize(
    ("data", "broken", "status", "code"),
    [
        (b'{"model":', True, 400, "invalid_request"),
        (b'{"a":"' + b"x" * 1024 * 1024 + b'"}', False, 413, "request_too_large"),
        (b'{"a":1}' + b" " * 1024 * 1024, False, 413, "request_too_large"),
    ],
)
def test_a_body_in_chunks_is_checked_too(
    api: FlaskClient, dify: FakeDify, data: bytes, broken: bool, status: int, code: str
) -> None:
    response = api.post(
        PATH,
        content_type="application/json",
        environ_overrides={"wsgi.input": Chunks(data, broken), "wsgi.input_terminated": True},
    )
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert dify.requests == []


def test_a_body_that_is_too_large_is_a_413(api: FlaskClient, dify: FakeDify) -> None:
    response = post(api, messages=[{"role": "user", "content": "x" * 1024 * 1024}])
    assert response.status_code == 413
    error = error_of(response)
    assert (error["code"], "1 MB (MAX_BODY_MB)" in error["message"]) == ("request_too_large", True)
    assert dify.requests == []


@STREAM_AND_WHOLE
def test_a_model_that_nobody_configured_is_a_404(
    api: FlaskClient, dify: FakeDify, stream: bool
) -> None:
    response = post(api, model="gpt-5", stream=stream)
    assert response.status_code == 404
    error = error_of(response)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert dify.requests == []


@pytest.mark.parametrize(("model", "key"), [("tiny", KEY), ("org/model", f"{KEY}-2")])
def test_each_model_has_its_own_key(api: FlaskClient, dify: FakeDify, model: str, key: str) -> None:
    assert post(api, model=model).json["model"] == model
    assert dify.asked()[0].headers["authorization"] == f"Bearer {key}"


LONG = "x" * 300
USERS = [
    pytest.param({}, {}, "default_user", id="nobody"),
    pytest.param({"user": "u"}, {}, "u", id="user"),
    pytest.param({}, {"x-openwebui-user-id": "h"}, "h", id="the header"),
    pytest.param({"user": "u"}, {"X-OpenWebUI-User-Id": "h"}, "u", id="user before the header"),
    pytest.param({"metadata": {"user_id": "m"}}, {}, "m", id="metadata"),
    pytest.param({"safety_identifier": "s"}, {}, "s", id="safety_identifier"),
    pytest.param({"user": "a\0b"}, {}, "ab", id="NUL is dropped"),
    pytest.param({"user": "\0"}, {}, "default_user", id="only NUL"),
    pytest.param({"user": "x" * 255}, {}, "x" * 255, id="as long as Dify's column"),
    pytest.param({"user": LONG}, {}, hashlib.sha256(LONG.encode()).hexdigest(), id="longer"),
]


@pytest.mark.parametrize(("fields", "headers", "user"), USERS)
def test_dify_gets_the_name_of_the_user(
    api: FlaskClient, dify: FakeDify, fields: dict[str, Any], headers: dict[str, str], user: str
) -> None:
    assert post(api, headers, **fields).status_code == 200
    assert dify.asked()[0].json["user"] == user


# --- answers ---------------------------------------------------------------------------------


def test_a_whole_answer_has_its_headers(api: FlaskClient) -> None:
    response = post(api)
    schemas.assert_completion(response.json)
    assert response.json["choices"][0]["message"]["content"] == "Hello"
    assert response.headers["X-Dify-Conversation-Id"] == Chat().conversation_id
    assert response.headers["X-Dify-Message-Id"] == Chat().message_id
    assert response.json["dify"] == {
        "conversation_id": Chat().conversation_id,
        "message_id": Chat().message_id,
        "task_id": Chat().task_id,
    }


def test_a_stream_has_its_headers_and_none_that_is_the_server_s(api: FlaskClient) -> None:
    response = post(api, stream=True)
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["X-Dify-Conversation-Id"] == Chat().conversation_id
    for name in ("Transfer-Encoding", "Content-Encoding", "Content-Length", "Connection"):
        assert name not in response.headers
    assert read_stream(response.data).text == "Hello"


@STREAM_AND_WHOLE
def test_text_that_is_not_ascii_stays_as_it_is(
    api: FlaskClient, dify: FakeDify, stream: bool
) -> None:
    dify.answers = [Chat().says("你好", "\u2028😀")]
    response = post(api, stream=stream)
    assert "你好".encode() in response.data
    if stream:
        assert read_stream(response.data).text == "你好\u2028😀"
    else:
        assert response.json["choices"][0]["message"]["content"] == "你好\u2028😀"


@STREAM_AND_WHOLE
def test_half_a_surrogate_pair_of_dify_breaks_no_answer(
    api: FlaskClient, dify: FakeDify, stream: bool
) -> None:
    halves = [b'"answer": "a\\ud83d"', b'"answer": "\\ude00b"']
    events = [Chat().text("X").replace(b'"answer": "X"', half) for half in halves]
    dify.answers = [streamed(*events, Chat().end())]
    response = post(api, stream=stream)
    assert response.status_code == 200
    if stream:
        found = read_stream(response.data)
        assert found.error is None
        text = found.text
    else:
        text = response.json["choices"][0]["message"]["content"]
    assert (text[0], text[-1]) == ("a", "b")


IGNORED = [
    pytest.param({}, None, id="nothing"),
    pytest.param({"temperature": 0.5}, "temperature", id="one"),
    pytest.param(
        {"mine": 1, "tools": [{}], "max_tokens": 5, "temperature": 0},
        "temperature, max_tokens, tools, mine",
        id="several",
    ),
    pytest.param({"temperature": 1, "tools": [], "seed": None}, None, id="what asks for nothing"),
    pytest.param({"名": 2, "a\r\nb: c": 1, "é": 1}, None, id="names that a header cannot hold"),
]


@STREAM_AND_WHOLE
@pytest.mark.parametrize("chat_id", ["c1", ""], ids=["a chat", "a single question"])
def test_who_asks_is_the_operator_s_to_say(
    http: httpx.Client,
    dify: FakeDify,
    tmp_path: Path,
    stream: bool,
    chat_id: str,
) -> None:
    """The request is answered, and the answer names what of it had no effect."""
    own = {"who": "{user}", "role": "{role}", "deep": {"chat": ["{chat_id}"]}, "tone": "warm"}
    models = {"tiny": Model("tiny", KEY, dify.base, inputs=own)}
    fields = {
        "inputs": {"who": "victim", "tone": "cold"},
        "metadata": {"inputs.role": "admin", "inputs": {"deep": 1}},
        "temperature": 0,
    }
    headers = {"X-OpenWebUI-User-Id": "u1", "X-OpenWebUI-User-Role": "user"}
    if chat_id:
        headers["X-OpenWebUI-Chat-Id"] = chat_id
    with open_app(make_settings(models, tmp_path), http) as app:
        response = post(app.test_client(), stream=stream, headers=headers, **fields)
    assert response.status_code == 200
    (asked,) = dify.asked()
    assert asked.json["inputs"] == {
        "who": "u1",
        "role": "user",
        "deep": {"chat": [chat_id]},
        "tone": "cold",
    }
    named = response.headers["X-OpenDify-Ignored"].split(", ")
    assert sorted(named[:3]) == ["inputs.deep", "inputs.role", "inputs.who"]
    assert named[3:] == ["temperature"]


@STREAM_AND_WHOLE
@pytest.mark.parametrize(("fields", "header"), IGNORED)
def test_what_has_no_effect_is_named_once(
    api: FlaskClient, fields: dict[str, Any], header: str | None, stream: bool
) -> None:
    response = post(api, stream=stream, **fields)
    assert response.status_code == 200
    assert response.headers.get("X-OpenDify-Ignored") == header


def test_usage_is_sent_where_it_was_requested(api: FlaskClient) -> None:
    asked = read_stream(post(api, stream=True, stream_options={"include_usage": True}).data)
    assert asked.usage == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert all(chunk["usage"] is None for chunk in asked.chunks)
    for options in ({}, {"include_usage": False}, None):
        plain = read_stream(post(api, stream=True, stream_options=options).data)
        assert plain.usage is None
        assert not any("usage" in chunk for chunk in plain.chunks)


def test_a_replaced_text_stands_alone_in_a_whole_answer(api: FlaskClient, dify: FakeDify) -> None:
    said = Chat()
    replaced = said.event("message_replace", answer="No.")
    dify.answers = [streamed(said.text("Bad "), said.text("words"), replaced, said.end())]
    (choice,) = post(api).json["choices"]
    assert choice["message"]["content"] == "No."
    assert choice["finish_reason"] == "content_filter"


@pytest.mark.parametrize(("before", "text"), [([], "No."), (["Bad"], "Bad\n\nNo.")])
def test_a_replaced_text_follows_what_a_stream_has_said(
    api: FlaskClient, dify: FakeDify, before: list[str], text: str
) -> None:
    said = Chat()
    replaced = said.event("message_replace", answer="No.")
    dify.answers = [streamed(*map(said.text, before), replaced, said.end())]
    found = read_stream(post(api, stream=True).data)
    assert (found.text, found.finish_reason) == (text, "content_filter")


# --- failures --------------------------------------------------------------------------------


FAILURES = [
    pytest.param(refused(503, b"", "text/html"), 503, "true", "2", id="503"),
    pytest.param(refused(429, b"", "text/html"), 429, None, "2", id="429"),
    pytest.param(refused(500, b"", "text/html"), 502, "false", None, id="500"),
    pytest.param(
        refused(400, {"code": "provider_quota_exceeded", "message": "x"}),
        429,
        "false",
        None,
        id="a quota that is used up",
    ),
    pytest.param(replayed("1.13.2/chat/wrong_key"), 502, "false", None, id="our key"),
    pytest.param(replayed("1.13.2/chat/missing_query"), 400, None, None, id="a refusal"),
    pytest.param([CLOSE], 502, "false", None, id="a closed connection"),
]


@STREAM_AND_WHOLE
@pytest.mark.parametrize(("steps", "status", "should_retry", "retry_after"), FAILURES)
def test_a_failure_before_the_first_byte_is_a_status(
    api: FlaskClient,
    dify: FakeDify,
    steps: Steps,
    status: int,
    should_retry: str | None,
    retry_after: str | None,
    stream: bool,
) -> None:
    dify.answers = [steps, steps]
    response = post(api, stream=stream)
    assert response.status_code == status
    error_of(response)
    assert response.headers.get("x-should-retry") == should_retry
    assert response.headers.get("Retry-After") == retry_after
    assert KEY not in response.text


def test_a_failure_after_the_first_byte_is_in_the_stream(api: FlaskClient, dify: FakeDify) -> None:
    said = Chat()
    failed = event(event="error", code="completion_request_error", status=400, message="Oh no")
    dify.answers = [streamed(said.text("Half of"), failed)]
    response = post(api, stream=True)
    assert response.status_code == 200
    found = read_stream(response.data)
    assert found.text == "Half of"
    assert found.error is not None
    assert (found.error["message"], found.error["code"]) == ("Oh no", "run_failed")


def test_a_failure_in_a_run_that_began_is_not_to_be_repeated(
    api: FlaskClient, dify: FakeDify
) -> None:
    limit = {"status": "failed", "error": "[models] Rate Limit Error, slow down"}
    said = Chat()
    dify.answers = [
        streamed(
            said.event("workflow_started", data={}), said.event("workflow_finished", data=limit)
        )
    ]
    response = post(api)
    assert response.status_code == 429
    assert response.headers["x-should-retry"] == "false"


@pytest.fixture
def faulty(
    http: httpx.Client, dify: FakeDify, models: dict[str, Model], tmp_path: Path
) -> Iterator[FlaskClient]:
    """An application with a fault: it cannot make the id of an answer to which Dify gives none."""

    def new_id() -> str:
        raise RuntimeError("the words of a developer")

    nameless = event(event="message", answer="Hi")
    dify.answers = [streamed(nameless, event(event="message_end"))]
    with open_app(make_settings(models, tmp_path), http, new_id=new_id) as application:
        yield application.test_client()


def test_an_internal_error_is_a_500_without_details(
    faulty: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = post(faulty, headers={"X-Request-Id": "r1"})
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert "developer" not in response.text
    assert "the words of a developer" in caplog.text


def test_an_internal_error_in_a_stream_ends_it_with_an_error(
    faulty: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = post(faulty, stream=True, headers={"X-Request-Id": "r1"})
    assert "developer" not in response.text
    error = read_stream(response.data).error
    assert error is not None
    assert error["code"] == "internal_error"
    assert "the words of a developer" in caplog.text


# --- waiting ---------------------------------------------------------------------------------


def test_the_status_waits_for_what_decides_it(api: FlaskClient, dify: FakeDify) -> None:
    body = {"code": "invalid_param", "message": "too late to be silent"}
    dify.answers = [[0.3, *refused(400, body)]]
    assert post(api, stream=True).status_code == 400


def test_a_ping_decides_nothing(api: FlaskClient, dify: FakeDify) -> None:
    failed = event(event="error", code="invalid_param", status=400, message="x")
    dify.answers = [streamed(PING, 0.2, PING, 0.2, failed)]
    assert post(api, stream=True).status_code == 400


def test_the_status_does_not_wait_for_ever(
    api: FlaskClient, dify: FakeDify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responder, "HOLD_SECONDS", 0.1)
    monkeypatch.setattr(chat_service, "KEEP_ALIVE_SECONDS", 0.1)
    failed = event(event="error", code="invalid_param", status=400, message="x")
    dify.answers = [streamed(PING, 0.6, failed)]
    response = post(api, stream=True)
    assert response.status_code == 200
    found = read_stream(response.data)
    assert found.comments >= 2
    assert (found.error or {})["code"] == "rejected_by_dify"
    assert found.text == ""


@pytest.mark.parametrize(("patience", "status"), [(0.1, 200), (5.0, 502)])
def test_a_chatflow_that_runs_is_held_back_for_a_moment_only(
    api: FlaskClient,
    dify: FakeDify,
    monkeypatch: pytest.MonkeyPatch,
    patience: float,
    status: int,
) -> None:
    monkeypatch.setattr(turn, "RUNNING_STATUS_HOLD_SECONDS", patience)
    said = Chat()
    failed = said.event("workflow_finished", data={"status": "failed", "error": "x"})
    dify.answers = [streamed(said.event("workflow_started", data={}), 0.5, failed)]
    response = post(api, stream=True)
    assert response.status_code == status
    if status == 200:
        assert (read_stream(response.data).error or {})["code"] == "run_failed"


def test_a_quiet_connection_is_kept_alive_in_the_middle_too(
    api: FlaskClient, dify: FakeDify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_service, "KEEP_ALIVE_SECONDS", 0.1)
    said = Chat()
    dify.answers = [streamed(said.text("one"), PING, 0.5, said.text("two"), said.end())]
    found = read_stream(post(api, stream=True).data)
    assert (found.text, found.finish_reason) == ("onetwo", "stop")
    assert found.comments >= 2


def test_an_answer_that_flows_has_no_comments(api: FlaskClient) -> None:
    assert read_stream(post(api, stream=True).data).comments == 0


# --- conversations ---------------------------------------------------------------------------


CHAT = {"X-OpenWebUI-Chat-Id": "chat-1"}
MORE = [*HI, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "And?"}]


def conversation(request: Request) -> Steps:
    """A Dify that makes a conversation for everyone who has none."""
    known = request.json["conversation_id"]
    number = conversation.made = conversation.made + (not known)  # type: ignore[attr-defined]
    return Chat(known or f"c-{number}").says("Hello")


@pytest.fixture
def remembering(dify: FakeDify) -> FakeDify:
    conversation.made = 0  # type: ignore[attr-defined]
    dify.answer = conversation
    return dify


@STREAM_AND_WHOLE
def test_a_chat_stays_in_its_conversation_and_sends_the_last_turn_alone(
    api: FlaskClient, remembering: FakeDify, stream: bool
) -> None:
    post(api, CHAT, stream=stream)
    post(api, CHAT, stream=stream, messages=MORE)
    first, second = (request.json for request in remembering.asked())
    assert (first["conversation_id"], first["query"]) == ("", "Hi")
    assert (second["conversation_id"], second["query"]) == ("c-1", "And?")


OTHERS = [
    pytest.param({"X-OpenWebUI-Chat-Id": "chat-2"}, {}, id="another chat"),
    pytest.param({**CHAT, "X-OpenWebUI-User-Id": "other"}, {}, id="another user"),
    pytest.param(CHAT, {"model": "org/model"}, id="another model"),
    pytest.param({**CHAT, "Authorization": "Bearer other"}, {}, id="another key"),
    pytest.param({}, {}, id="no chat"),
]


@pytest.mark.parametrize(("headers", "fields"), OTHERS)
def test_a_conversation_belongs_to_one_chat_of_one_user_model_and_key(
    api: FlaskClient, remembering: FakeDify, headers: dict[str, str], fields: dict[str, Any]
) -> None:
    post(api, CHAT)
    post(api, headers, **{"messages": MORE, **fields})
    post(api, CHAT, messages=MORE)
    ids = [request.json["conversation_id"] for request in remembering.asked()]
    assert ids == ["", "", "c-1"]


NAMES_OF_A_CHAT = [
    pytest.param({"X-Chat-Id": "CHAT"}, {}, id="X-Chat-Id"),
    pytest.param({"X-Conversation-Id": "CHAT"}, {}, id="X-Conversation-Id"),
    pytest.param({"X-Session-Id": "CHAT"}, {}, id="X-Session-Id"),
    pytest.param({}, {"chatId": "CHAT"}, id="chatId"),
    pytest.param({}, {"conversation": {"id": "CHAT"}}, id="conversation"),
    pytest.param({}, {"session_id": "CHAT"}, id="session_id"),
]


@pytest.mark.parametrize(("headers", "fields"), NAMES_OF_A_CHAT)
def test_a_chat_is_told_by_the_names_of_other_clients(
    api: FlaskClient, remembering: FakeDify, headers: dict[str, str], fields: dict[str, Any]
) -> None:
    """Two chats that say the same are two, and each stays in its own conversation."""

    def ask(chat: str, messages: list[dict[str, str]]) -> None:
        own = json.loads(json.dumps([headers, fields]).replace("CHAT", chat))
        post(api, own[0], **{**own[1], "messages": messages})

    for messages in (HI, MORE):
        for chat in ("one", "two"):
            ask(chat, messages)
    ids = [request.json["conversation_id"] for request in remembering.asked()]
    assert ids == ["", "", "c-1", "c-2"]
    sessions = [request.json["trace_session_id"] for request in remembering.asked()]
    assert sessions == ["one", "two", "one", "two"]


def test_a_task_neither_makes_nor_uses_a_mapping(
    api: FlaskClient, remembering: FakeDify, store: JsonFileStore
) -> None:
    post(api, {**CHAT, "X-OpenWebUI-Task": "emoji_generation"})
    assert store.stats().count == 0
    post(api, CHAT)
    post(api, {**CHAT, "X-OpenWebUI-Task": "emoji_generation"})
    post(api, CHAT, messages=MORE)
    assert [request.json["conversation_id"] for request in remembering.asked()] == ["", "c-1"]


def test_a_new_conversation_is_sent_the_history(api: FlaskClient, dify: FakeDify) -> None:
    turns = [*HI, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "And?"}]
    post(api, CHAT, messages=turns)
    query = dify.asked()[0].json["query"]
    assert "User: Hi" in query
    assert "Assistant: Hello" in query
    assert query.endswith("And?")


KEYS = [
    pytest.param({}, "-", id="no key"),
    pytest.param({"Authorization": "Bearer "}, "-", id="an empty key"),
    pytest.param({"Authorization": "Basic dTpw"}, "-", id="a password"),
    pytest.param(
        {"Authorization": "Bearer sk-1"}, hashlib.sha256(b"sk-1").hexdigest()[:12], id="a key"
    ),
    pytest.param(
        {"Authorization": "bearer sk-1"}, hashlib.sha256(b"sk-1").hexdigest()[:12], id="lower case"
    ),
]


@pytest.mark.parametrize(("headers", "caller"), KEYS)
def test_the_mapping_in_the_file_is_named_by_caller_model_user_and_chat(
    api: FlaskClient,
    store: JsonFileStore,
    tmp_path: Path,
    headers: dict[str, str],
    caller: str,
) -> None:
    post(api, {**CHAT, **headers}, user="ü")
    store.close()
    text = (tmp_path / "data" / "conversation_mappings.json").read_text()
    found = json.loads(text)
    assert list(found) == [f'["{caller}","tiny","ü","chat-1"]']
    (mapping,) = found.values()
    assert mapping["dify_conversation_id"] == Chat().conversation_id
    assert isinstance(mapping["created_at"], int)
    assert mapping["created_at"] == mapping["last_used"]
    assert "sk-1" not in text


def test_an_endless_chat_id_is_shortened(api: FlaskClient, store: JsonFileStore) -> None:
    post(api, {"X-OpenWebUI-Chat-Id": "x" * 10_000})
    ((key, _),) = store.entries()
    assert json.loads(key)[3] == hashlib.sha256(b"x" * 10_000).hexdigest()


def test_no_mapping_is_made_of_a_failure(
    api: FlaskClient, dify: FakeDify, store: JsonFileStore
) -> None:
    dify.answers = [refused(500, b"", "text/html"), replayed("1.13.2/chat/llm_fail_start_stream")]
    post(api, CHAT)
    post(api, CHAT, stream=True)
    assert store.stats().count == 0


@STREAM_AND_WHOLE
def test_a_conversation_that_dify_has_lost_is_replaced_once(
    api: FlaskClient, dify: FakeDify, store: JsonFileStore, stream: bool
) -> None:
    lost = replayed("1.13.2/chat/stream_conv_unknown")
    dify.answers = [Chat("c-1").says("Hello"), lost, Chat("c-2").says("Anew")]
    post(api, CHAT)
    response = post(api, CHAT, messages=MORE, stream=stream)
    assert response.status_code == 200
    assert response.headers["X-Dify-Conversation-Id"] == "c-2"
    _, second, third = (request.json for request in dify.asked())
    assert (second["conversation_id"], second["query"]) == ("c-1", "And?")
    assert third["conversation_id"] == ""
    assert "Assistant: Hello" in third["query"]
    assert [chat.latest.conversation_id for _, chat in store.entries()] == ["c-2"]
    assert dify.stopped() == []


@STREAM_AND_WHOLE
def test_a_conversation_that_dify_has_lost_twice_is_an_error(
    api: FlaskClient, dify: FakeDify, store: JsonFileStore, stream: bool
) -> None:
    lost = [replayed("1.13.2/chat/stream_conv_unknown") for _ in range(3)]
    dify.answers = [Chat("c-1").says("Hello"), *lost]
    post(api, CHAT)
    response = post(api, CHAT, stream=stream, messages=MORE)
    assert response.status_code == 404
    assert error_of(response)["code"] == "conversation_not_found"
    assert len(dify.asked()) == 3
    assert store.stats().count == 0


def test_a_conversation_that_the_caller_named_is_not_replaced(
    api: FlaskClient, dify: FakeDify
) -> None:
    mine = post(api, CHAT).headers["X-Dify-Conversation-Id"]
    dify.answers = [replayed("1.13.2/chat/stream_conv_unknown")]
    response = post(api, CHAT, conversation_id=mine)
    assert response.status_code == 404
    assert [r.json["conversation_id"] for r in dify.asked()] == ["", mine]


# --- for operators ---------------------------------------------------------------------------


@pytest.fixture
def clock() -> list[float]:
    return [1_000_000_000.9]


@pytest.fixture
def aged(
    http: httpx.Client, tmp_path: Path, models: dict[str, Model], clock: list[float]
) -> Iterator[FlaskClient]:
    """An application whose time is what ``clock`` says."""

    def now() -> float:
        return clock[0]

    with open_app(make_settings(models, tmp_path), http, clock=now) as application:
        yield application.test_client()


def counts(api: FlaskClient) -> tuple[Any, ...]:
    told = api.get("/v1/conversation/mappings").json
    names = ("mapping_count", "oldest_mapping", "newest_mapping", "timestamp")
    return tuple(told[name] for name in names)


def test_mappings_are_counted(aged: FlaskClient, clock: list[float]) -> None:
    assert counts(aged) == (0, None, None, 1_000_000_000)
    post(aged, CHAT)
    clock[0] += 100
    post(aged, {"X-OpenWebUI-Chat-Id": "chat-2"})
    clock[0] += 4000
    post(aged, CHAT)
    assert counts(aged) == (2, 1_000_000_000, 1_000_000_100, 1_000_004_100)


CLEANUPS = [
    pytest.param(None, 30, id="no body"),
    pytest.param(b"", 30, id="an empty body"),
    pytest.param(b"{}", 30, id="an empty object"),
    pytest.param(b'{"max_age_days": 30}', 30, id="30 days"),
    pytest.param(b'{"max_age_days": 29.5}', 29.5, id="half a day less"),
]


@pytest.mark.parametrize(("data", "days"), CLEANUPS)
def test_mappings_that_were_not_used_for_long_are_removed(
    aged: FlaskClient, dify: FakeDify, clock: list[float], data: bytes | None, days: float
) -> None:
    post(aged, CHAT)
    clock[0] += 15 * 86400
    post(aged, {"X-OpenWebUI-Chat-Id": "chat-2"})
    clock[0] += 15 * 86400 + 1
    asked = len(dify.requests)
    response = aged.post("/v1/conversation/cleanup", data=data)
    assert response.json == {
        "removed_count": 1,
        "max_age_days": days,
        "timestamp": int(clock[0]),
    }
    assert len(dify.requests) == asked
    assert aged.get("/v1/conversation/mappings").json["mapping_count"] == 1


BAD_CLEANUPS = [
    pytest.param(b'{"max_age_days": -1}', id="negative"),
    pytest.param(b'{"max_age_days": "30"}', id="a string"),
    pytest.param(b'{"max_age_days": null}', id="null"),
    pytest.param(b'{"max_age_days": true}', id="true"),
    pytest.param(b'{"max_age_days": 1e999}', id="endless"),
    pytest.param(b'{"max_age_days": NaN}', id="NaN"),
    pytest.param(b'{"max_age_days": 99999999}', id="too many"),
    pytest.param(b"[]", id="an array"),
    pytest.param(b"null", id="no object"),
    pytest.param(b"{", id="half of JSON"),
]


@pytest.mark.parametrize("data", BAD_CLEANUPS)
def test_a_cleanup_of_a_wrong_age_removes_nothing(
    api: FlaskClient, store: JsonFileStore, data: bytes
) -> None:
    post(api, CHAT)
    response = api.post("/v1/conversation/cleanup", data=data, content_type="application/json")
    assert response.status_code == 400
    error_of(response)
    assert store.stats().count == 1


def test_zero_days_remove_what_was_used_before_now(aged: FlaskClient, clock: list[float]) -> None:
    post(aged, CHAT)
    clock[0] += 2
    response = aged.post("/v1/conversation/cleanup", json={"max_age_days": 0})
    assert response.json["removed_count"] == 1


def test_the_log_holds_no_prompt_answer_or_key(
    api: FlaskClient, dify: FakeDify, caplog: pytest.LogCaptureFixture
) -> None:
    dify.answers = [
        Chat().says("what was said"),
        streamed(Chat().text("what was said")),
        refused(500, b"<html>the page</html>", "text/html"),
    ]
    headers = {**CHAT, "Authorization": "Bearer sk-caller"}
    with caplog.at_level(logging.DEBUG, logger="opendify"):
        for stream in (True, True, False):
            post(api, headers, stream=stream, messages=[{"role": "user", "content": "the prompt"}])
    for secret in ("the prompt", "what was said", "the page", KEY, "sk-caller"):
        assert secret not in caplog.text


# --- leaving ---------------------------------------------------------------------------------


def test_closing_a_stream_early_stops_the_run(api: FlaskClient, dify: FakeDify) -> None:
    dify.answers = [streamed(Chat().text("one"), FOREVER)]
    body = {"model": "tiny", "messages": HI, "stream": True, "user": "u"}
    response = api.post(PATH, json=body, buffered=True)
    response.close()
    wait_for(dify.stopped)  # nobody waits for Dify to take note of a stop
    (stop,) = dify.stopped()
    assert stop.path == f"/v1/chat-messages/{Chat().task_id}/stop"
    assert stop.json == {"user": "u"}


@STREAM_AND_WHOLE
def test_a_run_that_ended_is_not_stopped(api: FlaskClient, dify: FakeDify, stream: bool) -> None:
    dify.answers = [Chat().says("Hello"), replayed("1.13.2/chat/llm_fail_mid_stream")]
    post(api, stream=stream)
    post(api, stream=stream)
    assert dify.stopped() == []


def test_a_run_that_fell_silent_is_stopped(api: FlaskClient, dify: FakeDify) -> None:
    dify.answers = [streamed(Chat().text("one"), FOREVER)]
    assert (read_stream(post(api, stream=True).data).error or {})["code"] == "upstream_timeout"
    wait_for(dify.stopped)  # nobody waits for Dify to take note of a stop
    assert len(dify.stopped()) == 1


@pytest.fixture(scope="module")
def deployed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[service.Service, FakeDify]]:
    """Real Gunicorn before a Dify that answers as the question says."""
    endings: dict[str, list[Step]] = {
        "flowing": [*[Chat().text("word "), 0.05] * 1200],
        "silent": [Chat().text("word "), FOREVER],
        "thinking": [PING, Chat().event("agent_thought"), FOREVER],
    }
    fake = FakeDify()
    fake.answer = lambda request: streamed(*endings.get(request.json["query"], []), Chat().end())
    folder = tmp_path_factory.mktemp("deployed")
    variables = service.free_variables(fake.base, GUNICORN_WORKERS="1", GUNICORN_THREADS="8")
    with service.running(folder, variables) as running:
        yield running, fake
    fake.close()


def raw_request(running: service.Service, body: bytes, length: int | None = None) -> socket.socket:
    """A question on a connection of its own, byte for byte."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    size = len(body) if length is None else length
    lines = [f"POST {PATH} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    connection.sendall("\r\n".join([*lines, f"Content-Length: {size}", "", ""]).encode() + body)
    return connection


@STREAM_AND_WHOLE
@pytest.mark.parametrize("kind", ["flowing", "silent", "thinking"])
def test_a_caller_who_leaves_stops_the_run(
    deployed: tuple[service.Service, FakeDify], kind: str, stream: bool
) -> None:
    running, fake = deployed
    user = f"{kind}-{stream}"
    question = [{"role": "user", "content": kind}]
    body = {"model": "tiny", "messages": question, "stream": stream, "user": user}
    with raw_request(running, json.dumps(body).encode()) as connection:
        wait_for(lambda: any(request.json["user"] == user for request in fake.asked()))
        if stream and kind != "thinking":
            service.receive_until(connection, b"word")
        time.sleep(0.3)  # the run has a name by now
    wait_for(lambda: [r for r in fake.stopped() if r.json["user"] == user])
    assert len([r for r in fake.stopped() if r.json["user"] == user]) == 1


def test_a_cookie_of_dify_is_not_kept_for_the_next_caller(
    deployed: tuple[service.Service, FakeDify],
) -> None:
    running, fake = deployed
    content = b'{"result":"success"}'
    length = f"Content-Length: {len(content)}"
    fake.answer_stop = [head(200, "Set-Cookie: session=of-one; Path=/", length) + content]
    stopped = len(fake.stopped())
    silent = {"model": "tiny", "messages": [{"role": "user", "content": "silent"}], "stream": True}
    with raw_request(running, json.dumps(silent).encode()) as connection:
        service.receive_until(connection, b"word")
    wait_for(lambda: len(fake.stopped()) > stopped)
    body = {"model": "tiny", "messages": HI}
    httpx.post(running.url + PATH, json=body, timeout=20, trust_env=False).raise_for_status()
    assert "cookie" not in fake.asked()[-1].headers


def test_a_body_that_ends_too_early_is_a_400(deployed: tuple[service.Service, FakeDify]) -> None:
    running, fake = deployed
    asked = len(fake.asked())
    data = json.dumps({"model": "tiny", "messages": HI}).encode()
    with raw_request(running, data, length=1000) as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while received := connection.recv(65536):
            answer += received
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert len(fake.asked()) == asked


def test_the_head_of_a_stream_is_not_withheld(deployed: tuple[service.Service, FakeDify]) -> None:
    running, _ = deployed
    question = [{"role": "user", "content": "silent"}]
    body = {"model": "tiny", "messages": question, "stream": True}
    with raw_request(running, json.dumps(body).encode()) as connection:
        received = service.receive_until(connection, b"word")
    answer = received.partition(b"\r\n\r\n")[0].lower()
    assert answer.count(b"transfer-encoding: chunked") == 1
    assert b"content-length" not in answer
