"""Connections that stay open between two questions, on which the next is written as it is."""

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import trustme

from opendify import errors
from opendify.config.models import Model
from opendify.upstream import kept as kept_module
from opendify.upstream.client import DifyClient
from opendify.upstream.kept import Kept
from opendify.upstream.pool import Pools
from opendify.upstream.watch import UNWATCHED
from opendify.upstream.wire import Transport
from tests.fake_dify import (
    CLOSE,
    FOREVER,
    STREAM_HEAD,
    Chat,
    FakeDify,
    Step,
    chunk,
    read_request,
    refused,
)
from tests.relays import HttpRelay, Relay, SecureRelay, Socks5Relay
from tests.service import ROOT, environment, free_variables
from tests.test_client import KEY, events, failure, text

BODY = {"query": "Hi 你好", "user": "u"}


class Counting(httpx.Client):
    """A client that knows of each request that went through it."""

    def __init__(self, transport: httpx.BaseTransport, **mounts: httpx.BaseTransport) -> None:
        super().__init__(
            transport=transport,
            mounts={f"{scheme}://": mount for scheme, mount in mounts.items()},
            trust_env=False,
            event_hooks={"request": [lambda request: self.seen.append(request)]},
        )
        self.seen: list[httpx.Request] = []


def limits(most: int = 20, seconds: float = 1.5) -> httpx.Limits:
    return httpx.Limits(
        max_connections=most, max_keepalive_connections=most, keepalive_expiry=seconds
    )


@pytest.fixture
def http() -> Iterator[Counting]:
    with Counting(Transport(limits=limits())) as http:
        yield http


@pytest.fixture
def client(http: Counting) -> DifyClient:
    return DifyClient(http, read_timeout=2)


@pytest.fixture
def model(dify: FakeDify) -> Model:
    return Model("tiny", KEY, dify.base)


def until(holds: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- the quick way ---------------------------------------------------------------------------


def test_only_the_first_question_goes_through_httpx(
    dify: FakeDify, http: Counting, client: DifyClient, model: Model
) -> None:
    for _ in range(5):
        assert text(client, model) == "Hello"
    assert (len(dify.asked()), dify.connections, len(http.seen)) == (5, 1, 1)


def test_dify_cannot_tell_how_a_question_came(
    dify: FakeDify, http: Counting, client: DifyClient, model: Model
) -> None:
    for trace_id in ("trace-1", "trace-1", ""):
        client.stream(model, "/chat-messages", BODY, UNWATCHED, trace_id).drain()
    first, second, third = dify.asked()
    assert len(http.seen) == 1
    assert (first.method, first.path, first.body) == (second.method, second.path, second.body)
    assert list(first.headers.items()) == list(second.headers.items())
    assert first.headers.pop("x-trace-id") == "trace-1"
    assert first.headers == third.headers


def test_a_large_question_arrives_whole_on_a_kept_connection(
    dify: FakeDify, http: Counting, client: DifyClient, model: Model
) -> None:
    assert text(client, model) == "Hello"
    body = {"query": "x" * 5_000_000}
    client.stream(model, "/chat-messages", body, UNWATCHED).drain()
    assert (dify.asked()[1].json, dify.connections, len(http.seen)) == (body, 1, 1)


def test_a_question_goes_where_its_model_says(
    dify: FakeDify, http: Counting, client: DifyClient, model: Model
) -> None:
    assert text(client, model) == "Hello"
    client.stream(model, "/workflows/a b/run", BODY, UNWATCHED).drain()
    assert dify.requests[1].path == "/v1/workflows/a%20b/run"
    assert len(http.seen) == 1


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
    dify: FakeDify, http: Counting, client: DifyClient
) -> None:
    keys = ["app-first", "app-second", "app-first", "app-second"]
    for key in keys:
        assert text(client, Model(key, key, dify.base)) == "Hello"
    assert [r.headers["authorization"] for r in dify.asked()] == [f"Bearer {key}" for key in keys]
    assert (dify.connections, len(http.seen)) == (1, 1)


def test_a_refusal_is_an_answer_too(
    dify: FakeDify, http: Counting, client: DifyClient, model: Model
) -> None:
    for _ in range(3):
        dify.answers = [refused(404, {"code": "not_found", "message": "", "status": 404})]
        failure(client, model)
    assert (dify.connections, len(http.seen)) == (1, 1)


def test_what_a_connection_was_opened_for_is_forgotten(
    http: Counting, client: DifyClient, model: Model
) -> None:
    assert text(client, model) == "Hello"
    (request,) = http.seen
    assert isinstance(request.stream, httpx.SyncByteStream)
    assert b"".join(request.stream) == b""


# --- what a head may hold --------------------------------------------------------------------


@pytest.mark.parametrize("key", ["app\r\nX-Evil: 1", "app\nx", "app\0"])
def test_a_key_that_no_header_can_hold_goes_nowhere(
    dify: FakeDify, client: DifyClient, model: Model, key: str
) -> None:
    assert text(client, model) == "Hello"
    evil = Model("evil", key, dify.base)
    assert type(failure(client, evil)) is errors.DifyUnreachable
    assert len(client._kept) == 1
    assert text(client, model) == "Hello"
    assert [request.headers["authorization"] for request in dify.requests] == [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize("trace_id", ["a\r\nX-Evil: 1", "a\nb", "ä", "a b", "x" * 129])
def test_a_trace_that_is_no_name_is_not_told(
    dify: FakeDify, client: DifyClient, model: Model, trace_id: str
) -> None:
    for _ in range(2):
        client.stream(model, "/chat-messages", BODY, UNWATCHED, trace_id).drain()
    for request in dify.asked():
        assert not {"x-trace-id", "x-evil"} & set(request.headers)


def test_no_key_is_shown(client: DifyClient, model: Model) -> None:
    assert text(client, model) == "Hello"
    kept = client._kept
    shown = [client, kept, *kept._loans, client._address(model.base, "/chat-messages", model.key)]
    assert not [one for one in shown if KEY in repr(one) or KEY in str(one)]


# --- how long it is kept ---------------------------------------------------------------------


def test_an_idle_connection_is_closed_in_time_though_nothing_is_asked(
    dify: FakeDify, model: Model
) -> None:
    with Counting(Transport(limits=limits(seconds=0.6))) as http:
        client = DifyClient(http, read_timeout=2)
        assert text(client, model) == "Hello"
        assert (len(client._kept), len(dify._open)) == (1, 1)
        until(lambda: not client._kept and not dify._open)
        assert text(client, model) == "Hello"
        assert (dify.connections, len(http.seen)) == (2, 2)


def test_a_connection_that_is_over_is_not_used_though_it_is_not_closed_yet(
    dify: FakeDify, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_module, "SWEEP_SECONDS", 1.0)
    with Counting(Transport(limits=limits(seconds=0.1))) as http:
        client = DifyClient(http, read_timeout=2)
        assert text(client, model) == "Hello"
        time.sleep(0.2)
        assert text(client, model) == "Hello"
        assert dify.connections == 2


def test_nothing_is_kept_where_the_pool_keeps_nothing(dify: FakeDify, model: Model) -> None:
    with Counting(Transport(limits=limits(seconds=0))) as http:
        client = DifyClient(http, read_timeout=2)
        assert text(client, model) == "Hello"
        assert not client._kept


def test_those_that_are_not_needed_expire_while_others_are_used(
    dify: FakeDify, model: Model
) -> None:
    with Counting(Transport(limits=limits(seconds=1.2))) as http:
        client = DifyClient(http, read_timeout=2)
        streams = [client.stream(model, "/chat-messages", BODY, UNWATCHED) for _ in range(4)]
        for stream in streams:
            stream.drain()
        assert len(client._kept) == 4
        for _ in range(30):
            assert text(client, model) == "Hello"
            time.sleep(0.05)
        until(lambda: (len(client._kept), len(dify._open), dify.connections) == (1, 1, 4))


@contextmanager
def swept() -> Iterator[None]:
    """No thread is left that looks after what is kept."""
    yield
    until(lambda: not [one for one in threading.enumerate() if one.name == "kept"])


def test_the_thread_is_there_only_while_anything_is_kept(dify: FakeDify, model: Model) -> None:
    with swept(), Counting(Transport(limits=limits(seconds=0.5))) as http:
        client = DifyClient(http, read_timeout=2)
        for _ in range(3):
            assert text(client, model) == "Hello"
            assert [one.name for one in threading.enumerate()].count("kept") >= 1
            until(lambda: not client._kept)


# --- what happens to it meanwhile ------------------------------------------------------------


UNASKED = [
    pytest.param([CLOSE], id="its end"),
    pytest.param([b"HTTP/1.1 408 Too slow\r\nContent-Length: 0\r\n\r\n"], id="an answer"),
    pytest.param([b"x"], id="garbage"),
]


@pytest.mark.parametrize("steps", UNASKED)
def test_a_connection_on_which_something_came_unasked_is_never_used(
    dify: FakeDify, client: DifyClient, model: Model, steps: list[Step]
) -> None:
    said = threading.Event()

    def answer() -> Iterator[Step]:
        yield from Chat().says("one")
        yield 0.05
        yield from steps
        said.set()

    dify.answers = [answer()]
    assert text(client, model) == "one"
    said.wait(1)
    time.sleep(0.05)
    assert text(client, model) == "Hello"
    assert [request.connection for request in dify.asked()] == [1, 2]


def test_one_that_was_closed_does_not_stop_the_others_from_being_used(
    dify: FakeDify, http: Counting, client: DifyClient, model: Model
) -> None:
    dify.answers = [Chat().says("one"), [*Chat().says("two"), CLOSE]]
    streams = [client.stream(model, "/chat-messages", BODY, UNWATCHED) for _ in range(2)]
    for stream in streams:
        stream.drain()
    time.sleep(0.05)
    assert text(client, model) == "Hello"
    assert (dify.connections, len(http.seen), len(client._kept)) == (2, 2, 1)


class Reader:
    """A Dify that answers one question, and then does with the connection what it is told."""

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
    client: DifyClient, size: int
) -> None:
    dify = Reader(reset_in_the_question)
    try:
        model = Model("tiny", KEY, dify.base)
        assert text(client, model) == "on 1"
        stream = client.stream(model, "/chat-messages", {"query": "x" * size}, UNWATCHED)
        try:
            assert events(stream)[0]["answer"] == "on 2"
        finally:
            stream.close()
        assert dify.connections == 2
    finally:
        dify.close()


def test_the_repeat_takes_none_of_the_others_that_are_kept(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    """What ended one of them ends the others."""
    dify.answers = [Chat().says("one"), Chat().says("two"), [CLOSE], Chat().says("three")]
    streams = [client.stream(model, "/chat-messages", BODY, UNWATCHED) for _ in range(2)]
    for stream in streams:
        stream.drain()
    assert text(client, model) == "three"
    assert [request.connection for request in dify.asked()][2:] == [2, 3]


def test_a_dify_that_takes_no_more_bytes_is_given_up() -> None:
    dify = Reader(lambda connection: time.sleep(3))
    try:
        model = Model("tiny", KEY, dify.base)
        transport = Transport(limits=limits())
        with Counting(transport) as http:
            client = DifyClient(http, read_timeout=0.3)
            assert text(client, model) == "on 1"
            with pytest.raises(errors.DifyTimeout):
                client.stream(model, "/chat-messages", {"query": "x" * 20_000_000}, UNWATCHED)
            assert (len(http.seen), len(client._kept)) == (1, 0)
            assert transport._pool.connections == []
    finally:
        dify.close()


def test_what_the_pool_has_closed_is_not_kept(dify: FakeDify, model: Model) -> None:
    with Counting(Transport(limits=limits())) as http:
        client = DifyClient(http, read_timeout=2)
        stream = client.stream(model, "/chat-messages", BODY, UNWATCHED)
        assert text(client, model) == "Hello"
        http.close()
        stream.drain()
        assert client._kept.take(("http", "127.0.0.1", dify.port)) is None
        until(lambda: not dify._open)


# --- the pool's own --------------------------------------------------------------------------


def test_what_is_no_question_gets_a_connection_that_is_kept(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    def text_again() -> None:
        assert text(client, model) == "Hello"
        assert len(client._kept) == 1

    dify.answer = lambda r: Chat().says("Hello") if r.method == "POST" else refused(200, {"a": 1})
    text_again()
    assert client.call(model, "GET", "/meta") == {"a": 1}
    text_again()
    client.stop(model, "/chat-messages/task-1/stop", "u")
    until(lambda: not len(client.watcher))
    text_again()
    with client.download(model, f"{dify.base}/file", 5) as pieces:
        assert b"".join(pieces) == b'{"a": 1}'
    text_again()
    assert client.post(model, "/a/stop", UNWATCHED, data={"user": "u"}) == {"result": "success"}
    assert dify.connections == 1


def test_no_more_is_kept_than_was_said(dify: FakeDify, client: DifyClient, model: Model) -> None:
    client._kept = Kept(most=2)
    streams = [client.stream(model, "/chat-messages", BODY, UNWATCHED) for _ in range(5)]
    for stream in streams:
        stream.drain()
    assert (len(client._kept), dify.connections) == (2, 5)


def test_what_is_kept_for_one_address_leaves_room_for_others(dify: FakeDify, model: Model) -> None:
    other = FakeDify()
    try:
        most, in_use = 2, 3
        with Counting(Pools(limits=limits(most + in_use))) as http:
            client = DifyClient(http, read_timeout=2)
            client._kept = Kept(most)
            streams = [client.stream(model, "/chat-messages", BODY, UNWATCHED) for _ in range(5)]
            for stream in streams:
                stream.drain()
            with ExitStack() as open_streams:
                other.answers = [[STREAM_HEAD, chunk(b"data: {}\n\n"), FOREVER]] * in_use
                for _ in range(in_use):
                    asked = Model("other", KEY, other.base)
                    stream = client.stream(asked, "/chat-messages", BODY, UNWATCHED)
                    open_streams.callback(stream.close)
                until(lambda: other.connections == in_use)
    finally:
        other.close()


def test_the_pool_has_room_for_all_that_is_in_use_or_kept(tmp_path: Path) -> None:
    code = (
        "import main, gunicorn_config as g; from opendify.upstream import kept, watcher\n"
        "limits = main.HTTP_CLIENT_CONFIG['limits']\n"
        "print('room', limits.max_connections - 2 * g.threads - watcher.MOST - kept.MOST)"
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
    assert int(done.stdout.rpartition("room")[2]) >= 16


def test_three_hundred_threads_at_once_share_what_is_there(dify: FakeDify, model: Model) -> None:
    threads = 300
    dify.answer = lambda r: (
        Chat().says(r.json["query"]) if r.method == "POST" else refused(200, {"a": 1})
    )
    failed: list[object] = []
    pools = Pools(limits=limits(threads + kept_module.MOST))
    with Counting(pools) as http:
        client = DifyClient(http, read_timeout=20)
        start = threading.Barrier(threads)

        def ask(number: int) -> None:
            start.wait(20)
            try:
                for turn in range(4):
                    query = f"{number}-{turn}"
                    stream = client.stream(model, "/chat-messages", {"query": query}, UNWATCHED)
                    payloads = stream.read(time.monotonic() + 20) or []
                    stream.drain()
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
        assert len(client._kept) <= kept_module.MOST
        assert dify.connections <= threads + kept_module.MOST
        until(lambda: sum(pools._under_way) == len(client._kept))
        assert len(http.seen) < 4 * threads
        until(lambda: not any(pools._under_way))


# --- TLS and proxies -------------------------------------------------------------------------


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
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def secure_dify(certified: ssl.SSLContext) -> Iterator[FakeDify]:
    fake = FakeDify(tls=certified)
    yield fake
    fake.close()


def asked_thrice(transport: httpx.BaseTransport, dify: FakeDify) -> tuple[int, int]:
    """How many connections three questions needed, the last a large one, and how many of them
    went through httpx."""
    with Counting(transport) as http:
        client, model = DifyClient(http, read_timeout=5), Model("tiny", KEY, dify.base)
        assert [text(client, model) for _ in range(2)] == ["Hello"] * 2
        body = {"query": "x" * 3_000_000}
        client.stream(model, "/chat-messages", body, UNWATCHED).drain()
        assert dify.asked()[-1].json == body
        return dify.connections, len(http.seen)


def test_over_tls(secure_dify: FakeDify, trusting: ssl.SSLContext) -> None:
    assert asked_thrice(Transport(limits=limits(), verify=trusting), secure_dify) == (1, 1)


def test_a_connection_whose_tls_has_ended_is_not_used(
    secure_dify: FakeDify, trusting: ssl.SSLContext
) -> None:
    secure_dify.answers = [[*Chat().says("one"), CLOSE]]
    with Counting(Transport(limits=limits(), verify=trusting)) as http:
        client, model = DifyClient(http, read_timeout=2), Model("tiny", KEY, secure_dify.base)
        assert text(client, model) == "one"
        time.sleep(0.1)
        assert text(client, model) == "Hello"
        assert (len(secure_dify.asked()), secure_dify.connections) == (2, 2)


@pytest.mark.parametrize("make", [HttpRelay, Socks5Relay])
def test_through_a_tunnel(
    secure_dify: FakeDify, trusting: ssl.SSLContext, make: type[Relay]
) -> None:
    relay = make()
    try:
        transport = Transport(limits=limits(), proxy=relay.url, verify=trusting)
        assert asked_thrice(transport, secure_dify) == (1, 1)
        assert relay.targets == [f"127.0.0.1:{secure_dify.port}"]
    finally:
        relay.close()


def test_tls_within_tls_stays_httpcores_business(
    secure_dify: FakeDify, trusting: ssl.SSLContext, certified: ssl.SSLContext
) -> None:
    relay = SecureRelay(certified)
    try:
        proxy = httpx.Proxy(relay.url, ssl_context=trusting)
        transport = Transport(limits=limits(), proxy=proxy, verify=trusting)  # type: ignore[arg-type]
        assert asked_thrice(transport, secure_dify) == (1, 3)
    finally:
        relay.close()


def test_a_plain_dify_behind_socks(dify: FakeDify) -> None:
    relay = Socks5Relay()
    try:
        assert asked_thrice(Transport(limits=limits(), proxy=relay.url), dify) == (1, 1)
    finally:
        relay.close()


def test_a_proxy_that_is_asked_with_whole_addresses_stays_httpcores_business(
    dify: FakeDify,
) -> None:
    relay = HttpRelay()
    try:
        assert asked_thrice(Transport(limits=limits(), proxy=relay.url), dify) == (1, 3)
    finally:
        relay.close()
