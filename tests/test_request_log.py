"""The name of a request, and its line in the log."""

import logging
import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from opendify.observability.record import Record
from tests.support.fake_dify import CLOSE, PING, Chat, FakeDify, refused, streamed
from tests.test_web import HI, PATH, post

ERROR_ROUTES = [
    ("GET", "/nothing", 404),
    ("DELETE", "/v1/models", 405),
    ("POST", PATH, 400),
    ("GET", "/v1/conversation/mappings?limit=1", 403),
]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """What the lines of requests say, those of probes too."""
    caplog.set_level(logging.DEBUG, "opendify.requests")
    return lambda: [found.fields for found in caplog.records if found.name == "opendify.requests"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("method", "path", "status"), ERROR_ROUTES)
def test_every_answer_has_the_name_of_its_request(
    api: FlaskClient, method: str, path: str, status: int
) -> None:
    response = api.open(path, method=method, headers={"X-Request-Id": "abc-1"}, buffered=True)
    assert response.status_code == status
    assert response.headers.getlist("X-Request-Id") == ["abc-1"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "ä"])
def test_a_name_that_is_not_sound_is_replaced(api: FlaskClient, given: str) -> None:
    response = api.get("/healthz", headers={"X-Request-Id": given})
    assert response.headers["X-Request-Id"] == "new"


@pytest.mark.parametrize("stream", [True, False])
def test_dify_traces_a_question_by_the_name_of_its_request(
    api: FlaskClient, dify: FakeDify, stream: bool
) -> None:
    post(api, {"X-Request-Id": "abc-1"}, stream=stream)
    (asked,) = dify.asked()
    assert asked.headers["x-trace-id"] == "abc-1"


def test_without_a_name_dify_traces_by_the_traceparent(api: FlaskClient, dify: FakeDify) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    post(api, {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    assert dify.asked()[0].headers["x-trace-id"] == trace


def test_the_trace_id_of_the_body_wins(api: FlaskClient, dify: FakeDify) -> None:
    post(api, {"X-Request-Id": "abc-1"}, trace_id="mine")
    (asked,) = dify.asked()
    assert (asked.headers["x-trace-id"], asked.json["trace_id"]) == ("mine", "mine")


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_has_one_line(api: FlaskClient, dify: FakeDify, lines: Any, stream: bool) -> None:
    dify.answers = [Chat(conversation_id="c-1").says("Hello")]
    post(api, {"X-Request-Id": "abc-1"}, stream=stream, user="ann")
    (line,) = lines()
    assert 0 < line.pop("first_byte") <= line.pop("total")
    tokens = line.pop("prompt_tokens"), line.pop("completion_tokens")
    assert all(isinstance(count, int) for count in tokens)
    assert line == {
        "id": "abc-1",
        "ip": "127.0.0.1",
        "caller": "-",
        "user": "ann",
        "method": "POST",
        "route": PATH,
        "status": 200,
        "model": "tiny",
        "conversation": "c-1",
        "continuity": "first-turn",
        "streamed": stream,
        "ended": "ok",
    }


class TestOfAnAccount:
    @pytest.fixture
    def api_keys(self) -> str:
        return '{"team-a": "key-a"}'

    def test_a_line_names_it_and_not_its_key(self, api: FlaskClient, lines: Any) -> None:
        post(api, {"Authorization": "Bearer key-a"})
        post(api, {"Authorization": "Bearer key-wrong"})
        assert [line["caller"] for line in lines()] == ["team-a", "-"]
        assert "key-" not in str(lines())


@pytest.mark.parametrize(
    "user",
    [
        "ann@example.com",
        "ann%40example.com",
        "ann%2540example.com",
        "ann\uff20example.com",
        " Ann <ann@b> ",
    ],
)
def test_an_e_mail_address_is_named_by_its_hash(
    api: FlaskClient, dify: FakeDify, lines: Any, user: str
) -> None:
    post(api, user=user)
    assert dify.asked()[0].json["user"] == user.strip()
    (line,) = lines()
    assert re.fullmatch("sha256:[0-9a-f]{12}", line["user"])
    assert "ann" not in str(line).lower()


SECRET = "the-question-itself"
REFUSALS = [
    (404, {"code": "not_found", "message": f"Conversation {SECRET}", "status": 404}),
    (400, {"code": "completion_request_error", "message": f"bad {SECRET}", "status": 400}),
    (400, {"code": "invalid_param", "message": SECRET, "status": 400}),
    (400, {"code": "provider_quota_exceeded", "message": SECRET, "status": 400}),
    (400, {"code": "provider_not_initialize", "message": SECRET, "status": 400}),
    (401, {"code": "unauthorized", "message": SECRET, "status": 401}),
    (413, {"code": "x", "message": SECRET, "status": 413}),
    (415, {"code": "x", "message": SECRET, "status": 415}),
    (429, {"code": "x", "message": SECRET, "status": 429}),
    (500, {"code": "x", "message": SECRET, "status": 500}),
]


@pytest.mark.parametrize(("status", "body"), REFUSALS)
@pytest.mark.parametrize("stream", [True, False])
def test_what_dify_said_is_not_in_the_line(
    api: FlaskClient,
    dify: FakeDify,
    lines: Any,
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: dict[str, Any],
    stream: bool,
) -> None:
    dify.answers = [refused(status, body)] * 2
    assert SECRET in post(api, stream=stream).text
    (line,) = lines()
    assert line["dify_code"] == body["code"]
    assert SECRET not in caplog.text and SECRET not in str(line)
    warned = [found for found in caplog.records if found.levelno >= logging.WARNING]
    assert [found.name for found in warned] in ([], ["opendify.requests"])


def test_a_failure_is_logged_in_one_line_with_its_message(
    api: FlaskClient, dify: FakeDify, caplog: pytest.LogCaptureFixture
) -> None:
    dify.answers = [refused(503, {"code": "x", "message": "y", "status": 503})]
    message = post(api).json["error"]["message"]
    (line,) = caplog.records
    assert (line.name, line.levelname) == ("opendify.requests", "WARNING")
    assert line.fields["error"] == message  # type: ignore[attr-defined]


def test_a_caller_s_error_is_logged_with_its_message(api: FlaskClient, lines: Any) -> None:
    api.post(PATH, data=b"{", content_type="application/json", buffered=True)
    post(api, model=SECRET)
    first, second = lines()
    assert first["error"] == "The request body is not valid JSON."
    assert (first["ended"], second["ended"]) == ("invalid_request", "model_not_found")
    assert SECRET not in str(second)


def test_a_failed_request_is_logged_with_the_code_of_its_error(
    api: FlaskClient, dify: FakeDify, lines: Any
) -> None:
    dify.answers = [refused(503, {"code": "x", "message": "y", "status": 503})]
    post(api)
    (line,) = lines()
    assert (line["status"], line["ended"]) == (503, "upstream_unavailable")


def test_a_stream_that_breaks_is_logged_with_the_code_of_its_error(
    api: FlaskClient, dify: FakeDify, lines: Any
) -> None:
    dify.answers = [[*streamed(Chat().text("Hal"))[:-1], CLOSE]]
    post(api, stream=True)
    (line,) = lines()
    assert (line["status"], line["streamed"], line["ended"]) == (200, True, "upstream_error")


def test_a_caller_that_leaves_is_logged(api: FlaskClient, dify: FakeDify, lines: Any) -> None:
    dify.answers = [streamed(*(Chat().text("word ") for _ in range(9)), 60.0)]
    body = {"model": "tiny", "messages": HI, "stream": True}
    response = api.post(PATH, json=body)
    next(iter(response.response))
    response.close()
    (line,) = lines()
    assert (line["status"], line["ended"]) == (200, "caller_gone")


def test_the_model_is_logged_only_where_there_is_one(api: FlaskClient, lines: Any) -> None:
    post(api, model="app-a key that went astray")
    api.get("/healthz", buffered=True)
    assert [line["model"] for line in lines()] == ["unknown", "-"]


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/models/org/model?key=secret", "/v1/models/<path:name>"),
        ("/secret", "-"),
    ],
)
def test_of_a_path_that_has_a_route_only_the_route_is_logged(
    api: FlaskClient, lines: Any, path: str, route: str
) -> None:
    api.get(path, buffered=True)
    assert [line["route"] for line in lines()] == [route]
    assert [line.get("path") for line in lines()] == [None if route != "-" else path]


def test_a_path_without_a_route_is_logged_without_its_query(api: FlaskClient, lines: Any) -> None:
    api.get("/v1/v1/models?key=secret", buffered=True)
    api.get(f"/{'a' * 1000}", buffered=True)
    first, second = lines()
    assert first["path"] == "/v1/v1/models"
    assert len(second["path"]) < 250


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_are_quiet(api: FlaskClient, caplog: pytest.LogCaptureFixture, path: str) -> None:
    caplog.set_level(logging.INFO, "opendify.requests")
    api.get(path, buffered=True)
    assert [found for found in caplog.records if found.name == "opendify.requests"] == []


def test_a_keep_alive_is_not_the_first_byte(
    api: FlaskClient, dify: FakeDify, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opendify.api.responder.HOLD_SECONDS", 0.05)
    monkeypatch.setattr("opendify.chat.service.KEEP_ALIVE_SECONDS", 0.1)
    dify.answers = [streamed(PING, 0.5, Chat().text("Late"), Chat().end())]
    response = post(api, stream=True)
    assert response.data.startswith(b": keep-alive")
    assert lines()[0]["first_byte"] >= 0.5


def test_an_error_that_comes_after_comments_only_is_the_first_byte(
    api: FlaskClient, dify: FakeDify, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opendify.api.responder.HOLD_SECONDS", 0.05)
    monkeypatch.setattr("opendify.chat.service.KEEP_ALIVE_SECONDS", 0.1)
    dify.answers = [[*streamed(PING, 0.5)[:-1], CLOSE]]
    response = post(api, stream=True)
    assert response.data.startswith(b": keep-alive") and b'"error"' in response.data
    assert lines()[0]["first_byte"] >= 0.5


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v1/sk-caller-0123456789/x", "/v1/.../x"),
        ("/v1/app-secret", "/v1/..."),
        ("/users/ann@example.com/v1", "/users/.../v1"),
        ("/v1/0123456789abcdef0123456789abcdef", "/v1/..."),
        ("/v1/chat/completions/chat/completions", "/v1/chat/completions/chat/completions"),
        ("/v1/" + "ab/" * 100, "/v1/" + ("ab/" * 100)[:196] + "..."),
    ],
)
def test_a_path_that_is_not_ours_is_logged_without_keys_and_people(path: str, shown: str) -> None:
    record = Record("id", "GET", 0.0, path=path)
    assert record.fields()["path"] == shown
