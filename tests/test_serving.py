"""The worker in which Gunicorn serves: real processes, sockets and signals.

``WORKER_CLASS=gthread pytest tests/test_serving.py`` shows what Gunicorn's own worker does.
"""

import contextlib
import json
import os
import re
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import Service, running
from tests.support.serving_app import digest
from tests.support.waiting import wait_for, wait_for_value

WORKER = os.environ.get("WORKER_CLASS", "opendify.worker.worker.Worker")
# Far above what anything here takes, far below what it takes when it waits for something slow.
SOON = 20.0


class Serve:
    """Starts services in one folder; closes the callers' connections at the end."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def __call__(self, workers: int, threads: int, *arguments: str, **variables: str) -> Service:
        numbers = {"GUNICORN_WORKERS": str(workers), "GUNICORN_THREADS": str(threads)}
        started = running(
            self._folder,
            numbers | variables,
            "--worker-class",
            WORKER,
            *arguments,
            application="tests.support.serving_app:app",
        )
        return self._stack.enter_context(started)

    def connect(self, service: Service, *, timeout: float = SOON) -> socket.socket:
        port = int(service.url.rpartition(":")[2])
        sock = socket.create_connection(("127.0.0.1", port), timeout)
        return self._stack.enter_context(sock)

    def send(self, service: Service, data: bytes, *, timeout: float = SOON) -> socket.socket:
        sock = self.connect(service, timeout=timeout)
        sock.sendall(data)
        return sock


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:
        yield Serve(tmp_path, stack)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker with eight threads, which survives all tests that ask for it."""
    with contextlib.ExitStack() as stack:
        yield Serve(tmp_path_factory.mktemp("service"), stack)(1, 8)


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /size HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def read_until(sock: socket.socket, end: bytes) -> bytes:
    found = b""
    while end not in found:
        data = sock.recv(65536)
        assert data, f"closed after {found!r}"
        found += data
    return found


def read_all(sock: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            found += data
    return found


def error_of(answer: bytes) -> tuple[int, dict[str, object]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/json" in head
    return int(head.split()[1]), json.loads(body)["error"]


def is_well(serve: Serve, service: Service) -> bool:
    try:
        with serve.send(service, get("/healthz", "Connection: close")) as sock:
            return b" 200 " in read_all(sock)[:20]
    except (TimeoutError, ConnectionError):
        return False


def worker_of(stream: socket.socket) -> int:
    return int(re.findall(rb"X-Pid: ([0-9]+)", read_until(stream, b"\r\n\r\n"))[0])


# A worker accepts what it can serve


def test_no_stream_waits_while_another_worker_has_a_thread_for_it(serve: Serve) -> None:
    service = serve(3, 4)
    for count in (12, 24, 36):
        streams = [serve.send(service, get("/stream?seconds=60")) for _ in range(12)]
        started = begun(streams)
        for stream in streams:
            stream.close()
        assert len(started) == 12
        wait_for_value(lambda: service.output().count("closed stream"), count)


def begun(streams: list[socket.socket], seconds: float = SOON) -> list[socket.socket]:
    """Those that got their first bytes soon."""
    found: list[socket.socket] = []
    until = time.monotonic() + seconds
    while len(found) < len(streams) and (left := until - time.monotonic()) > 0:
        waiting = [stream for stream in streams if stream not in found]
        found += select.select(waiting, [], [], left)[0]
    return found


def test_a_full_worker_accepts_again_as_soon_as_a_thread_is_free(serve: Serve) -> None:
    service = serve(1, 2)
    streams = [serve.send(service, get("/stream?seconds=2")) for _ in range(2)]
    assert len(begun(streams)) == 2
    late = serve.send(service, get("/healthz"))
    assert not select.select([late], [], [], 1.0)[0]
    assert b" 200 " in read_until(late, b"\r\n\r\n")


def test_idle_kept_alive_connections_hold_no_thread_and_are_not_refused(serve: Serve) -> None:
    service = serve(1, 2, GUNICORN_KEEPALIVE="30")
    idle = [serve.send(service, get("/a")) for _ in range(40)]
    for _ in range(2):
        for sock in idle:
            assert b"Connection: keep-alive" in read_until(sock, digest(b"").encode())
            sock.sendall(get("/a"))
        assert is_well(serve, service)


def test_running_out_of_descriptors_ends_no_stream(serve: Serve) -> None:
    service = serve(1, 100)
    worker = service.workers()
    resource.prlimit(worker[0], resource.RLIMIT_NOFILE, (60, 60))
    streams = [serve.send(service, get("/stream?seconds=60")) for _ in range(80)]
    assert 20 < len(begun(streams, 2.0)) < 60
    for stream in streams[:70]:
        stream.close()
    assert is_well(serve, service)
    for stream in streams[70:]:
        assert b"200 OK" in read_until(stream, b"\r\n\r\n")
    assert service.workers() == worker


def test_a_worker_may_open_what_the_system_lets_it(serve: Serve) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    little = len(os.listdir("/proc/self/fd")) + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(little, hard), hard))
    try:
        service = serve(1, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    raised, _ = resource.prlimit(service.workers()[0], resource.RLIMIT_NOFILE)
    assert raised == (65536 if hard == resource.RLIM_INFINITY else min(hard, 65536))


# Slow callers

SLOW = {
    "headers": b"POST /size HTTP/1.1\r\nHost: x\r\n",
    "bodies": b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nslow",
    "chunks": b"POST /size HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nslow",
    "chunks that look ended": (
        b"POST /size HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n0\r\n\r\n"
    ),
    "bodies that are never read": (
        b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"
    ),
    "goodbyes": b"GET /healthz HTTP/1.0\r\n\r\n",
    "silence": b"",
}


@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW)
def test_slow_callers_do_not_keep_others_from_being_served(
    serve: Serve, service: Service, data: bytes
) -> None:
    for _ in range(300):
        serve.send(service, data)
    for _ in range(3):
        assert is_well(serve, service)


def test_a_flood_of_connections_is_bounded_and_spares_honest_uploads(serve: Serve) -> None:
    service = serve(1, 4, "--worker-connections", "54")
    body = os.urandom(300_000)
    upload = serve.send(service, post(body)[:200_000])
    flood = [serve.send(service, SLOW["headers"]) for _ in range(200)]
    wait_for(lambda: len(select.select(flood, [], [], 0)[0]) >= 150)
    upload.sendall(post(body)[200_000:])
    assert f"POST /size {len(body)} {digest(body)}".encode() in read_until(upload, b"POST /size")


@pytest.mark.faults
def test_callers_that_are_too_slow_get_an_error_and_are_disconnected(
    serve: Serve, service: Service
) -> None:
    begun_at = time.monotonic()
    head = serve.send(service, SLOW["headers"], timeout=60)
    body = serve.send(service, SLOW["bodies"], timeout=60)
    silent = serve.connect(service, timeout=60)
    deaf = serve.send(service, get("/big"), timeout=60)
    head.sendall(b"X-Slow: ")
    while not select.select([head], [], [], 1.0)[0]:
        assert time.monotonic() < begun_at + 30
        head.sendall(b"y")
    assert 14 < time.monotonic() - begun_at < 18
    assert error_of(read_all(head))[0] == 408
    assert read_all(silent) == b""
    assert error_of(read_all(body))[0] == 408
    assert 29 < time.monotonic() - begun_at < 33
    while "closed big" not in service.output():
        assert time.monotonic() < begun_at + 40
        time.sleep(0.2)
    assert "BlockingIOError" not in service.output()
    deaf.close()
    assert is_well(serve, service)


# The server's own answers

FIELD = f"X-Long: {'x' * 9000}"
REFUSED = {
    "no HTTP": (b"nonsense sk-secret\r\n\r\n", 400),
    "bare LF": (b"GET /?key=sk-secret HTTP/1.1\n", 400),
    "no colon": (get("/", "Authorization Bearer sk-secret"), 400),
    "two lengths": (get("/", "Content-Length: 1", "Content-Length: 2"), 400),
    "a length and chunks": (get("/", "Content-Length: 1", "Transfer-Encoding: chunked"), 400),
    "long line": (get(f"/{'x' * 5000}?sk-secret"), 414),
    "long field": (get("/", FIELD), 431),
    "many fields": (get("/", *[f"X-{i}: sk-secret" for i in range(200)]), 431),
    "endless head": (get("/", *[FIELD] * 20).removesuffix(b"\r\n\r\n"), 431),
    "unknown coding": (get("/", "Transfer-Encoding: secret"), 501),
    "expectation": (get("/", "Expect: secret"), 417),
    "error of the application": (get("/boom?sk-secret"), 500),
    "header of the application": (get("/header?sk-secret"), 500),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
def test_the_servers_own_errors_are_in_the_form_of_openai(
    serve: Serve, service: Service, data: bytes, status: int
) -> None:
    answer = read_all(serve.send(service, data))
    found, error = error_of(answer)
    assert found == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("api_error" if status == 500 else "invalid_request_error")
    assert b"secret" not in answer
    assert b"Connection: close" in answer
    assert "sk-secret" not in service.output()


def test_an_application_that_exits_takes_nobody_along(serve: Serve, service: Service) -> None:
    workers = service.workers()
    stream = serve.send(service, get("/stream?seconds=2"))
    assert read_all(serve.send(service, get("/exit"))) == b""
    assert b"complete" in read_until(stream, b"complete")
    assert is_well(serve, service)
    assert service.workers() == workers


# HTTP as Gunicorn speaks it


def test_requests_that_follow_each_other_are_kept_apart(serve: Serve, service: Service) -> None:
    chunked = (
        b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    many = [get("/a"), post(b"hello"), chunked, post(b"x" * 40_000), get("/b", "Connection: close")]
    answer = read_all(serve.send(service, b"".join(many)))
    assert re.findall(rb"(?:GET|POST) /\w+ \d+", answer) == [
        b"GET /a 0",
        b"POST /size 5",
        b"POST /c 3",
        b"POST /size 40000",
        b"GET /b 0",
    ]


@pytest.mark.parametrize("options", ["close", "keep-alive, close", "Upgrade,\tCLOSE, x"])
def test_a_connection_with_the_option_close_is_closed(
    serve: Serve, service: Service, options: str
) -> None:
    caller = serve.send(service, get("/a", f"Connection: {options}") + get("/b"))
    answer = read_all(caller)
    assert b"\r\nConnection: close\r\n" in answer
    assert re.findall(rb"GET /\w", answer) == [b"GET /a"]


WHOLE = b"".join(
    [
        b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b'5;a="b"\r\n\r\n0\r\n\r\n0\r\nX-Sum: x\r\n\r\n',
        b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        get("/end", "Connection: close"),
    ]
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_requests_may_come_in_pieces(serve: Serve, service: Service, size: int) -> None:
    sock = serve.connect(service)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for start in range(0, len(WHOLE), size):
        sock.sendall(WHOLE[start : start + size])
        time.sleep(0.002)
    answer = read_all(sock)
    assert f"POST /c 5 {digest(bytes([13, 10, 48, 13, 10]))}".encode() in answer
    assert f"POST /size 3 {digest(b'abc')}".encode() in answer
    assert b"GET /end 0" in answer


@pytest.mark.parametrize("form", ["length", "chunks"])
def test_a_large_body_arrives_unchanged(serve: Serve, service: Service, form: str) -> None:
    body = os.urandom(5_000_000)
    if form == "length":
        data = post(body, "Connection: close")
    else:
        head = get("/size", "Transfer-Encoding: chunked", "Connection: close")
        pieces = [body[at : at + 70_000] for at in range(0, len(body), 70_000)]
        chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
        data = head.replace(b"GET", b"POST") + b"".join([*chunks, b"0\r\n\r\n"])
    answer = read_all(serve.send(service, data))
    assert f"POST /size {len(body)} {digest(body)}".encode() in answer


@pytest.mark.parametrize("pause", [0.0, 0.5])
def test_a_request_that_expects_it_gets_100_continue_once(
    serve: Serve, service: Service, pause: float
) -> None:
    data = post(b"hello", "Expect: 100-continue", "Connection: close")
    sock = serve.send(service, data.removesuffix(b"hello"))
    if pause:
        assert read_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    sock.sendall(b"hello")
    answer = read_all(sock)
    # without a pause the body may be there with the head, and nobody needs to be told
    assert answer.count(b"100 Continue") <= (0 if pause else 1)
    assert b"POST /size 5" in answer


def test_http_1_0_and_head(serve: Serve, service: Service) -> None:
    assert b"GET /a 0" in read_all(serve.send(service, b"GET /a HTTP/1.0\r\n\r\n"))
    head = get("/a", "Connection: close").replace(b"GET", b"HEAD")
    assert read_all(serve.send(service, head)).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_that_ends_too_early_reaches_no_application(
    serve: Serve, service: Service, framing: str
) -> None:
    data = post(b"0123456789") if framing == "length" else SLOW["chunks"]
    short = serve.send(service, data[:-2])
    short.shutdown(socket.SHUT_WR)
    assert error_of(read_all(short))[0] == 400


def test_an_answer_can_be_read_whole_though_the_body_was_not(
    serve: Serve, service: Service
) -> None:
    head = b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"
    caller = serve.send(service, head + bytes(3_000_000))
    answer = b""
    while data := caller.recv(65536):  # to a regular end, which takes nothing away
        answer += data
    assert b"refused" in answer


@pytest.mark.parametrize("path", [b"refused", b"broken"])
@pytest.mark.parametrize("begun", [b"", b"hel"])
def test_a_body_that_the_application_does_not_accept_is_not_waited_for(
    serve: Serve, service: Service, path: bytes, begun: bytes
) -> None:
    """Nor is one of which the application cannot say it."""
    head = post(b"hello").removesuffix(b"hello").replace(b"size", path)
    answer = read_all(serve.send(service, head + begun))
    assert b"POST /%b 0 " % path in answer
    assert b"\r\nConnection: close\r\n" in answer
    whole = serve.send(service, head + b"hello")
    assert b"POST /%b 5 " % path in read_until(whole, b"POST /")
    assert is_well(serve, service)


# The end of a worker


@pytest.mark.faults
def test_sigterm_lets_streams_end_and_accepts_no_more(serve: Serve) -> None:
    service = serve(2, 4)
    stream = serve.send(service, get("/stream?seconds=2"))
    read_until(stream, b"\r\n\r\n")
    service.process.terminate()
    time.sleep(0.5)
    with pytest.raises(ConnectionError):
        serve.connect(service).recv(1)
    assert b"complete" in read_until(stream, b"complete")
    assert service.process.wait(10) == 0


@pytest.mark.faults
def test_streams_get_an_error_before_the_worker_is_killed(serve: Serve) -> None:
    service = serve(2, 4, GUNICORN_GRACEFUL_TIMEOUT="2")
    streams = [serve.send(service, get("/stream?seconds=60")) for _ in range(4)]
    for stream in streams:
        read_until(stream, b"\r\n\r\n")
    begun_at = time.monotonic()
    service.process.terminate()
    for stream in streams:
        assert read_until(stream, b"\r\n0\r\n\r\n").endswith(
            b"ended by the application\n\r\n0\r\n\r\n"
        )
    assert 0.5 < time.monotonic() - begun_at < 2
    assert service.process.wait(5) == 0
    assert "SIGKILL" not in service.output()


@pytest.mark.faults
def test_a_stream_that_does_not_listen_is_closed_all_the_same(serve: Serve) -> None:
    service = serve(1, 4, GUNICORN_GRACEFUL_TIMEOUT="2")
    stream = serve.send(service, get("/stubborn?seconds=60"), timeout=10)
    service.process.terminate()
    assert b"complete" not in read_all(stream)
    assert service.process.wait(5) == 0
    assert "closed stubborn" in service.output()


@pytest.mark.faults
def test_sighup_loses_no_stream_however_long(serve: Serve) -> None:
    service = serve(1, 4, GUNICORN_GRACEFUL_TIMEOUT="1", GUNICORN_TIMEOUT="2")
    stream = serve.send(service, get("/stream?seconds=6"), timeout=15)
    old = worker_of(stream)
    service.process.send_signal(signal.SIGHUP)
    answer = read_until(stream, b"\r\n0\r\n\r\n")
    assert b"complete" in answer
    wait_for(lambda: old not in service.workers())
    assert len(service.workers()) == 1


@pytest.mark.faults
def test_the_end_of_the_master_after_sighup_is_the_end_of_all(serve: Serve) -> None:
    service = serve(1, 4, GUNICORN_GRACEFUL_TIMEOUT="2")
    stream = serve.send(service, get("/stream?seconds=60"), timeout=15)
    old = worker_of(stream)
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(service.workers()) == 2 and old in service.workers())
    service.process.terminate()
    assert b"ended by the application" in read_until(stream, b"\r\n0\r\n\r\n")
    assert service.process.wait(10) == 0


@pytest.mark.faults
def test_a_worker_that_is_killed_takes_only_its_own_along(serve: Serve) -> None:
    service = serve(2, 2)
    streams = [serve.send(service, get("/stream?seconds=3")) for _ in range(4)]
    workers = [worker_of(stream) for stream in streams]
    assert len(set(workers)) == 2
    os.kill(workers[0], signal.SIGKILL)
    for stream, worker in zip(streams, workers, strict=True):
        if worker != workers[0]:
            assert b"complete" in read_until(stream, b"complete")
    assert is_well(serve, service)


@pytest.mark.faults
def test_a_worker_that_loses_its_master_ends(serve: Serve) -> None:
    service = serve(1, 4, GUNICORN_GRACEFUL_TIMEOUT="2")
    stream = serve.send(service, get("/stream?seconds=60"), timeout=15)
    worker = worker_of(stream)
    service.process.kill()
    assert b"ended by the application" in read_until(stream, b"\r\n0\r\n\r\n")
    wait_for(lambda: not Path(f"/proc/{worker}").exists())


@pytest.mark.faults
def test_max_requests_replaces_a_worker_without_a_pause(serve: Serve) -> None:
    service = serve(1, 4, GUNICORN_MAX_REQUESTS="6", GUNICORN_MAX_REQUESTS_JITTER="0")
    stream = serve.send(service, get("/stream?seconds=3"), timeout=15)
    worker = worker_of(stream)
    for _ in range(8):
        assert is_well(serve, service)
        assert service.workers() == [worker]
    assert b"complete" in read_until(stream, b"\r\n0\r\n\r\n")
    wait_for(lambda: service.workers() not in ([], [worker]))
    assert is_well(serve, service)


@pytest.mark.faults
def test_workers_that_are_never_idle_are_replaced_one_at_a_time(serve: Serve) -> None:
    service = serve(
        2,
        4,
        GUNICORN_MAX_REQUESTS="5",
        GUNICORN_MAX_REQUESTS_JITTER="0",
        GUNICORN_GRACEFUL_TIMEOUT="1",
    )
    streams = [serve.send(service, get("/stream?seconds=4"), timeout=15) for _ in range(6)]
    workers = {worker_of(stream) for stream in streams}
    assert len(workers) == 2
    for _ in range(30):
        assert is_well(serve, service)
    assert set(service.workers()) == workers
    assert service.output().count("leaves new connections to others") == 1
    for stream in streams:
        assert b"complete" in read_until(stream, b"\r\n0\r\n\r\n")
    wait_for(lambda: not workers & set(service.workers()))
