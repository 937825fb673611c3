"""The name of a request, and its line in the log."""

import logging
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.fake_dify import CLOSE, PING, Chat, FakeDify, refused, streamed
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
    assert response.headers["X-Request-Id"] == "new-request"


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
def test_an_answer_has_one_line(api: FlaskClient, lines: Any, stream: bool) -> None:
    post(api, {"X-Request-Id": "abc-1"}, stream=stream)
    (line,) = lines()
    assert 0 < line.pop("first_byte") <= line.pop("total")
    assert line == {
        "id": "abc-1",
        "method": "POST",
        "route": PATH,
        "status": 200,
        "model": "tiny",
        "streamed": stream,
        "ended": "ok",
    }


def test_a_failed_request_is_told_by_the_code_of_its_error(
    api: FlaskClient, dify: FakeDify, lines: Any
) -> None:
    dify.answers = [refused(503, {"code": "x", "message": "y", "status": 503})]
    post(api)
    (line,) = lines()
    assert (line["status"], line["ended"]) == (503, "upstream_unavailable")


def test_a_stream_that_breaks_is_told_by_the_code_of_its_error(
    api: FlaskClient, dify: FakeDify, lines: Any
) -> None:
    dify.answers = [[*streamed(Chat().text("Hal"))[:-1], CLOSE]]
    post(api, stream=True)
    (line,) = lines()
    assert (line["status"], line["streamed"], line["ended"]) == (200, True, "upstream_error")


def test_a_caller_that_leaves_is_told(api: FlaskClient, dify: FakeDify, lines: Any) -> None:
    dify.answers = [streamed(*(Chat().text("word ") for _ in range(9)), 60.0)]
    body = {"model": "tiny", "messages": HI, "stream": True}
    response = api.post(PATH, json=body)
    next(iter(response.response))
    response.close()
    (line,) = lines()
    assert (line["status"], line["ended"]) == (200, "caller_gone")


def test_the_model_is_told_only_where_there_is_one(api: FlaskClient, lines: Any) -> None:
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
def test_of_the_path_only_the_rule_is_told(
    api: FlaskClient, lines: Any, path: str, route: str
) -> None:
    api.get(path, buffered=True)
    assert [line["route"] for line in lines()] == [route]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_are_quiet(api: FlaskClient, caplog: pytest.LogCaptureFixture, path: str) -> None:
    caplog.set_level(logging.INFO, "opendify.requests")
    api.get(path, buffered=True)
    assert [found for found in caplog.records if found.name == "opendify.requests"] == []


def test_a_keep_alive_is_not_the_first_byte(
    api: FlaskClient, dify: FakeDify, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opendify.web.app.HOLD_SECONDS", 0.05)
    monkeypatch.setattr("opendify.chat.KEEP_ALIVE_SECONDS", 0.1)
    dify.answers = [streamed(PING, 0.5, Chat().text("Late"), Chat().end())]
    response = post(api, stream=True)
    assert response.data.startswith(b": keep-alive")
    assert lines()[0]["first_byte"] >= 0.5


def test_an_error_that_comes_after_comments_only_is_the_first_byte(
    api: FlaskClient, dify: FakeDify, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opendify.web.app.HOLD_SECONDS", 0.05)
    monkeypatch.setattr("opendify.chat.KEEP_ALIVE_SECONDS", 0.1)
    dify.answers = [[*streamed(PING, 0.5)[:-1], CLOSE]]
    response = post(api, stream=True)
    assert response.data.startswith(b": keep-alive") and b'"error"' in response.data
    assert lines()[0]["first_byte"] >= 0.5
