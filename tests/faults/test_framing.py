"""Requests whose framing promises what does not come, or is none: they hold no thread, and are
refused before anything of them reaches the application."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.faults.calls import PATH, ask, connected, question, raw_head, receive_all
from tests.faults.chaos import Chaos
from tests.faults.conftest import started
from tests.support import service
from tests.support.waiting import wait_for

GOOD = "carriage-returns"
THREADS = 8
KEY = {"Authorization": "Bearer key"}
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def without_keys(
    chaos: Chaos, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[service.Service]:
    folder = tmp_path_factory.mktemp("open")
    with started(folder, chaos, GUNICORN_THREADS=str(THREADS), MAX_BODY_MB="1") as running:
        yield running


@pytest.fixture(scope="module")
def with_keys(chaos: Chaos, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    keys = {"OPENDIFY_API_KEYS": "key", "OPENDIFY_ADMIN_KEYS": "admin"}
    folder = tmp_path_factory.mktemp("keys")
    with started(folder, chaos, GUNICORN_THREADS=str(THREADS), MAX_BODY_MB="1", **keys) as running:
        yield running


def status_of(answer: bytes) -> int:
    head, _, text = answer.partition(b"\r\n\r\n")
    if text:
        assert list(json.loads(text)) == ["error"], answer
    return int(head.split()[1])


def one_answer(connection: socket.socket) -> bytes:
    """The first answer whole, or what came of it before the end."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
            head, end, text = received.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if b"content-length:" in line]
            if end and lengths and len(text) >= int(lengths[0][15:]):
                break
    return received


@contextlib.contextmanager
def trickling(connections: list[socket.socket]) -> Iterator[None]:
    """Meanwhile a byte comes on each of them every now and then."""
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.5):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(b"a")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# After each of these a byte comes now and then, and what would end it never does.
MALFORMED = {
    "an end without CR": b"0\n\n",
    "half an end without CR": b"0\r\n\n",
    "no size": b"zz\r\n",
    "no size and no CR": b"zz\n",
    "half a size that is none": b"g",
    "an empty line": b"\r\n",
    "a bare LF": b"\n",
    "a blank before": b" 5\r\n",
    "a blank after": b"5 \r\nhello",
    "0x": b"0x5\r\nhello",
    "a sign": b"+5\r\nhello",
    "a negative size": b"-5\r\nhello",
    "an underscore": b"1_0\r\nhello",
    "many digits": b"0" * 40 + b"5\r\nhello",
    "a size without CR": b"5\nhello",
    "no line end after the data": b"5\r\nhello5\r\n",
    "a bare LF after the data": b"5\r\nhello\n5\r\n",
    "a huge extension": b"5;" + b"a" * 9000,
    "an extension of blanks": b"5" + b" " * 9000,
    "an extension with an open quote": b'5;a="' + b"b" * 5000,
    "a bare CR in an extension": b"5;a\rb",
    "endless trailers": b"5\r\nhello\r\n0\r\n" + b"A: b\r\n" * 5000,
    "an endless trailer": b"0\r\nA: " + b"b" * 20_000,
    "a trailer without CR": b"0\r\nA: b\nB: c",
    "a trailer that is no field": b"0\r\nnonsense\r\n\r\n",
    "a trailer for the framing": b"0\r\nContent-Length: 5\r\n\r\n",
    "tiny chunks": b"1\r\n{\r\n" * 60_000,
}
UNFINISHED = {
    "no body": b"",
    "half a size": b"5",
    "a size": b"5\r\n",
    "half a chunk": b"ffff\r\n{",
    "a chunk": b"5\r\nhello\r\n",
    "half an end": b"0\r\n",
    "half a trailer": b"0\r\nA: b\r\n",
    "half an extension": b"5;a=",
}


def hold(running: service.Service, head: bytes, *bodies: bytes) -> None:
    """More callers than there are threads send these and then a byte now and then; health and a
    question are answered all the same."""
    with contextlib.ExitStack() as stack:
        held = []
        for number in range(2 * THREADS):
            held.append(stack.enter_context(connected(running)))
            with contextlib.suppress(ConnectionError):
                held[-1].sendall(head + bodies[number % len(bodies)])
        stack.enter_context(trickling(held))
        for _ in range(2):
            response = httpx.get(f"{running.url}/healthz", timeout=5, trust_env=False)
            assert response.status_code == 200
            answer = ask(running, question(GOOD), headers=KEY, timeout=10)
            assert (answer.status, answer.said()) == (200, "All is well")
            threading.Event().wait(0.7)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_chunks_are_refused_at_once(without_keys: service.Service, name: str) -> None:
    for key in ([], ["Authorization: Bearer key"]):
        with connected(without_keys) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(raw_head(None, CHUNKED, *key) + MALFORMED[name])
            answer = one_answer(connection)
        assert status_of(answer) == 400
        assert b'"invalid_http"' in answer, "the application was asked"


def test_malformed_chunks_hold_no_thread(
    without_keys: service.Service, with_keys: service.Service
) -> None:
    bodies = [body for body in MALFORMED.values() if len(body) < 30_000]
    hold(without_keys, raw_head(None, CHUNKED), *bodies)
    hold(with_keys, raw_head(None, CHUNKED), *bodies)
    hold(with_keys, raw_head(None, CHUNKED, "Authorization: Bearer key"), *bodies)


@pytest.mark.parametrize("body", [b"0\n\n", b"zz\n"], ids=["end", "size"])
def test_no_thread_is_held_by_the_reported_bodies(
    without_keys: service.Service, with_keys: service.Service, body: bytes
) -> None:
    hold(with_keys, raw_head(None, CHUNKED), body)
    hold(without_keys, raw_head(None, CHUNKED), body)


BEGUN: dict[str, tuple[dict[str, str], int | None, tuple[str, ...], list[bytes]]] = {
    "chunks": ({}, None, (CHUNKED,), list(UNFINISHED.values())),
    "a length": ({}, 100_000, (), [b"", b"{", b"{" * 90_000]),
    "too large": ({}, 10**9, (), [b"", b"{" * 90_000]),
    "nowhere": ({"path": "/nowhere"}, 50, (), [b"", b"{"]),
    "health": ({"path": "/healthz"}, 50, (), [b"", b"{"]),
}


@pytest.mark.parametrize("key", [(), ("Authorization: Bearer key",)], ids=["stranger", "key"])
@pytest.mark.parametrize("name", BEGUN)
def test_unfinished_bodies_hold_no_thread(
    without_keys: service.Service, with_keys: service.Service, name: str, key: tuple[str, ...]
) -> None:
    where, length, fields, bodies = BEGUN[name]
    head = raw_head(length, *fields, *key, **where)
    hold(with_keys, head, *bodies)
    if not key:
        hold(without_keys, head, *bodies)


# --- who is not to be answered has no body -----------------------------------------------------


def told(running: service.Service, head: bytes, begun: bytes = b"") -> bytes:
    """The answer to a request whose body does not come, up to the end of the connection."""
    with connected(running) as connection:
        connection.sendall(head + begun)
        return receive_all(connection)


WITHOUT_A_KEY = [[], ["Authorization: Bearer wrong"], ["Authorization: Basic a2V5"]]
BODIES = {
    "a length": (raw_head(50_000), b""),
    "a begun length": (raw_head(50_000), b"{" * 1000),
    "chunks": (raw_head(None, CHUNKED), b""),
    "begun chunks": (raw_head(None, CHUNKED), b"5\r\nhel"),
    "waiting": (raw_head(50_000, "Expect: 100-continue"), b""),
    "too large": (raw_head(10**9), b""),
}


@pytest.mark.parametrize("key", WITHOUT_A_KEY, ids=["none", "wrong", "basic"])
@pytest.mark.parametrize("name", BODIES)
def test_without_a_key_no_body_is_waited_for(
    with_keys: service.Service, name: str, key: list[str]
) -> None:
    head, begun = BODIES[name]
    fields = "".join(f"{line}\r\n" for line in key).encode()
    answer = told(with_keys, head.removesuffix(b"\r\n") + fields + b"\r\n", begun)
    assert status_of(answer) == 401
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in answer
    whole = told(with_keys, raw_head(2, *key, "Connection: close") + b"{}")
    assert whole.partition(b"\r\n\r\n")[2] == answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/nowhere", 404), ("PUT", PATH, 405), ("GET", "/v1/models/nobody", 404)],
)
def test_no_body_is_waited_for_where_nobody_reads_it(
    with_keys: service.Service, method: str, path: str, status: int
) -> None:
    head = raw_head(5000, "Authorization: Bearer key", method=method, path=path)
    assert status_of(told(with_keys, head)) == status


@pytest.mark.parametrize("path", [PATH, f"{PATH}/", PATH.replace("/c", "//c")])
@pytest.mark.parametrize("key", ["key", "admin"])
def test_with_a_key_the_body_is_asked_for(with_keys: service.Service, key: str, path: str) -> None:
    data = json.dumps(question(GOOD)).encode()
    with connected(with_keys) as connection:
        fields = [f"Authorization: Bearer {key}", "Expect: 100-continue", "Connection: close"]
        connection.sendall(raw_head(len(data), *fields, path=path))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(data)
        answer = receive_all(connection)
    assert b" 200 OK" in answer[:20]
    assert b"All is well" in answer


def test_who_sends_a_large_body_without_a_key_sees_the_answer(with_keys: service.Service) -> None:
    data = b"{" * 900_000
    with connected(with_keys) as connection:
        connection.sendall(raw_head(len(data)) + data)
        assert status_of(receive_all(connection)) == 401


def test_a_body_that_was_not_read_is_no_request(with_keys: service.Service) -> None:
    data = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(with_keys) as connection:
        connection.sendall(raw_head(5 * len(data)))
        for _ in range(5):
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
        answer = receive_all(connection)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status_of(answer) == 401


def test_requests_that_follow_a_chunked_one_are_answered(with_keys: service.Service) -> None:
    """The first is refused for its key; its body is whole, so that the next one is known."""
    chunked = raw_head(None, CHUNKED) + b'1;a="b"\r\n{\r\n1\r\n}\r\n0\r\nA: b\r\n\r\n'
    data = json.dumps(question(GOOD)).encode()
    asked = raw_head(len(data), "Authorization: Bearer key", "Connection: keep-alive, close")
    with connected(with_keys) as connection:
        connection.sendall(chunked + asked + data + chunked)
        answer = receive_all(connection)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"HTTP/1.1 200 OK" in answer
    assert b"Connection: close" in answer


# --- memory --------------------------------------------------------------------------------------


def test_incomplete_bodies_do_not_block_others(without_keys: service.Service) -> None:
    """There is memory for two of the largest, of 1 MB."""
    data = json.dumps(question(GOOD, text="word " * 60_000)).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(connected(without_keys))
            connection.sendall(raw_head(1024 * 1024) + b"{" * 1_000_000)
        for _ in range(5):
            with connected(without_keys) as honest:
                honest.sendall(raw_head(len(data), "Connection: close") + data[:200_000])
                threading.Event().wait(0.2)
                honest.sendall(data[200_000:])
                assert receive_all(honest).startswith(b"HTTP/1.1 200 OK")
            connection = stack.enter_context(connected(without_keys))
            connection.sendall(raw_head(1024 * 1024) + b"{" * 1_000_000)


def test_a_body_beyond_the_limit_is_refused_with_its_name(with_keys: service.Service) -> None:
    key = "Authorization: Bearer key"
    piece = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    for head, body in [
        (raw_head(10**7, key), b"{"),
        (raw_head(10**15, key), b""),
        (raw_head(None, key, CHUNKED), b"9999999\r\n{"),
        (raw_head(None, key, CHUNKED), b"f" * 16 + b"\r\n"),
        (raw_head(None, key, CHUNKED), 2 * piece),
        (raw_head(10**7, key, "Expect: 100-continue"), b""),
    ]:
        answer = told(with_keys, head, body)
        assert status_of(answer) == 413
        assert b"MAX_BODY_MB" in answer
        assert answer.count(b"HTTP/1.1 ") == 1


# --- what proxies say --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"SCRIPT_NAME": "/public"},
        {"PATH_INFO": "/metrics"},
        {"SCRIPT_NAME": "/public", "PATH_INFO": "/metrics"},
        {"REMOTE_USER": "admin", "SCRIPT_NAME": "/else"},
        {"X-Forwarded-Proto": "https", "X-Forwarded-Ssl": "off"},
        {"X-Forwarded-Prefix": "/public", "X-Script-Name": "/public"},
    ],
)
def test_a_header_changes_no_path(with_keys: service.Service, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=with_keys.url, headers=headers, trust_env=False) as client:
        assert client.get("/public/metrics", headers=KEY).status_code == 404
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/models", headers=KEY).status_code == 200
    assert "Traceback" not in with_keys.output()


def test_at_the_end_nothing_unexpected_has_happened(
    without_keys: service.Service, with_keys: service.Service
) -> None:
    for running in (without_keys, with_keys):
        wait_for(lambda running=running: ask(running, question(GOOD), KEY).status == 200, 20)
        assert "Traceback" not in running.output()
