"""The one way to Dify: connections that are reused, limited, replaced, tunnelled and closed."""

import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from opendify import errors
from opendify.config.models import Model
from opendify.upstream.cancellation import NEVER, Cancellation
from opendify.upstream.client import DifyClient
from opendify.upstream.event_stream import EventStream
from opendify.upstream.transport import pool as pool_module
from opendify.upstream.transport.pending_response import PendingResponse
from opendify.upstream.transport.pool import ConnectionPool
from opendify.upstream.transport.transport import PooledClient, PooledTransport
from tests.support.fake_dify import (
    CLOSE,
    FOREVER,
    RESET,
    STREAM_HEAD,
    Chat,
    FakeDify,
    Step,
    chunk,
    head,
    read_request,
    refused,
)
from tests.support.relays import HttpRelay, Relay, SecureRelay, Socks5Relay
from tests.support.service import ROOT, environment, free_port, free_variables
from tests.support.waiting import wait_for
from tests.test_client import KEY, events, failure, text

BODY = {"query": "Hi 你好", "user": "u"}


def limits(most: int | None = 20, seconds: float | None = 1.5, idle: int | None = 20) -> Any:
    return httpx.Limits(
        max_connections=most, max_keepalive_connections=idle, keepalive_expiry=seconds
    )


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def certified(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture
def secure_dify(certified: ssl.SSLContext) -> Iterator[FakeDify]:
    fake = FakeDify(tls=certified)
    yield fake
    fake.close()


@pytest.fixture
def transport(trusting: ssl.SSLContext) -> PooledTransport:
    return PooledTransport(limits(), verify=trusting)


@pytest.fixture
def pool(transport: PooledTransport) -> ConnectionPool:
    return transport.pool


@pytest.fixture
def http(transport: PooledTransport) -> Iterator[PooledClient]:
    with PooledClient(transport, trust_env=False) as http:
        yield http


@pytest.fixture
def client(http: PooledClient) -> DifyClient:
    return DifyClient(http, read_timeout=2)


@pytest.fixture
def model(dify: FakeDify) -> Model:
    return Model("tiny", KEY, dify.base)


@contextmanager
def connected(
    trusting: ssl.SSLContext, *, read_timeout: float = 2, proxies: Any = None, **options: Any
) -> Iterator[tuple[DifyClient, ConnectionPool]]:
    transport = PooledTransport(limits(**options), proxies, trusting)
    with PooledClient(transport, trust_env=False) as http:
        yield DifyClient(http, read_timeout), transport.pool


def open_stream(client: DifyClient, model: Model) -> EventStream:
    return client.stream(model, "/chat-messages", BODY, NEVER)


def finish(stream: EventStream) -> None:
    """Reads an answer to its end, however long that takes."""
    while stream.read(time.monotonic() + 10) is not None:
        pass
    stream.close()


def asked_on(dify: FakeDify) -> list[int]:
    """The number of the connection of each question."""
    return [request.connection for request in dify.asked()]


# --- one connection for all ------------------------------------------------------------------


def test_all_kinds_of_requests_share_one_connection(
    dify: FakeDify, client: DifyClient, model: Model, pool: ConnectionPool
) -> None:
    dify.answer = lambda r: Chat().says("Hello") if r.method == "POST" else refused(200, {"a": 1})
    for _ in range(2):
        assert text(client, model) == "Hello"
        assert client.call(model, "GET", "/meta") == {"a": 1}
        client.stop(model, "/chat-messages/task-1/stop", "u")
        wait_for(lambda: not len(client.background_reader))
        with client.download(model, f"{dify.base}/file", 5) as pieces:
            assert b"".join(pieces) == b'{"a": 1}'
        answer = client.post(model, "/a/stop", NEVER, data={"user": "u"})
        assert answer == {"result": "success"}
    assert (dify.connections, pool.count, pool.idle_count) == (1, 1, 1)


def test_a_large_question_arrives_whole_on_a_reused_connection(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    assert text(client, model) == "Hello"
    body = {"query": "x" * 5_000_000}
    finish(client.stream(model, "/chat-messages", body, NEVER))
    assert (dify.asked()[1].json, dify.connections) == (body, 1)


def test_a_question_goes_where_its_model_says(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    assert text(client, model) == "Hello"
    finish(client.stream(model, "/workflows/a b/run", BODY, NEVER))
    assert dify.requests[1].path == "/v1/workflows/a%20b/run"


def test_addresses_have_connections_of_their_own(dify: FakeDify, client: DifyClient) -> None:
    other = FakeDify(answer=lambda request: Chat().says("from the other"))
    try:
        for _ in range(3):
            assert text(client, Model("tiny", KEY, dify.base)) == "Hello"
            assert text(client, Model("other", "app-other", other.base)) == "from the other"
        assert (dify.connections, other.connections) == (1, 1)
        assert {r.headers["host"] for r in dify.requests} == {f"127.0.0.1:{dify.port}"}
        assert {r.headers["host"] for r in other.requests} == {f"127.0.0.1:{other.port}"}
        assert {r.headers["authorization"] for r in other.requests} == {"Bearer app-other"}
    finally:
        other.close()


def test_apps_at_one_address_share_a_connection_but_no_key(
    dify: FakeDify, client: DifyClient
) -> None:
    keys = ["app-first", "app-second", "app-first", "app-second"]
    for key in keys:
        assert text(client, Model(key, key, dify.base)) == "Hello"
    assert [r.headers["authorization"] for r in dify.asked()] == [f"Bearer {key}" for key in keys]
    assert dify.connections == 1


def test_what_a_connection_is_used_for_is_forgotten_once_the_answer_begins(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    dify.answers = [Chat().says("one"), [STREAM_HEAD, chunk(Chat().text("a")), FOREVER]]
    assert text(client, model) == "one"
    large = "x" * 3_000_000
    stream = client.stream(model, "/chat-messages", {"query": large}, NEVER)
    assert stream.read(time.monotonic() + 5)
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, httpx.Request)]
    stream.close()


def test_a_cookie_is_dropped_and_all_other_headers_are_not(
    dify: FakeDify, http: PooledClient
) -> None:
    dify.answer = lambda r: [
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nX-Many: 1\r\nX-Many: 2\r\n"
        b"X-Odd: \xe9\r\nContent-Length: 0\r\n\r\n"
    ]
    for _ in range(2):
        response = http.get(f"{dify.base}/x")
        assert response.headers.get_list("x-many") == ["1", "2"]
        assert response.headers["x-odd"] == "é"
        assert "set-cookie" not in response.headers
    assert not any("cookie" in request.headers for request in dify.requests)
    assert len(http.cookies) == 0


# --- what a head may hold --------------------------------------------------------------------


@pytest.mark.parametrize("key", ["app\r\nX-Evil: 1", "app\nx", "app\0"])
def test_a_key_that_no_header_can_hold_goes_nowhere(
    dify: FakeDify, client: DifyClient, model: Model, pool: ConnectionPool, key: str
) -> None:
    assert text(client, model) == "Hello"
    evil = Model("evil", key, dify.base)
    assert type(failure(client, evil)) is errors.UpstreamUnreachable
    assert (pool.count, pool.idle_count) == (1, 1)
    assert text(client, model) == "Hello"
    assert [request.headers["authorization"] for request in dify.requests] == [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize("trace_id", ["a\r\nX-Evil: 1", "a\nb", "ä", "a b", "x" * 129])
def test_a_trace_that_is_no_name_is_not_sent(
    dify: FakeDify, client: DifyClient, model: Model, trace_id: str
) -> None:
    finish(client.stream(model, "/chat-messages", BODY, NEVER, trace_id))
    finish(client.stream(model, "/chat-messages", BODY, NEVER, "trace-1"))
    first, second = dify.asked()
    assert second.headers.pop("x-trace-id") == "trace-1"
    assert first.headers == second.headers


# --- how long a connection is kept -----------------------------------------------------------


def sweepers() -> list[threading.Thread]:
    """The threads that close what has expired."""
    return [one for one in threading.enumerate() if one.name == "idle-connections"]


def test_an_idle_connection_is_closed_in_time_though_nothing_is_asked(
    dify: FakeDify, model: Model, trusting: ssl.SSLContext
) -> None:
    with connected(trusting, seconds=0.6) as (client, pool):
        assert text(client, model) == "Hello"
        assert (pool.idle_count, len(dify._open)) == (1, 1)
        wait_for(lambda: not pool.count and not dify._open)
        assert text(client, model) == "Hello"
        assert dify.connections == 2


def test_a_connection_that_has_expired_is_not_used_though_it_is_not_closed_yet(
    dify: FakeDify, model: Model, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "SWEEP_SECONDS", 1.0)
    with connected(trusting, seconds=0.1) as (client, _):
        assert text(client, model) == "Hello"
        time.sleep(0.2)
        assert text(client, model) == "Hello"
        assert dify.connections == 2


@pytest.mark.parametrize(("seconds", "idle"), [(0, 20), (1.5, 0)])
def test_nothing_is_kept_where_nothing_is_to_be_kept(
    dify: FakeDify, model: Model, trusting: ssl.SSLContext, seconds: float, idle: int
) -> None:
    with connected(trusting, seconds=seconds, idle=idle) as (client, pool):
        assert text(client, model) == "Hello"
        assert pool.count == 0
        assert text(client, model) == "Hello"
        assert dify.connections == 2


def test_without_limits_all_is_kept(dify: FakeDify, model: Model, trusting: ssl.SSLContext) -> None:
    with connected(trusting, most=None, seconds=None, idle=None) as (client, pool):
        streams = [open_stream(client, model) for _ in range(30)]
        for stream in streams:
            finish(stream)
        assert (pool.count, pool.idle_count) == (30, 30)


def test_those_that_are_not_needed_expire_while_others_are_used(
    dify: FakeDify, model: Model, trusting: ssl.SSLContext
) -> None:
    with connected(trusting, seconds=1.2) as (client, pool):
        streams = [open_stream(client, model) for _ in range(4)]
        for stream in streams:
            finish(stream)
        assert pool.idle_count == 4
        deadline = time.monotonic() + 10
        while (pool.count, len(dify._open)) != (1, 1):
            assert time.monotonic() < deadline
            assert text(client, model) == "Hello"
            time.sleep(0.05)
        assert dify.connections == 4


def test_the_thread_that_closes_them_is_there_only_while_any_is_idle(
    dify: FakeDify, model: Model, trusting: ssl.SSLContext
) -> None:
    wait_for(lambda: not sweepers())
    with connected(trusting, seconds=0.5) as (client, pool):
        for _ in range(2):
            assert text(client, model) == "Hello"
            assert sweepers()
            wait_for(lambda: not pool.count and not sweepers())


def test_where_the_system_has_no_more_threads_nothing_is_kept(
    dify: FakeDify, model: Model, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with connected(trusting) as (client, pool):
        stream = open_stream(client, model)
        wait_for(dify.asked)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            assert stream.read(time.monotonic() + 5)
            finish(stream)
        assert pool.count == 0
        assert text(client, model) == "Hello"
        assert pool.count == 1


def test_no_more_is_kept_than_was_said(
    dify: FakeDify, model: Model, trusting: ssl.SSLContext
) -> None:
    with connected(trusting, idle=2) as (client, pool):
        streams = [open_stream(client, model) for _ in range(5)]
        for stream in streams:
            finish(stream)
        assert (pool.count, pool.idle_count, dify.connections) == (2, 2, 5)


def test_a_client_that_is_closed_keeps_nothing(
    dify: FakeDify, model: Model, http: PooledClient, pool: ConnectionPool
) -> None:
    client = DifyClient(http, 2)
    stream = open_stream(client, model)
    assert text(client, model) == "Hello"
    http.close()
    assert pool.count == 1
    finish(stream)
    assert pool.count == 0
    wait_for(lambda: not dify._open)


# --- what happens to it meanwhile ------------------------------------------------------------


UNASKED = [
    pytest.param([CLOSE], id="its end"),
    pytest.param([RESET], id="a reset"),
    pytest.param([b"HTTP/1.1 408 Too slow\r\nContent-Length: 0\r\n\r\n"], id="an answer"),
    pytest.param([b"x"], id="garbage"),
]


@pytest.mark.parametrize("steps", UNASKED)
@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "TLS"])
def test_a_connection_on_which_something_came_unasked_is_never_used(
    dify: FakeDify,
    secure_dify: FakeDify,
    client: DifyClient,
    steps: list[Step],
    is_secure: bool,
) -> None:
    fake = secure_dify if is_secure else dify
    said = threading.Event()

    def answer() -> Iterator[Step]:
        yield from Chat().says("one")
        yield 0.05
        yield from steps
        said.set()

    fake.answers = [answer()]
    model = Model("tiny", KEY, fake.base)
    assert text(client, model) == "one"
    said.wait(1)
    time.sleep(0.05)
    assert text(client, model) == "Hello"
    assert asked_on(fake) == [1, 2]


def test_one_that_was_closed_does_not_stop_the_others_from_being_used(
    dify: FakeDify, client: DifyClient, model: Model, pool: ConnectionPool
) -> None:
    dify.answers = [Chat().says("one"), [*Chat().says("two"), CLOSE]]
    streams = [open_stream(client, model) for _ in range(2)]
    for stream in streams:
        finish(stream)
    idle = [connection for group in pool._idle.values() for connection in group]
    wait_for(lambda: not all(one.is_usable(0.0) for one in idle))  # the end of one has arrived
    # Either of the two may have got the answer that ends with the connection.
    assert text(client, model) == "Hello"
    assert dify.connections == 2


class Reader:
    """A Dify that answers one question, and then does with the connection what the test says."""

    def __init__(self, then: Callable[[socket.socket], None]) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._then = then
        self.base = f"http://127.0.0.1:{self._server.getsockname()[1]}/v1"
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError), ExitStack() as connections:
            while True:
                connection, _ = self._server.accept()
                connections.enter_context(connection)
                self.connections += 1
                with connection.makefile("rb") as reader:
                    assert read_request(reader, self.connections)
                for step in Chat().says(f"on {self.connections}"):
                    assert isinstance(step, bytes)
                    connection.sendall(step)
                if self.connections == 1:
                    self._then(connection)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


def reset_in_the_question(connection: socket.socket) -> None:
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


@pytest.mark.parametrize("size", [10, 10_000_000], ids=["small", "large"])
def test_a_question_whose_connection_ends_under_it_goes_on_another(
    client: DifyClient, pool: ConnectionPool, size: int
) -> None:
    dify = Reader(reset_in_the_question)
    try:
        model = Model("tiny", KEY, dify.base)
        assert text(client, model) == "on 1"
        stream = client.stream(model, "/chat-messages", {"query": "x" * size}, NEVER)
        try:
            assert events(stream)[0]["answer"] == "on 2"
        finally:
            stream.close()
        assert (dify.connections, pool.count) == (2, 1)
    finally:
        dify.close()


def test_the_repeat_takes_none_of_the_others_that_are_idle(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    """What ended one of them ends the others."""
    dify.answers = [Chat().says("one"), Chat().says("two"), [CLOSE], Chat().says("three")]
    streams = [open_stream(client, model) for _ in range(2)]
    for stream in streams:
        finish(stream)
    assert text(client, model) == "three"
    assert asked_on(dify)[2:] == [2, 3]


def test_a_repeat_that_cannot_connect_is_an_error_and_leaves_the_pool_as_it_was(
    client: DifyClient, pool: ConnectionPool
) -> None:
    fake = FakeDify(answers=[Chat().says("one"), [0.3, CLOSE]])
    model = Model("tiny", KEY, fake.base)
    assert text(client, model) == "one"
    stream = open_stream(client, model)
    wait_for(lambda: len(fake.asked()) == 2)
    fake._server.shutdown(socket.SHUT_RDWR)
    fake._server.close()
    with pytest.raises(errors.UpstreamUnreachable):
        stream.read(time.monotonic() + 5)
    assert (stream.fileno(), pool.count) == (-1, 0)
    stream.close()


def test_a_dify_that_takes_no_more_bytes_is_given_up(trusting: ssl.SSLContext) -> None:
    dify = Reader(lambda connection: time.sleep(3))
    try:
        model = Model("tiny", KEY, dify.base)
        with connected(trusting, read_timeout=0.3) as (client, pool):
            assert text(client, model) == "on 1"
            with pytest.raises(errors.UpstreamTimeout):
                client.stream(model, "/chat-messages", {"query": "x" * 20_000_000}, NEVER)
            assert pool.count == 0
    finally:
        dify.close()


ENDS_THE_CONNECTION = [
    pytest.param([head(200, "Connection: close", "Content-Length: 2") + b"{}"], id="close"),
    pytest.param([b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"], id="HTTP/1.0"),
    pytest.param([head(200, "Server: x") + b"{}", CLOSE], id="until close"),
    pytest.param([head(200, "Content-Length: 2") + b"{}more"], id="a longer body than it said"),
]


@pytest.mark.parametrize("steps", ENDS_THE_CONNECTION)
def test_after_some_answers_a_connection_is_not_used_again(
    dify: FakeDify, client: DifyClient, model: Model, pool: ConnectionPool, steps: list[Step]
) -> None:
    dify.answer = lambda request: steps
    for number in (1, 2):
        assert client.call(model, "GET", "/meta") == {}
        assert (pool.count, dify.connections) == (0, number)


WITHOUT_BODY = [
    pytest.param("HEAD", head(200, "Content-Length: 9"), id="HEAD"),
    pytest.param("GET", head(204), id="204"),
    pytest.param("GET", head(304, "Content-Length: 9"), id="304"),
    pytest.param("GET", head(100) + head(103, "Link: x") + head(204), id="after 1xx"),
]


@pytest.mark.parametrize(("method", "said"), WITHOUT_BODY)
def test_an_answer_without_a_body_is_not_waited_for(
    dify: FakeDify, http: PooledClient, method: str, said: bytes
) -> None:
    dify.answer = lambda request: [said]
    for _ in range(2):
        assert http.request(method, f"{dify.base}/x", timeout=20).content == b""
    assert dify.connections == 1


@pytest.mark.parametrize("step", [CLOSE, RESET], ids=["closed", "reset"])
def test_an_answer_that_is_shorter_than_it_said_is_an_error(
    dify: FakeDify, client: DifyClient, model: Model, pool: ConnectionPool, step: Step
) -> None:
    dify.answer = lambda request: [head(200, "Content-Length: 9") + b"{}", 0.02, step]
    with pytest.raises(errors.UpstreamUnreachable):
        client.call(model, "GET", "/meta")
    assert (len(dify.requests), pool.count) == (1, 0)


# --- an answer before the request was sent ---------------------------------------------------


class Refusing:
    """A gateway that reads a head, answers before it has read the body, and reads no more."""

    def __init__(self, says: bytes, closes: bool, tls: ssl.SSLContext | None = None) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._says, self._closes, self._tls = says, closes, tls
        scheme = "https" if tls else "http"
        self.base = f"{scheme}://127.0.0.1:{self._server.getsockname()[1]}/v1"
        self._done = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError), ExitStack() as connections:
            while True:
                connection, _ = self._server.accept()
                if self._tls:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                connections.enter_context(connection)
                connection.recv(1000)
                connection.sendall(self._says)
                if self._closes:
                    time.sleep(0.1)  # the answer arrives before the reset
                    connection.close()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


TOO_LARGE = head(413, "Content-Type: text/html", "Content-Length: 6") + b"<html>"


@pytest.mark.parametrize("closes", [True, False], ids=["and closes", "and waits"])
@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("before", [b"", head(100)], ids=["at once", "after a 100"])
def test_an_upload_that_is_refused_before_it_was_sent_gets_its_answer(
    client: DifyClient,
    pool: ConnectionPool,
    certified: ssl.SSLContext,
    closes: bool,
    is_secure: bool,
    before: bytes,
) -> None:
    gateway = Refusing(before + TOO_LARGE, closes, certified if is_secure else None)
    try:
        model = Model("tiny", KEY, gateway.base)
        begun = time.monotonic()
        with pytest.raises(errors.FileTooLargeForDify):
            files = {"file": ("a.bin", b"\0" * 30_000_000, "image/png")}
            client.post(model, "/files/upload", NEVER, data={"user": "u"}, files=files)
        assert time.monotonic() - begun < 20
        assert pool.count == 0
    finally:
        gateway.close()


def test_a_question_that_is_refused_before_it_was_sent_gets_its_answer(
    client: DifyClient, pool: ConnectionPool
) -> None:
    gateway = Refusing(TOO_LARGE, closes=False)
    try:
        model = Model("tiny", KEY, gateway.base)
        stream = client.stream(model, "/chat-messages", {"query": "x" * 30_000_000}, NEVER)
        with pytest.raises(errors.FileTooLargeForDify):
            events(stream)
        stream.close()
        assert pool.count == 0
    finally:
        gateway.close()


def test_garbage_before_the_request_was_sent_is_an_error(client: DifyClient) -> None:
    gateway = Refusing(b"SSH-2.0-OpenSSH\r\n\r\n", closes=False)
    try:
        model = Model("tiny", KEY, gateway.base)
        with pytest.raises(errors.UpstreamUnreachable):
            client.post(model, "/files/upload", NEVER, content=b"x" * 30_000_000)
    finally:
        gateway.close()


# --- what ends a request before its time -----------------------------------------------------


def cut(how: str, here: socket.socket, theirs: socket.socket, ending: int) -> None:
    if how == "caller":
        theirs.close()
    else:
        os.write(ending, b"x")


@pytest.mark.parametrize("how", ["caller", "server"])
@pytest.mark.parametrize("kind", ["sending", "head", "body"])
def test_a_call_ends_with_its_caller_and_with_the_server(
    dify: FakeDify, client: DifyClient, pool: ConnectionPool, kind: str, how: str
) -> None:
    ours, theirs = socket.socketpair()
    ends, ending = os.pipe()
    dify.answer = lambda r: [head(200, "Content-Length: 9") + b"{", FOREVER]
    deaf = socket.create_server(("127.0.0.1", 0))
    base = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1" if kind == "sending" else dify.base
    if kind == "head":
        dify.answer = lambda r: [FOREVER]
    size = 30_000_000 if kind == "sending" else 10
    threading.Timer(0.2, cut, (how, ours, theirs, ending)).start()
    kinds = {"caller": errors.ClientDisconnected, "server": errors.ServerStopping}
    begun = time.monotonic()
    with ours, deaf, pytest.raises(kinds[how]):
        watch = Cancellation(ours.fileno(), ends)
        client.post(Model("tiny", KEY, base), "/files/upload", watch, content=b"x" * size)
    assert time.monotonic() - begun < 10
    assert pool.count == 0
    theirs.close()
    os.close(ends)
    os.close(ending)


def test_a_response_must_be_complete_at_its_deadline(
    dify: FakeDify, http: PooledClient, pool: ConnectionPool
) -> None:
    dify.answer = lambda r: [head(200, "Content-Length: 900"), *[b"x", 0.05] * 900]
    begun = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        http.get(f"{dify.base}/x", timeout=5, extensions={"deadline": begun + 0.3})
    assert 0.3 <= time.monotonic() - begun < 5
    assert pool.count == 0


def test_a_response_is_given_up_after_a_silence(
    dify: FakeDify, http: PooledClient, pool: ConnectionPool
) -> None:
    for said in ([FOREVER], [head(200, "Content-Length: 9") + b"x", FOREVER]):
        dify.answer = lambda r, said=said: said  # type: ignore[misc]
        with pytest.raises(httpx.ReadTimeout):
            http.get(f"{dify.base}/x", timeout=0.2)
    assert pool.count == 0


def test_a_response_that_is_not_read_gives_its_connection_up(
    dify: FakeDify, http: PooledClient, pool: ConnectionPool
) -> None:
    dify.answer = lambda r: [head(200, "Content-Length: 9") + b"x", FOREVER]
    with http.stream("GET", f"{dify.base}/x", timeout=20) as response:
        assert response.status_code == 200
    assert pool.count == 0


# --- limits ----------------------------------------------------------------------------------


def test_a_full_pool_is_an_error_until_a_connection_is_free(
    dify: FakeDify, model: Model, trusting: ssl.SSLContext
) -> None:
    with connected(trusting, most=3) as (client, pool):
        dify.answers = [[STREAM_HEAD, FOREVER]] * 3
        streams = [open_stream(client, model) for _ in range(3)]
        for ask in (text, lambda *args: client.call(model, "GET", "/meta")):
            with pytest.raises(errors.Overloaded) as caught:
                ask(client, model)
            assert caught.value.retry_after
        streams.pop().close()
        assert text(client, model) == "Hello"
        for stream in streams:
            stream.close()
        assert pool.count == 1


@pytest.mark.parametrize("is_whole", [True, False])
def test_who_waits_for_a_connection_gets_the_next_that_is_free(
    dify: FakeDify, http: PooledClient, trusting: ssl.SSLContext, is_whole: bool
) -> None:
    transport = PooledTransport(limits(1), verify=trusting)
    with PooledClient(transport, trust_env=False) as http:
        said = [head(200, "Content-Length: 2") + b"{}"]
        answers = [said if is_whole else [said[0][:-1], FOREVER], said]
        dify.answer = lambda r: answers.pop(0)
        with http.stream("GET", f"{dify.base}/x", timeout=20) as response:
            found: list[bytes] = []
            waiting = threading.Thread(
                target=lambda: found.append(http.get(f"{dify.base}/y", timeout=10).content)
            )
            waiting.start()
            time.sleep(0.1)
            assert found == []
            if is_whole:
                response.read()
        waiting.join(10)
        assert found == [b"{}"]
        assert dify.connections == (1 if is_whole else 2)


def test_an_idle_connection_is_closed_for_one_to_another_address(
    dify: FakeDify, model: Model, trusting: ssl.SSLContext
) -> None:
    other = FakeDify()
    try:
        with connected(trusting, most=5) as (client, pool), ExitStack() as open_streams:
            streams = [open_stream(client, model) for _ in range(5)]
            for stream in streams:
                finish(stream)
            assert pool.idle_count == 5
            other.answers = [[STREAM_HEAD, chunk(b"data: {}\n\n"), FOREVER]] * 3
            for _ in range(3):
                open_streams.callback(open_stream(client, Model("o", KEY, other.base)).close)
            assert (pool.count, pool.idle_count) == (5, 2)
            wait_for(lambda: (other.connections, len(dify._open)) == (3, 2))
    finally:
        other.close()


def test_a_failed_request_leaves_the_pool_as_it_was(
    http: PooledClient, pool: ConnectionPool
) -> None:
    for _ in range(50):
        with pytest.raises(httpx.ConnectError):
            http.get(f"http://127.0.0.1:{free_port()}/info")
    assert pool.count == 0


def test_the_pool_is_large_enough_for_all_connections_that_may_be_in_use(tmp_path: Path) -> None:
    code = (
        "import main, gunicorn_config as g; from opendify.upstream import background_reader\n"
        "limits = main.HTTP_CLIENT_CONFIG['limits']\n"
        "print('spare', limits.max_connections - 2 * g.threads - background_reader.MAX_PENDING)"
    )
    variables = free_variables("http://127.0.0.1:9/v1", GUNICORN_THREADS="300")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment(**variables), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout.rpartition("spare")[2]) >= 16


def test_two_hundred_streams_at_once_have_a_connection_each(
    dify: FakeDify, model: Model, trusting: ssl.SSLContext
) -> None:
    dify.answers = [[STREAM_HEAD, chunk(Chat().text("a")), FOREVER]] * 200
    with connected(trusting, most=201, read_timeout=30) as (client, pool):
        streams = [open_stream(client, model) for _ in range(200)]
        deadline = time.monotonic() + 20
        assert all(stream.read(deadline) for stream in streams)
        assert pool.count == 200
        assert text(client, model) == "Hello"
        for stream in streams:
            stream.close()
        assert (pool.count, pool.idle_count) == (1, 1)


def test_many_threads_share_what_is_there(
    dify: FakeDify, model: Model, trusting: ssl.SSLContext
) -> None:
    threads = 100
    dify.answer = lambda r: (
        Chat().says(r.json["query"]) if r.method == "POST" else refused(200, {"a": 1})
    )
    failed: list[object] = []
    with connected(trusting, most=threads, read_timeout=30) as (client, pool):
        start = threading.Barrier(threads)

        def ask(number: int) -> None:
            start.wait(30)
            try:
                for turn in range(4):
                    query = f"{number}-{turn}"
                    stream = client.stream(model, "/chat-messages", {"query": query}, NEVER)
                    payloads = stream.read(time.monotonic() + 20) or []
                    finish(stream)
                    assert payloads
                    assert f'"answer": "{query}"'.encode() in payloads[0]
                    if number % 10 == 0:
                        assert client.call(model, "GET", "/meta") == {"a": 1}
            except (errors.OpenDifyError, AssertionError) as exc:
                failed.append(exc)

        running = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(60)
        assert failed == []
        assert len(dify.asked()) == 4 * threads
        assert pool.count <= threads
        wait_for(lambda: pool.count == 0)


def test_a_forked_process_shares_no_connection(
    dify: FakeDify, model: Model, client: DifyClient, pool: ConnectionPool
) -> None:
    assert text(client, model) == "Hello"
    (connection,) = (one for idle in pool._idle.values() for one in idle)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            is_apart = (pool.count, pool.idle_count, connection.fileno()) == (0, 0, -1)
            os._exit(0 if is_apart and text(client, model) == "Hello" else 1)
        os._exit(2)
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    assert os.waitstatus_to_exitcode(status) == 0
    assert text(client, model) == "Hello"
    assert asked_on(dify) == [1, 2, 1]


# --- errors ----------------------------------------------------------------------------------


def causes(exc: BaseException) -> list[type[BaseException]]:
    """The kinds of an error and of all that it comes from."""
    found = [type(exc)]
    while exc.__cause__ is not None:
        exc = exc.__cause__
        found.append(type(exc))
    return found


def test_a_failure_to_connect_names_its_cause(http: PooledClient, secure_dify: FakeDify) -> None:
    with pytest.raises(httpx.ConnectError) as refused_:
        http.get(f"http://127.0.0.1:{free_port()}/")
    assert causes(refused_.value)[-1] is ConnectionRefusedError
    with pytest.raises(httpx.ConnectError) as unknown:
        http.get("http://dify.invalid/")
    assert causes(unknown.value)[-1] is socket.gaierror
    with pytest.raises(httpx.ConnectError) as plain:
        http.get(secure_dify.base.replace("127.0.0.1", "127.0.0.2"))
    assert causes(plain.value)[-1] in (ssl.SSLCertVerificationError, ConnectionRefusedError)
    stranger = PooledTransport(limits())
    with PooledClient(stranger) as other, pytest.raises(httpx.ConnectError) as untrusted:
        other.get(secure_dify.base)
    assert causes(untrusted.value)[-1] is ssl.SSLCertVerificationError
    assert stranger.pool.count == 0


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a..example"])
def test_a_name_that_no_dns_has_is_a_failure_to_connect(http: PooledClient, host: str) -> None:
    with pytest.raises((httpx.ConnectError, httpx.InvalidURL)):
        http.get(f"http://{host}/")


def test_a_connection_that_takes_too_long_is_a_timeout(
    http: PooledClient, pool: ConnectionPool
) -> None:
    """Nobody accepts, and the handshake of TLS gets no answer."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"https://127.0.0.1:{deaf.getsockname()[1]}/"
        with pytest.raises(httpx.ConnectTimeout) as caught:
            http.get(url, timeout=httpx.Timeout(5, connect=0.2))
    assert issubclass(causes(caught.value)[-1], TimeoutError)
    assert pool.count == 0


def test_a_reset_names_its_cause(dify: FakeDify, http: PooledClient) -> None:
    dify.answer = lambda r: [b"HTTP/1.1 2", 0.05, RESET]
    with pytest.raises(httpx.ReadError) as caught:
        http.get(f"{dify.base}/x")
    assert causes(caught.value)[-1] is ConnectionResetError


def test_what_is_no_http_is_a_protocol_error(dify: FakeDify, http: PooledClient) -> None:
    for said in ([b"SSH-2.0-OpenSSH\r\n\r\n"], [CLOSE], [head(200, "Content-Length: 3"), CLOSE]):
        dify.answer = lambda r, said=said: said  # type: ignore[misc]
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            http.get(f"{dify.base}/x")
        assert "SSH" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://dify/x", "dify/x", "unix:///x"])
def test_other_schemes_are_not_supported(http: PooledClient, url: str) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        http.get(url)


def test_a_response_that_was_closed_cannot_be_read(dify: FakeDify, http: PooledClient) -> None:
    pending: PendingResponse = http.begin(http.build_request("GET", f"{dify.base}/x"))
    pending.close()
    pending.close()
    for read in (pending.read_available, lambda: pending.read(0.0, NEVER)):
        with pytest.raises(httpx.ReadError):
            read()


# --- TLS and proxies -------------------------------------------------------------------------


def asked_thrice(dify: FakeDify, trusting: ssl.SSLContext, proxy: Any = None) -> int:
    """How many connections three questions and a call needed, the last question a large one."""
    proxies = {dify.base: proxy} if proxy else None
    with connected(trusting, proxies=proxies, read_timeout=10) as (client, pool):
        model = Model("tiny", KEY, dify.base)
        assert [text(client, model) for _ in range(2)] == ["Hello"] * 2
        body = {"query": "x" * 3_000_000}
        dify.answers = [Chat().says(*["word "] * 2000)]
        stream = client.stream(model, "/chat-messages", body, NEVER)
        assert "".join(e.get("answer", "") for e in events(stream)) == "word " * 2000
        stream.close()
        assert dify.asked()[-1].json == body
        dify.answer_stop = refused(200, {"a": 1})
        assert client.post(model, "/a/stop", NEVER, data={"user": "u"}) == {"a": 1}
        assert pool.count == 1
        return dify.connections


def test_over_tls(secure_dify: FakeDify, trusting: ssl.SSLContext) -> None:
    assert asked_thrice(secure_dify, trusting) == 1


def test_a_certificate_must_be_for_the_host(certified: ssl.SSLContext, http: PooledClient) -> None:
    fake = FakeDify(tls=certified, host="127.0.0.2")
    try:
        with pytest.raises(httpx.ConnectError):
            http.get(fake.base)
    finally:
        fake.close()


CREDENTIALS = ["", "user:pass word!"]


def address(relay: Relay, credentials: str) -> str:
    return relay.url.replace(
        "://", f"://{credentials.replace(' ', '%20')}@" if credentials else "://"
    )


@pytest.mark.parametrize("credentials", CREDENTIALS, ids=["open", "with a password"])
@pytest.mark.parametrize("make", [HttpRelay, Socks5Relay])
@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "TLS"])
def test_through_a_proxy(
    dify: FakeDify,
    secure_dify: FakeDify,
    trusting: ssl.SSLContext,
    make: type[Relay],
    credentials: str,
    is_secure: bool,
) -> None:
    relay, fake = make(credentials=credentials), secure_dify if is_secure else dify
    try:
        assert asked_thrice(fake, trusting, address(relay, credentials)) == 1
        assert relay.targets == [f"127.0.0.1:{fake.port}"]
        assert not any("proxy-authorization" in request.headers for request in fake.requests)
    finally:
        relay.close()


@pytest.mark.parametrize("credentials", ["", "user:wrong"])
@pytest.mark.parametrize("make", [HttpRelay, Socks5Relay])
def test_a_proxy_that_wants_another_password_is_an_error(
    secure_dify: FakeDify, trusting: ssl.SSLContext, make: type[Relay], credentials: str
) -> None:
    relay = make(credentials="user:right")
    try:
        transport = PooledTransport(
            limits(), {secure_dify.base: address(relay, credentials)}, trusting
        )
        with PooledClient(transport) as http, pytest.raises(httpx.ProxyError) as caught:
            http.get(secure_dify.base)
        assert "wrong" not in str(caught.value)
        if make is HttpRelay:
            assert str(caught.value) == "407 Proxy Authentication Required"
        assert transport.pool.count == 0
    finally:
        relay.close()


@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "TLS"])
def test_through_a_proxy_that_speaks_tls_itself(
    dify: FakeDify,
    secure_dify: FakeDify,
    trusting: ssl.SSLContext,
    certified: ssl.SSLContext,
    is_secure: bool,
) -> None:
    relay, fake = SecureRelay(certified), secure_dify if is_secure else dify
    try:
        assert asked_thrice(fake, trusting, relay.url) == 1
        proxy = httpx.Proxy(relay.url, ssl_context=trusting)
        assert asked_thrice(fake, trusting, proxy) == 2
    finally:
        relay.close()


def test_tls_within_tls_is_checked_before_it_is_used_again(
    secure_dify: FakeDify, trusting: ssl.SSLContext, certified: ssl.SSLContext
) -> None:
    relay = SecureRelay(certified)
    try:
        secure_dify.answers = [[*Chat().says("one"), CLOSE], [STREAM_HEAD, RESET]]
        model = Model("tiny", KEY, secure_dify.base)
        with connected(trusting, proxies={secure_dify.base: relay.url}) as (client, pool):
            assert text(client, model) == "one"
            time.sleep(0.2)
            assert type(failure(client, model)) is errors.BadUpstreamResponse
            assert text(client, model) == "Hello"
            assert (asked_on(secure_dify), pool.count) == ([1, 2, 3], 1)
    finally:
        relay.close()


def test_replies_of_a_socks_proxy_that_come_in_pieces_are_put_together(
    dify: FakeDify, trusting: ssl.SSLContext
) -> None:
    relay = Socks5Relay(piece=1, credentials="user:pass")
    try:
        with connected(trusting, proxies={dify.base: address(relay, "user:pass")}) as (client, _):
            assert text(client, Model("tiny", KEY, dify.base)) == "Hello"
    finally:
        relay.close()


@pytest.mark.parametrize(
    "bound",
    [
        b"\x05\x00\x00\x03\x04dify\x00\x50",
        b"\x05\x00\x00\x04" + b"\0" * 15 + b"\1\x00\x50",
    ],
    ids=["a name", "IPv6"],
)
def test_a_socks_proxy_may_name_its_end_in_other_ways(
    dify: FakeDify, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, bound: bytes
) -> None:
    monkeypatch.setattr(Socks5Relay, "bound", bound)
    relay = Socks5Relay()
    try:
        assert asked_thrice(dify, trusting, relay.url) == 1
    finally:
        relay.close()


def test_a_socks_proxy_resolves_names(trusting: ssl.SSLContext) -> None:
    fake, relay = FakeDify(), Socks5Relay()
    try:
        base = fake.base.replace("127.0.0.1", "localhost")
        with connected(trusting, proxies={base: relay.url}) as (client, _):
            assert text(client, Model("tiny", KEY, base)) == "Hello"
        assert relay.targets == [f"localhost:{fake.port}"]
    finally:
        relay.close()
        fake.close()


def test_an_origin_that_a_socks_proxy_cannot_reach_is_an_error(trusting: ssl.SSLContext) -> None:
    relay, base = Socks5Relay(), f"http://127.0.0.1:{free_port()}"
    try:
        transport = PooledTransport(limits(), {base: relay.url}, trusting)
        with PooledClient(transport) as http, pytest.raises(httpx.ProxyError) as caught:
            http.get(base)
        assert "connection refused" in str(caught.value)
        assert transport.pool.count == 0
    finally:
        relay.close()


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("said", [b"", b"SSH-2.0\r\n\r\n" * 5])
def test_what_is_no_proxy_is_an_error(trusting: ssl.SSLContext, scheme: str, said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        threading.Thread(target=serve, daemon=True).start()
        proxy = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
        transport = PooledTransport(limits(), {"https://dify": proxy}, trusting)
        with (
            PooledClient(transport) as http,
            pytest.raises((httpx.ProxyError, httpx.ConnectError)),
        ):
            http.get("https://dify/v1")
        assert transport.pool.count == 0


@pytest.mark.parametrize("scheme", ["http", "socks5", "https"])
def test_a_proxy_that_says_nothing_is_a_timeout(trusting: ssl.SSLContext, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
        transport = PooledTransport(limits(), {"https://dify": proxy}, trusting)
        with PooledClient(transport) as http, pytest.raises(httpx.ConnectTimeout):
            http.get("https://dify/v1", timeout=httpx.Timeout(5, connect=0.2))
        assert transport.pool.count == 0
