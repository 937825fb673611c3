"""Whatever a request holds is released, on every route and however its response ends.

What is held is counted from outside: by requests that are refused when no permit is free, and by
the descriptors and threads of the worker.
"""

import json
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from flask import Flask

from tests.faults.calls import PATH, connected, receive_all
from tests.faults.conftest import CASE_SECONDS
from tests.support.fake_dify import (
    CLOSE,
    FOREVER,
    PING,
    STREAM_HEAD,
    Chat,
    FakeDify,
    Request,
    Step,
    Steps,
    chunk,
    refused,
    streamed,
)
from tests.support.service import Service, free_variables, receive_until, running
from tests.support.waiting import wait_for

KEY, ADMIN = "key-of-a-caller", "key-of-an-admin"
PUBLIC = "https://ai.example.com"
MADE = "/files/tools/0ccfe981-f968-4678-80ae-335266227dac.png"
PICTURE = b"\x89PNG\r\n\x1a\n" + os.urandom(3_000_000)

# There are so few permits of each kind that a later request finds one that was kept.
PERMITS = 2
TIMES = PERMITS + 2

SOCKET = "socket:[]"

MODELS = ("ends", "draws", "refuses", "breaks", "fails", "waits", "talks")


def answer(request: Request) -> Steps:
    """A Dify whose apps answer as their names say."""
    path = request.path.partition("?")[0]
    if path == MADE:
        return refused(200, PICTURE, "image/png")
    if path == "/v1/info":
        return refused(200, {"name": "App", "mode": "chat"})
    if path == "/v1/parameters":
        return refused(200, {"user_input_form": []})
    if path != "/v1/chat-messages":
        return refused(404, {"code": "not_found", "message": "Not Found", "status": 404})
    return _answers(request.headers["authorization"].rpartition("-")[2])


def _answers(model: str) -> Steps:
    chat = Chat()
    match model:
        case "draws":
            url = f"{MADE}?timestamp=1795460797&nonce=05d3&sign=x%3D"
            file = chat.event("message_file", id="f", type="image", belongs_to="assistant", url=url)
            return streamed(chat.text("Here"), file, chat.end())
        case "refuses":
            return refused(400, {"code": "invalid_param", "message": "no city", "status": 400})
        case "breaks":
            return [*streamed(chat.text("Half"))[:-1], CLOSE]
        case "fails":
            failed = chat.event("error", code="completion_request_error", message="x", status=400)
            return streamed(chat.text("Half"), failed)
        case "waits":
            return [STREAM_HEAD, chunk(PING), 0.3, chunk(chat.text("word")), FOREVER]
        case "talks":
            return streamed(*[step for _ in range(600) for step in (chat.text("word "), 0.05)])
    return chat.says("Hello ", "and end")


@pytest.fixture
def dify(dify: FakeDify) -> FakeDify:
    dify.tells_of_its_app = True
    dify.answer = answer
    return dify


def variables(dify: FakeDify, **more: str) -> dict[str, str]:
    models = {m: {"key": f"app-secret-{m}", "type": "chat", "max_streams": PERMITS} for m in MODELS}
    return free_variables(
        dify.base,
        **{
            "MODEL_CONFIG": json.dumps(models),
            "GUNICORN_WORKERS": "1",
            "GUNICORN_THREADS": "6",
            "MAX_CONCURRENT_STREAMS": str(PERMITS),
            "OPENDIFY_API_KEYS": KEY,
            "OPENDIFY_ADMIN_KEYS": ADMIN,
            "CALLER_MAX_STREAMS": str(PERMITS),
            "PUBLIC_BASE_URL": PUBLIC,
            **more,
        },
    )


def question(model: str, stream: bool, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    return {"model": model, "stream": stream, "messages": messages, **more}


def ask(service: Service, model: str = "ends", stream: bool = False, **more: Any) -> httpx.Response:
    return httpx.post(
        service.url + PATH,
        json=question(model, stream, **more),
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=30,
        trust_env=False,
    )


def new_link(service: Service) -> str:
    """The path of a file that an app made, signed."""
    said = str(ask(service, "draws").json()["choices"][0]["message"]["content"])
    (link,) = re.findall(r"!\[.*\]\((.*)\)", said)
    return str(link).removeprefix(PUBLIC)


# --- what is asked -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A request to a route, and the status of its answer."""

    method: str
    path: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    key: str = KEY

    def raw(self) -> bytes:
        data = b"" if self.body is None else json.dumps(self.body).encode()
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: x"]
        lines += [f"Authorization: Bearer {self.key}"] if self.key else []
        lines += ["Content-Type: application/json"] if data else []
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(data)}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode() + data


def got(path: str, key: str = KEY, status: int = 200) -> list[Case]:
    """How a GET route can be asked, and refused."""
    return [
        Case("GET", path, status, key=key),
        Case("HEAD", path, status, key=key),
        Case("OPTIONS", path, 200, key=key),
        Case("PATCH", path, 405, key=key or KEY),
    ]


def of_files(link: str) -> list[Case]:
    tag = '"no-such-tag"'
    return [
        *got(link, key=""),
        Case("GET", link, 206, {"Range": "bytes=5-1000000"}, key=""),
        Case("GET", link, 206, {"Range": "bytes=-5"}, key=""),
        Case("HEAD", link, 206, {"Range": "bytes=5-9"}, key=""),
        Case("GET", link, 416, {"Range": "bytes=99999999-"}, key=""),
        Case("GET", link, 304, {"If-None-Match": "*"}, key=""),
        Case("HEAD", link, 304, {"If-None-Match": "*"}, key=""),
        Case("GET", link, 200, {"If-None-Match": tag}, key=""),
        Case("GET", f"{link}x", 403, key=""),
    ]


def prompt(model: str, stream: bool, **more: Any) -> dict[str, Any]:
    return {"model": model, "stream": stream, "prompt": "Hi", **more}


def message(model: str, stream: bool, **more: Any) -> dict[str, Any]:
    more |= {"stop_sequences": more.pop("stop")} if "stop" in more else {}
    return question(model, stream, max_tokens=100, **more)


def of_chats(path: str, body_of: Callable[..., dict[str, Any]]) -> list[Case]:
    """What is asked of an endpoint that answers; ``body_of`` makes the body of a request."""
    both = (True, False)
    return [
        *(Case("POST", path, 200, body=body_of("ends", stream)) for stream in both),
        *(Case("POST", path, 400, body=body_of("refuses", stream)) for stream in both),
        *(Case("POST", path, 200, body=body_of(name, True)) for name in ("breaks", "fails")),
        *(Case("POST", path, 502, body=body_of(name, False)) for name in ("breaks", "fails")),
        *(Case("POST", path, 200, body=body_of("ends", stream, stop=["and"])) for stream in both),
        Case("POST", path, 404, body=body_of("nobody", True)),
        Case("POST", path, 400, body={"model": "ends"}),
        Case("POST", path, 401, body=body_of("ends", True), key="wrong"),
        Case("OPTIONS", path, 200),
        Case("GET", path, 405),
    ]


def walk(link: str) -> dict[str, list[Case]]:
    """What is asked of each route; a rule that is not here fails the test."""
    mappings = "/v1/conversation/mappings"
    return {
        PATH: of_chats(PATH, question),
        "/v1/completions": of_chats("/v1/completions", prompt),
        "/v1/messages": of_chats("/v1/messages", message),
        "/v1/messages/count_tokens": [
            Case("POST", "/v1/messages/count_tokens", 200, body=question("ends", False)),
            Case("POST", "/v1/messages/count_tokens", 400, body={"model": "ends"}),
            Case("POST", "/v1/messages/count_tokens", 404, body=question("nobody", False)),
            Case("OPTIONS", "/v1/messages/count_tokens", 200),
            Case("GET", "/v1/messages/count_tokens", 405),
        ],
        "/v1/files/<token>/content": of_files(link),
        "/v1/models": got("/v1/models"),
        "/v1/models/<path:name>": [*got("/v1/models/ends"), *got("/v1/models/none", status=404)],
        "/healthz": got("/healthz", key=""),
        "/readyz": got("/readyz", key=""),
        "/metrics": [*got("/metrics", key=ADMIN), *got("/metrics", status=403)],
        "/openapi.json": got("/openapi.json"),
        mappings: [*got(mappings, key=ADMIN), *got(f"{mappings}?limit=x", key=ADMIN, status=400)],
        f"{mappings}/<conversation_id>": [
            Case("DELETE", f"{mappings}/none", 404, key=ADMIN),
            Case("OPTIONS", f"{mappings}/none", 200, key=ADMIN),
            Case("GET", f"{mappings}/none", 405, key=ADMIN),
        ],
        "/v1/conversation/cleanup": [
            Case("POST", "/v1/conversation/cleanup", 200, body={}, key=ADMIN),
            Case("POST", "/v1/conversation/cleanup", 400, body=[1], key=ADMIN),
            Case("OPTIONS", "/v1/conversation/cleanup", 200, key=ADMIN),
            Case("GET", "/v1/conversation/cleanup", 405, key=ADMIN),
        ],
    }


# --- how it ends -------------------------------------------------------------------------------


def read_whole(service: Service, case: Case) -> None:
    """The permits of the request before must be free by now, whatever that was."""
    with connected(service) as connection:
        connection.sendall(case.raw())
        received = receive_all(connection)
    assert int(received.split(b" ")[1]) == case.status, (case, received[:1000])


def leave_before(service: Service, case: Case) -> None:
    with connected(service) as connection:
        connection.sendall(case.raw())


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset_before(service: Service, case: Case) -> None:
    with connected(service) as connection:
        reset(connection)
        connection.sendall(case.raw())


def leave_within(service: Service, case: Case) -> None:
    with connected(service) as connection:
        connection.sendall(case.raw())
        connection.recv(16)


def leave_after(service: Service, case: Case) -> None:
    """Half-closes first, so that the caller seems to have left while the answer is made."""
    with connected(service) as connection:
        connection.sendall(case.raw())
        connection.shutdown(socket.SHUT_WR)
        receive_all(connection)


LEAVING = [leave_before, reset_before, leave_within, leave_after]


# --- what is held ------------------------------------------------------------------------------


def descriptors(service: Service) -> list[str]:
    (worker,) = service.workers()
    found = []
    for name in os.listdir(f"/proc/{worker}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(re.sub(r"\d+", "", os.readlink(f"/proc/{worker}/fd/{name}")))
    return sorted(found)


def check_all_is_free(service: Service, link: str) -> None:
    """All permits of each kind can be acquired at once."""
    for stream in (True, False):
        wait_for(
            lambda stream=stream: ask(service, stream=stream).status_code == 200, what="a permit"
        )
    for _ in range(TIMES):
        assert ask(service, stream=True).status_code == 200
        assert httpx.get(service.url + link, trust_env=False, timeout=20).content == PICTURE
    with ExitStack() as stack:  # and all at the same time
        for _ in range(PERMITS):
            connection = stack.enter_context(connected(service))
            connection.sendall(Case("POST", PATH, body=question("waits", True)).raw())
            assert b" 200 " in receive_until(connection, b"word")[:20]
    wait_for(lambda: ask(service).status_code == 200, what="a permit")


def test_every_route_releases_what_it_holds(dify: FakeDify, app: Flask, tmp_path: Path) -> None:
    signal.alarm(2 * CASE_SECONDS)
    rules = {rule.rule: set(rule.methods or ()) for rule in app.url_map.iter_rules()}
    with running(tmp_path, variables(dify)) as service:
        link = new_link(service)
        routes = walk(link)
        assert set(routes) == set(rules), "a route is not walked"
        assert all(rules[rule] <= {case.method for case in routes[rule]} for rule in rules)
        check_all_is_free(service, link)  # which begins all threads that there will be
        for leave in LEAVING:
            leave(service, Case("POST", PATH, body=question("waits", True)))
        check_all_is_free(service, link)
        held = until_quiet(service)
        for case in TIMES * [case for cases in routes.values() for case in cases]:
            read_whole(service, case)
        check_all_is_free(service, link)
        for cases in routes.values():
            for leave in TIMES * LEAVING:
                leave(service, cases[0])
            check_all_is_free(service, link)
        left = until_quiet(service)
        assert [kind for kind in left if kind != SOCKET] == [
            kind for kind in held if kind != SOCKET
        ]
        # Those to Dify that are idle are closed when the pool is used the next time.
        assert left.count(SOCKET) <= held.count(SOCKET) + PERMITS
        assert service.threads() <= 6 + 8
        assert "Traceback" not in service.output()


def until_quiet(service: Service) -> list[str]:
    """Which kinds of descriptors are open when no connection to Dify is kept any more."""
    before: list[str] = []
    while before != (now := descriptors(service)):
        before = now
        time.sleep(3.0)
    return now


def leave(connection: socket.socket) -> None:
    """Hangs up."""


@pytest.mark.parametrize("model", ["waits", "talks"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("end", [leave, reset], ids=lambda end: end.__name__)
def test_a_run_whose_caller_left_releases_its_permit_when_it_is_stopped(
    dify: FakeDify, tmp_path: Path, model: str, stream: bool, end: Callable[..., None]
) -> None:
    with running(tmp_path, variables(dify)) as service:
        for number in range(TIMES):
            with connected(service) as connection:
                connection.sendall(Case("POST", PATH, body=question(model, stream)).raw())
                wait_for(lambda number=number: len(dify.asked()) > number, 5, "the question")
                end(connection)
            wait_for(lambda: len(dify.stopped()) == len(dify.asked()), 5, "the stop")
            time.sleep(0.1)  # until Dify has answered that


def test_a_worker_that_retires_keeps_no_permit(dify: FakeDify, tmp_path: Path) -> None:
    retiring = {"GUNICORN_MAX_REQUESTS": "5", "GUNICORN_MAX_REQUESTS_JITTER": "0"}
    with running(tmp_path, variables(dify, **retiring)) as service:
        first, link = service.workers(), new_link(service)
        for number in range(8 * TIMES):
            assert ask(service, stream=bool(number % 2)).status_code == 200
            assert httpx.get(service.url + link, trust_env=False).content == PICTURE
        assert service.workers() != first
        with ExitStack() as stack:
            streams = [stack.enter_context(connected(service)) for _ in range(PERMITS)]
            for stream in streams:
                stream.sendall(Case("POST", PATH, body=question("talks", True)).raw())
                receive_until(stream, b"word")
            second = service.workers()
            service.process.send_signal(signal.SIGHUP)
            wait_for(lambda: set(service.workers()) - set(second), 20, "a fresh worker")
        wait_for(lambda: len(dify.stopped()) == PERMITS, what="the stops")
        wait_for(lambda: not set(service.workers()) & set(second), 20, "the end of the old worker")
        check_all_is_free(service, link)
        assert service.stop() == 0


# --- the next request --------------------------------------------------------------------------


ONE = {
    "GUNICORN_THREADS": "4",
    "MAX_CONCURRENT_STREAMS": "1",
    "CALLER_MAX_STREAMS": "1",
    "MODEL_CONFIG": json.dumps(
        {m: {"key": f"app-secret-{m}", "type": "chat", "max_streams": 1} for m in MODELS}
    ),
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_permit_is_free_before_the_caller_has_the_last_bytes(
    dify: FakeDify, tmp_path: Path, stream: bool
) -> None:
    with running(tmp_path, variables(dify, **ONE)) as service:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(trust_env=False, timeout=30, headers=headers) as kept:
            for _ in range(200):
                response = kept.post(service.url + PATH, json=question("ends", stream))
                assert response.status_code == 200, response.text
        for _ in range(100):
            assert until_last_word(service, "ends", stream) == 200
        for name in ("breaks", "fails"):
            for _ in range(20):
                assert until_last_word(service, name, stream) == (200 if stream else 502)
        for _ in range(20):
            assert until_last_word(service, "talks", stream, stop=["d w"]) == 200


def until_last_word(service: Service, model: str, stream: bool, **more: Any) -> int:
    """Asks on a new connection, left as soon as the last byte that matters is there."""
    with connected(service) as connection:
        raw = Case("POST", PATH, body=question(model, stream, **more)).raw()
        connection.sendall(raw.replace(b"Connection: close\r\n", b""))
        received = receive_until(connection, b"\r\n\r\n")
        head, _, body = received.partition(b"\r\n\r\n")
        if b"chunked" in head:
            while b"data: [DONE]\n\n" not in body:
                body += connection.recv(65536)
        else:
            (length,) = re.findall(rb"Content-Length: (\d+)", head)
            while len(body) < int(length):
                body += connection.recv(65536)
    return int(received.split(b" ")[1])


# --- runs that were left -----------------------------------------------------------------------


class Runs:
    """Counts the runs of a Dify that says nothing until ``speak``, and ends those it stops."""

    def __init__(self) -> None:
        self.speak = threading.Event()
        self.stopped = threading.Event()
        self.running = self.most = 0

    def answer(self, request: Request) -> Iterator[Step]:
        self.running += 1
        self.most = max(self.most, self.running)
        chat = Chat()
        self.speak.wait(60)
        yield STREAM_HEAD + chunk(chat.text("word"))
        self.stopped.wait(60)
        self.running -= 1
        yield CLOSE

    def stop(self) -> Iterator[Step]:
        self.stopped.set()
        yield 0.2
        yield from refused(200, {"result": "success"})


def is_of_waits(request: Request) -> bool:
    is_question = request.path == "/v1/chat-messages"
    return is_question and request.headers["authorization"].endswith("waits")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("limit", ["caller", "model"])
def test_a_run_whose_caller_left_before_its_first_token_counts_until_it_is_stopped(
    dify: FakeDify, tmp_path: Path, limit: str, stream: bool
) -> None:
    runs = Runs()
    dify.answer_stop = runs.stop()
    dify.answer = lambda request: runs.answer(request) if is_of_waits(request) else answer(request)
    config = {"key": "app-secret-waits", "type": "chat"}
    models = {"waits": config, "ends": {"key": "app-secret-ends", "type": "chat"}}
    if limit == "model":
        models["waits"] = {**config, "max_streams": 1}  # type: ignore[dict-item]
    settings = variables(
        dify,
        MODEL_CONFIG=json.dumps(models),
        CALLER_MAX_STREAMS="1" if limit == "caller" else "0",
        GUNICORN_THREADS="3",
        MAX_CONCURRENT_STREAMS="1",
    )
    other = "ends" if limit == "model" else "waits"
    with running(tmp_path, settings) as service:
        with connected(service) as connection:
            connection.sendall(Case("POST", PATH, body=question("waits", stream)).raw())
            wait_for(dify.asked, what="the question")
        time.sleep(1)
        for _ in range(8):
            refusal = ask(service, "waits", stream)
            assert refusal.status_code == (429 if limit == "caller" else 503)
            assert int(refusal.headers["Retry-After"]) > 0
        assert httpx.get(f"{service.url}/healthz", trust_env=False).status_code == 200
        if limit == "model":  # the thread and its permit are free for others
            assert ask(service, other, stream).status_code == 200
        runs.speak.set()
        wait_for(lambda: runs.stopped.is_set(), what="the stop")
        dify.answer = answer
        wait_for(lambda: ask(service, "ends", stream).status_code == 200, what="the permit")
        assert runs.most == 1


# --- readers that are slow ---------------------------------------------------------------------


class Reader:
    """Reads a file at a pace, on a thread. ``ended_after`` is in seconds, None while it lasts."""

    def __init__(self, service: Service, link: str, bytes_per_second: int) -> None:
        self.received = 0
        self.ended_after: float | None = None
        self._pace = bytes_per_second
        self._connection = socket.socket()
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        parts = urlsplit(service.url)
        self._connection.connect((parts.hostname, parts.port))
        self._connection.settimeout(60)
        self._connection.sendall(Case("GET", link, key="").raw())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        begun_at = time.monotonic()
        with suppress(OSError):
            while piece := self._connection.recv(self._pace // 10):
                self.received += len(piece)
                time.sleep(max(0.0, begun_at + self.received / self._pace - time.monotonic()))
        self.ended_after = time.monotonic() - begun_at

    def close(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._connection.close()


def test_slow_readers_of_files_take_no_permits_of_responses_and_are_disconnected(
    dify: FakeDify, tmp_path: Path
) -> None:
    """20 kB/s is a slow mobile line, the others are callers who want to hold a permit."""
    signal.alarm(2 * CASE_SECONDS)
    settings = variables(dify, GUNICORN_THREADS="16", MAX_CONCURRENT_STREAMS="12")
    with running(tmp_path, settings) as service, ExitStack() as stack:
        link = new_link(service)
        readers = [Reader(service, link, pace) for pace in (20_000, 5_000, 1_700)]
        for reader in readers:
            stack.callback(reader.close)
        wait_for(lambda: all(reader.received for reader in readers), what="the first bytes")
        refusal = httpx.get(service.url + link, trust_env=False)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "overloaded")
        assert int(refusal.headers["Retry-After"]) > 0
        for _ in range(4 * TIMES):
            assert ask(service).status_code == 200
        wait_for(lambda: len(cut_off(service)) == 2, 100, "the end of the slow ones")
        assert service.output().count("its caller reads too slowly") == 2
        assert httpx.get(service.url + link, trust_env=False).content == PICTURE
        assert readers[0].ended_after is None
        assert readers[0].received > 300_000


def test_responses_and_a_slow_reader_of_a_file_leave_a_thread_free(
    dify: FakeDify, tmp_path: Path
) -> None:
    settings = variables(dify, GUNICORN_THREADS="4", MAX_CONCURRENT_STREAMS="3")
    models = {"waits": "app-secret-waits", "draws": "app-secret-draws"}
    settings |= {"MODEL_CONFIG": json.dumps(models), "CALLER_MAX_STREAMS": "9"}
    with running(tmp_path, settings) as service, ExitStack() as stack:
        link = new_link(service)
        reader = Reader(service, link, 20_000)
        stack.callback(reader.close)
        wait_for(lambda: reader.received, what="the first bytes")
        case = Case("POST", PATH, body=question("waits", stream=True))
        for _ in range(2):
            stream = stack.enter_context(connected(service))
            stream.sendall(case.raw())
            receive_until(stream, b"word")
        assert ask(service, "waits", stream=True).status_code == 503
        assert httpx.get(f"{service.url}/healthz", timeout=10, trust_env=False).is_success
        assert reader.ended_after is None


def cut_off(service: Service) -> list[str]:
    return re.findall(r"route=/v1/files/.* ended=slow_reader", service.output())
