"""One line in the log for each request, also for one that never reaches the application."""

import gzip
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.calls import address, receive_all
from tests.support.fake_dify import (
    CLOSE,
    STREAM_HEAD,
    Chat,
    FakeDify,
    chunk,
    event,
    head,
    refused,
    streamed,
)
from tests.support.service import Service, running
from tests.support.waiting import wait_for

QUESTION = {"model": "tiny", "user": "ann", "messages": [{"role": "user", "content": "Hi"}]}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


def packed_head(coding: str) -> bytes:
    """The head of an event stream that ends with its connection."""
    return head(200, "Content-Type: text/event-stream", f"Content-Encoding: {coding}")


# What is refused by the server itself; the status; the code.
REFUSED = [
    (b"NONSENSE\r\n\r\n", 400, "invalid_http"),
    (b"GET /a-path?key=secret HTTP/9.9\r\n\r\n", 400, "invalid_http"),
    (HEAD + b"Content-Length: -1\r\n\r\n", 400, "invalid_http"),
    (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "invalid_http"),
    (HEAD + b"X: " + b"a" * 9000 + b"\r\n\r\n", 431, "headers_too_large"),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414, "url_too_long"),
    (HEAD + b"Expect: magic\r\nContent-Length: 0\r\n\r\n", 417, "expectation_failed"),
]


@pytest.fixture(scope="module")
def dify() -> Iterator[FakeDify]:
    fake = FakeDify()
    yield fake
    fake.close()


@pytest.fixture(scope="module", params=["text", "json"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def service(
    dify: FakeDify, tmp_path_factory: pytest.TempPathFactory, form: str
) -> Iterator[Service]:
    settings = {
        "DIFY_API_BASE": dify.base,
        "MODEL_CONFIG": '{"tiny":"app-k"}',
        "GUNICORN_WORKERS": "1",
        "LOG_FORMAT": form,
    }
    with running(tmp_path_factory.mktemp(form), settings) as running_service:
        yield running_service


def new_lines(service: Service, before: str) -> list[str]:
    """The lines since ``before`` that tell of requests; they may come a moment after the answer.
    What is asked of Dify in the background has lines of its own."""

    def found() -> list[str]:
        lines = service.output().removeprefix(before).splitlines()
        others = ("opendify.app", "opendify.upstream")
        return [line for line in lines if not any(name in line for name in others)]

    wait_for(found, 20, "a line")
    return found()


def fields(line: str) -> dict[str, Any]:
    if line.startswith("{"):
        found: dict[str, Any] = json.loads(line)
        return found
    pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line)
    return {name: json.loads(value) if value[0] == '"' else value for name, value in pairs}


def test_a_request_has_one_line(service: Service) -> None:
    for path, body in (("/v1/models", None), ("/v1/chat/completions", QUESTION), ("/none", None)):
        before = service.output()
        url = f"{service.url}{path}"
        method = "GET" if body is None else "POST"
        answer = httpx.request(method, url, json=body, timeout=20, trust_env=False)
        (line,) = new_lines(service, before)
        said = fields(line)
        assert said["id"] == answer.headers["X-Request-Id"]
        assert (said["ip"], said["method"]) == ("127.0.0.1", method)
        assert str(said["status"]) == str(answer.status_code)
        assert path in (said["route"], said.get("path"))
        if answer.status_code == 200:
            assert said["ended"] == "ok"
        else:
            assert said["ended"] == answer.json()["error"]["code"]


@pytest.mark.parametrize(("data", "status", "code"), REFUSED)
def test_what_the_server_refuses_has_its_line(
    service: Service, data: bytes, status: int, code: str
) -> None:
    before = service.output()
    with socket.create_connection(address(service), timeout=20) as caller:
        caller.sendall(data)
        caller.shutdown(socket.SHUT_WR)
        answer = receive_all(caller)
    assert answer.startswith(b"HTTP/1.1 %d" % status), answer[:200]
    body = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    (line,) = new_lines(service, before)
    said = fields(line)
    assert (str(said["status"]), said["ended"]) == (str(status), code)
    assert said["error"] == body["message"]
    assert f"X-Request-Id: {said['id']}".encode() in answer
    assert said["ip"] == "127.0.0.1"
    assert "secret" not in line


FAILURE = {"event": "error", "status": 400, "code": "completion_request_error"}
FAILED_ANSWERS = {
    "a page": (refused(403, b"<html>", "text/html"), "status 403, content type text/html"),
    "a refusal": (refused(400, {"code": "invalid_param", "message": "Hi"}), "status 400"),
    "an empty stream": (streamed(), "closed the stream before the end"),
    "an event that is no JSON": (streamed(b"data: {Hi\n\n"), "unreadable (not JSON)"),
    "an endless event": ([STREAM_HEAD, chunk(b"data: Hi" * 5_000_000)], "unreadable"),
    "a failure": (streamed(event(**FAILURE, message="Hi")), "a failure with status 400"),
    "a bomb": (
        [packed_head("gzip"), gzip.compress(b"data: Hi" * 4_000_000, 9), CLOSE],
        "unpacks to more",
    ),
    "a cut in what is packed": (
        [packed_head("gzip"), gzip.compress(Chat().text("Hi"))[:-9], CLOSE],
        "in the middle",
    ),
    "a long end": (
        streamed(Chat().event("message_end", metadata={"x": "Hi" * 9_000_000})),
        "MAX_ANSWER_MB",
    ),
}


@pytest.mark.parametrize("name", FAILED_ANSWERS)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_dify_fails_with_is_named_with_its_address(
    service: Service, dify: FakeDify, name: str, is_streamed: bool
) -> None:
    before = service.output()
    steps, cause = FAILED_ANSWERS[name]
    dify.answers = [steps]
    url = f"{service.url}/v1/chat/completions"
    body = {**QUESTION, "stream": is_streamed}
    answer = httpx.post(url, json=body, timeout=30, trust_env=False)
    (line,) = new_lines(service, before)
    said = fields(line)
    assert answer.status_code >= 400 or "error" in answer.text
    assert cause in said["cause"]
    assert said["address"] == dify.base.removesuffix("/v1")
    assert "Hi" not in line
    assert str(dify.port) not in answer.text


def test_the_access_log_of_gunicorn_comes_beside_it_where_it_is_switched_on(
    dify: FakeDify, tmp_path: Path
) -> None:
    settings = {
        "DIFY_API_BASE": dify.base,
        "MODEL_CONFIG": '{"tiny":"app-k"}',
        "GUNICORN_WORKERS": "1",
        "ACCESS_LOG": "true",
        "LOG_FILE": "logs/gunicorn.log",
    }
    with running(tmp_path, settings) as service:
        headers = {"User-Agent": "curl/9"}
        httpx.get(f"{service.url}/v1/models", headers=headers, timeout=20, trust_env=False)
        log = tmp_path / "logs" / "gunicorn.log"
        wait_for(lambda: '"GET /v1/models HTTP/1.1" 200' in log.read_text(), 20, "the line")
        assert '"curl/9"' in log.read_text()
        assert "route=/v1/models" in log.read_text()


def test_a_caller_that_is_too_slow_has_its_line(dify: FakeDify, tmp_path: Path) -> None:
    settings = {
        "DIFY_API_BASE": dify.base,
        "MODEL_CONFIG": '{"tiny":"app-k"}',
        "GUNICORN_WORKERS": "1",
    }
    worker = "tests.support.impatient_worker.ImpatientWorker"
    with running(tmp_path, settings, "--worker-class", worker) as service:
        with socket.create_connection(address(service), timeout=60) as caller:
            caller.sendall(b"GET / HT")
            assert b"HTTP/1.1 408" in receive_all(caller)
        said = fields(next(line for line in service.output().splitlines() if "=408" in line))
        assert (said["status"], said["ended"], said["method"]) == ("408", "request_timeout", "-")
