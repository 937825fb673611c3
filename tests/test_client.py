import gzip
import json
import logging
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from opendify import errors, sse
from opendify.config.models import Model
from opendify.config.proxies import proxies_for
from opendify.dify.events import Text
from opendify.upstream.cancellation import NEVER, Cancellation
from opendify.upstream.client import MAX_CALL_BYTES, DifyClient
from opendify.upstream.event_stream import EventStream
from opendify.upstream.run import DifyRun
from opendify.upstream.transport import pending_response
from opendify.upstream.transport.pending_response import PendingResponse
from opendify.upstream.transport.transport import PooledClient, PooledTransport
from tests.support.fake_dify import (
    CLOSE,
    FOREVER,
    LAST_CHUNK,
    PING,
    RESET,
    STREAM_HEAD,
    Chat,
    FakeDify,
    Step,
    chunk,
    head,
    recording,
    refused,
    replayed,
    streamed,
)
from tests.support.ports import free_port
from tests.support.relays import HttpRelay, Relay, SecureRelay, Socks5Relay

KEY = "app-secret-of-the-operator"
LIMITS = httpx.Limits(max_connections=20, max_keepalive_connections=20, keepalive_expiry=1.5)
BODY = {"query": "Hi 你好", "user": "u"}


@pytest.fixture
def model(dify: FakeDify) -> Model:
    return Model("tiny", KEY, dify.base)


@pytest.fixture
def client(http: PooledClient) -> DifyClient:
    return DifyClient(http, read_timeout=2.0)


def ask(client: DifyClient, model: Model, caller: int | None = None) -> EventStream:
    return client.stream(model, "/chat-messages", BODY, Cancellation(caller))


def events(stream: EventStream, seconds: float = 10) -> list[Any]:
    """All events up to the end of the stream, which must come in time."""
    found: list[Any] = []
    until = time.monotonic() + seconds
    while (payloads := stream.read(until)) is not None:
        assert payloads, "the stream did not end in time"
        found += map(json.loads, payloads)
    return found


def text(client: DifyClient, model: Model) -> str:
    stream = ask(client, model)
    try:
        return "".join(event.get("answer", "") for event in events(stream))
    finally:
        stream.close()


def failure(client: DifyClient, model: Model) -> errors.OpenDifyError:
    with pytest.raises(errors.OpenDifyError) as caught:
        text(client, model)
    assert KEY not in caught.value.message
    assert "<" not in caught.value.message
    return caught.value


# --- what is sent ----------------------------------------------------------------------------


def test_a_question_is_sent_as_dify_wants_it(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    assert text(client, model) == "Hello"
    (request,) = dify.requests
    assert (request.method, request.path) == ("POST", "/v1/chat-messages")
    assert request.json == BODY
    assert "你好".encode() in request.body
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["accept-encoding"] == "identity"
    assert int(request.headers["content-length"]) == len(request.body)
    assert "cookie" not in request.headers


def test_a_large_question_arrives_whole(dify: FakeDify, client: DifyClient, model: Model) -> None:
    body = {"query": "x" * 5_000_000}
    stream = client.stream(model, "/chat-messages", body, NEVER)
    events(stream)
    stream.close()
    assert dify.requests[0].json == body


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf")], ids=["nan", "inf", "-inf"]
)
def test_a_number_that_json_does_not_have_is_refused_before_it_is_sent(
    dify: FakeDify, client: DifyClient, model: Model, value: float
) -> None:
    with pytest.raises(errors.InvalidRequest):
        client.stream(model, "/chat-messages", {"inputs": {"a": value}}, NEVER)
    assert dify.requests == []


def test_endless_nesting_is_refused_before_it_is_sent(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(errors.InvalidRequest):
        client.stream(model, "/chat-messages", {"inputs": {"a": nested}}, NEVER)
    assert dify.requests == []


# --- what comes back -------------------------------------------------------------------------


def test_events_are_handed_on_as_they_come(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    chat, go_on = Chat(), threading.Event()

    def answer() -> Iterator[Step]:
        yield STREAM_HEAD + chunk(chat.text("one"))
        assert go_on.wait(10)
        yield chunk(chat.text("two")) + chunk(chat.end()) + LAST_CHUNK

    dify.answers = [answer()]
    stream = ask(client, model)
    first = stream.read(time.monotonic() + 10)
    go_on.set()
    rest = events(stream)
    stream.close()
    assert first is not None
    told = [*map(json.loads, first), *rest]
    assert [event.get("answer") for event in told] == ["one", "two", None]


def test_reading_waits_no_longer_than_its_timeout(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    dify.answers = [[STREAM_HEAD, chunk(PING), FOREVER]]
    stream = ask(client, model)
    begun = time.monotonic()
    assert stream.read(begun + 0.2) == []
    assert 0.19 < time.monotonic() - begun < 1.5
    assert stream.read(time.monotonic() - 1) == []
    stream.close()


@pytest.mark.parametrize("name", ["1.13.2/chat/stream_first", "1.11.4/agent-chat/stream_first"])
def test_a_recording_is_read_as_it_was_written(
    dify: FakeDify, client: DifyClient, model: Model, name: str
) -> None:
    dify.answers = [replayed(name)]
    stream = ask(client, model)
    blocks = recording(name).body.split(b"\n\n")
    assert events(stream) == [json.loads(b[6:]) for b in blocks if b.startswith(b"data: ")]
    stream.close()


BODY_OF_EVENTS = Chat().text("a") + PING + Chat().end()
FRAMINGS = [
    pytest.param([STREAM_HEAD + chunk(BODY_OF_EVENTS) + LAST_CHUNK], id="chunked"),
    pytest.param(
        [
            head(200, "Content-Type: text/event-stream", f"Content-Length: {len(BODY_OF_EVENTS)}")
            + BODY_OF_EVENTS
        ],
        id="counted",
    ),
    pytest.param(
        [head(200, "Content-Type: text/event-stream") + BODY_OF_EVENTS, CLOSE], id="until close"
    ),
    pytest.param(
        [
            head(100),
            STREAM_HEAD.replace(b"charset=utf-8", b"charset=UTF-8"),
            *(chunk(BODY_OF_EVENTS[i : i + 1]) for i in range(len(BODY_OF_EVENTS))),
            LAST_CHUNK,
        ],
        id="a chunk a byte, after a 100",
    ),
]


@pytest.mark.parametrize("steps", FRAMINGS)
def test_every_framing_of_http_is_read(
    dify: FakeDify, client: DifyClient, model: Model, steps: list[Step]
) -> None:
    dify.answers = [steps]
    assert text(client, model) == "a"


# --- what goes wrong -------------------------------------------------------------------------


def test_a_dify_that_is_not_there_is_unreachable(client: DifyClient) -> None:
    model = Model("tiny", KEY, f"http://127.0.0.1:{free_port()}/v1")
    error = failure(client, model)
    assert type(error) is errors.UpstreamUnreachable
    assert "DIFY_API_BASE" in error.message


def test_a_name_that_nobody_has_is_unreachable(client: DifyClient) -> None:
    model = Model("tiny", KEY, "http://dify.invalid/v1")
    assert type(failure(client, model)) is errors.UpstreamUnreachable


def test_a_dify_that_takes_no_more_bytes_is_given_up(http: PooledClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        model = Model("tiny", KEY, f"http://127.0.0.1:{deaf.getsockname()[1]}/v1")
        client = DifyClient(http, read_timeout=0.3)
        with pytest.raises(errors.UpstreamTimeout):
            client.stream(model, "/chat-messages", {"query": "x" * 20_000_000}, NEVER)


BROKEN = [
    pytest.param([CLOSE], id="closed before a byte"),
    pytest.param([RESET], id="reset before a byte"),
    pytest.param([STREAM_HEAD[:30], CLOSE], id="closed in its head"),
    pytest.param([STREAM_HEAD[:30], 0.05, RESET], id="reset in its head"),
    pytest.param([STREAM_HEAD, CLOSE], id="closed after its head"),
    pytest.param([STREAM_HEAD, 0.05, RESET], id="reset after its head"),
    pytest.param([STREAM_HEAD, chunk(Chat().text("a")), CLOSE], id="closed after text"),
    pytest.param([STREAM_HEAD, chunk(Chat().text("a")), 0.05, RESET], id="reset after text"),
    pytest.param([STREAM_HEAD, b"zz\r\n"], id="a broken chunk"),
    pytest.param([b"SSH-2.0-OpenSSH\r\n\r\n"], id="not HTTP"),
    pytest.param([b"<html><p>502 of a proxy\r\n\r\n", CLOSE], id="a page without a head"),
    pytest.param([b"\x15\x03\x03\x00\x02\x02\x46\r\n\r\n"], id="TLS"),
    pytest.param(refused(200, {"answer": "Hello"}), id="JSON instead of a stream"),
    pytest.param(refused(200, b"<html>Dify</html>", "text/html"), id="a page instead of a stream"),
    pytest.param([head(200, "Content-Length: 0")], id="no content type"),
    pytest.param([head(204)], id="no content"),
    pytest.param(
        [
            head(
                200,
                "Content-Type: text/event-stream",
                "Content-Encoding: gzip",
                "Content-Length: 2",
            ),
            b"\x1f\x8b",
        ],
        id="compressed",
    ),
    pytest.param(refused(502, b"<html>nginx</html>", "text/html"), id="502 of nginx"),
    pytest.param(refused(500, b"", "text/plain"), id="500 of nothing"),
    pytest.param(refused(404, b"<html>404</html>", "text/html"), id="404 of another server"),
]


@pytest.mark.parametrize("steps", BROKEN)
def test_a_broken_answer_is_an_error_and_is_not_asked_for_again(
    dify: FakeDify, client: DifyClient, model: Model, steps: list[Step]
) -> None:
    dify.answers = [steps]
    error = failure(client, model)
    assert type(error) is errors.BadUpstreamResponse
    assert len(dify.asked()) == 1


# --- calls -----------------------------------------------------------------------------------


def answering(dify: FakeDify, status: int, body: bytes, *headers: str) -> None:
    kind = ("Content-Type: application/json", f"Content-Length: {len(body)}", *headers)
    dify.answer = lambda request: [head(status, *kind) + body]


def test_a_call_asks_for_what_is_not_compressed(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    answering(dify, 200, b'{"a": 1}')
    assert client.call(model, "GET", "/x") == {"a": 1}
    assert dify.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_call_that_is_answered_compressed_is_read(
    dify: FakeDify, client: DifyClient, model: Model, coding: str
) -> None:
    whole = b'{"a": "\xff"}'
    packed = gzip.compress(whole) if coding == "gzip" else zlib.compress(whole)
    answering(dify, 200, packed, f"Content-Encoding: {coding}")
    assert client.call(model, "GET", "/x") == {"a": "\ufffd"}


@pytest.mark.parametrize("coding", ["br", "zstd"])
def test_a_coding_that_cannot_be_undone_is_named(
    dify: FakeDify, client: DifyClient, model: Model, coding: str
) -> None:
    answering(dify, 200, b"??", f"Content-Encoding: {coding}")
    with pytest.raises(errors.BadUpstreamResponse, match=rf"\({coding}\).*switch compression off"):
        client.call(model, "GET", "/x")


def test_a_call_that_is_answered_with_too_much_is_an_error(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    answering(dify, 200, b'"' + b"x" * MAX_CALL_BYTES + b'"')
    with pytest.raises(errors.BadUpstreamResponse, match="larger than 8 MB"):
        client.call(model, "GET", "/x")


def test_a_call_that_is_answered_in_drops_is_given_up(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    def drops() -> Iterator[Step]:
        yield head(200, "Content-Type: application/json", "Content-Length: 999")
        for _ in range(60):
            yield b" "
            yield 0.3

    dify.answer = lambda request: drops()
    begun = time.monotonic()
    with pytest.raises(errors.UpstreamTimeout):
        client.call(model, "GET", "/x", timeout=1.0)
    assert time.monotonic() - begun < 10


def test_a_call_to_a_dify_that_restarts_is_made_when_it_is_there(client: DifyClient) -> None:
    port = free_port()
    model = Model("tiny", KEY, f"http://127.0.0.1:{port}/v1")
    late: list[FakeDify] = []

    def start() -> None:
        late.append(FakeDify(port=port, answer=lambda request: refused(200, {"a": 1})))

    timer = threading.Timer(0.5, start)
    timer.start()
    try:
        assert client.call(model, "GET", "/x") == {"a": 1}
    finally:
        timer.join()
        late[0].close()


@pytest.mark.parametrize("what", ["caller", "ending"])
def test_nobody_waits_for_a_dify_that_restarts_in_vain(client: DifyClient, what: str) -> None:
    model = Model("tiny", KEY, f"http://127.0.0.1:{free_port()}/v1")
    left, right = socket.socketpair()
    with left, right:
        if what == "caller":
            right.close()
            watch = Cancellation(caller=left.fileno())
        else:
            right.sendall(b"!")
            watch = Cancellation(ending=left.fileno())
        with pytest.raises((errors.ClientDisconnected, errors.ServerStopping)):
            client.stream(model, "/chat-messages", BODY, watch)


UNREADABLE = [
    pytest.param(b"data: hello\n\n", id="an event that is no JSON"),
    pytest.param(b"data: {}\n\n", id="an event without a name"),
    pytest.param(b"data: <html>\n\n", id="a page in an event"),
]


@pytest.mark.parametrize("event", UNREADABLE)
def test_an_unreadable_event_is_an_error(
    dify: FakeDify, client: DifyClient, model: Model, event: bytes
) -> None:
    dify.answers = [streamed(event)]
    turn = DifyRun(client, model, "chat", "u", ask(client, model))
    with pytest.raises(errors.BadUpstreamResponse) as caught:
        turn.next_events(time.monotonic() + 5)
    turn.close()
    assert "<" not in caught.value.message
    assert len(dify.asked()) == 1


FAULTS_AFTER_TEXT = [
    pytest.param(b"zz\r\n", id="a broken chunk"),
    pytest.param(b"3\r\nHello\r\n", id="a chunk that is too short"),
    pytest.param(chunk(b"data: hello\n\n"), id="an event that is no JSON"),
    pytest.param(chunk(b"data: hello\n\n") + LAST_CHUNK, id="the same at the end"),
]


@pytest.mark.parametrize("fault", FAULTS_AFTER_TEXT)
def test_what_came_before_a_fault_in_the_same_bytes_is_not_lost(
    dify: FakeDify, client: DifyClient, model: Model, fault: bytes
) -> None:
    dify.answers = [[STREAM_HEAD + chunk(Chat().text("a")) + fault, FOREVER]]
    turn = DifyRun(client, model, "chat", "u", ask(client, model))
    until = time.monotonic() + 5
    assert turn.next_events(until) == [Text("a")]
    with pytest.raises(errors.BadUpstreamResponse):
        turn.next_events(until)
    assert time.monotonic() < until
    turn.close()


def test_what_follows_an_answer_that_was_left_holds_up_no_other(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    dify.answers = [[STREAM_HEAD + chunk(Chat().text("a")), FOREVER]] * 2
    slow, done = threading.Event(), threading.Event()
    for afterwards in (slow.wait, done.set):
        turn = DifyRun(client, model, "advanced-chat", "u", ask(client, model))
        assert turn.next_events(time.monotonic() + 5) == [Text("a")]
        turn.close(lambda do=afterwards: do() and None)
    try:
        assert done.wait(5)
    finally:
        slow.set()


REFUSED = [
    pytest.param("1.13.2/chat/wrong_key", errors.UpstreamAuthError, id="401"),
    pytest.param("1.13.2/chat/no_auth_header", errors.UpstreamAuthError, id="401 without a key"),
    pytest.param("1.13.2/chat/stream_conv_unknown", errors.ConversationNotFound, id="404"),
    pytest.param("1.13.2/chat/missing_query", errors.RejectedByDify, id="400"),
    pytest.param(
        "1.13.2/workflow/on_chat_messages", errors.UpstreamConfigError, id="not a chat app"
    ),
]


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_a_recorded_refusal_is_its_error(
    dify: FakeDify,
    client: DifyClient,
    model: Model,
    name: str,
    kind: type[errors.DifyError],
) -> None:
    dify.answers = [replayed(name)]
    assert type(failure(client, model)) is kind


STATUSES = [
    pytest.param(403, b"", (), errors.BadUpstreamResponse, None, id="403"),
    pytest.param(401, b"<html>", (), errors.BadUpstreamResponse, None, id="401"),
    pytest.param(413, b"<html>", (), errors.FileTooLargeForDify, None, id="413"),
    pytest.param(429, b"", ("Retry-After: 9",), errors.RateLimited, 9, id="429"),
    pytest.param(503, b"<html>", ("Retry-After: 9",), errors.UpstreamUnavailable, 9, id="503"),
    pytest.param(503, b"", (), errors.UpstreamUnavailable, 2, id="503 without a time"),
    pytest.param(504, b"<html>", (), errors.UpstreamTimeout, None, id="504"),
]


@pytest.mark.parametrize(("status", "body", "headers", "kind", "retry_after"), STATUSES)
def test_a_status_of_a_gateway_is_its_error(
    dify: FakeDify,
    client: DifyClient,
    model: Model,
    status: int,
    body: bytes,
    headers: tuple[str, ...],
    kind: type[errors.DifyError],
    retry_after: int | None,
) -> None:
    length = f"Content-Length: {len(body)}"
    dify.answers = [[head(status, "Content-Type: text/html", length, *headers) + body]]
    error = failure(client, model)
    assert (type(error), error.retry_after) == (kind, retry_after)


def test_a_truncated_error_response_still_has_its_status(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    dify.answers = [[head(503, "Content-Length: 500"), b"<html>", CLOSE]]
    assert type(failure(client, model)) is errors.UpstreamUnavailable


def test_an_endless_page_is_not_read_to_its_end(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    def page() -> Iterator[Step]:
        yield head(500, "Content-Type: text/html", "Transfer-Encoding: chunked")
        while True:
            yield chunk(b"x" * 10_000)

    dify.answers = [page()]
    assert type(failure(client, model)) is errors.BadUpstreamResponse


def test_an_event_that_is_too_large_is_an_error(
    dify: FakeDify, client: DifyClient, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    dify.answers = [streamed(b"data: " + b"x" * 2000)]
    assert type(failure(client, model)) is errors.BadUpstreamResponse


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(
    dify: FakeDify, client: DifyClient, model: Model, status: int
) -> None:
    other = FakeDify()
    try:
        to = f"Location: {other.base}/chat-messages"
        dify.answers = [[head(status, to, "Content-Length: 0")]]
        error = failure(client, model)
        assert type(error) is errors.BadUpstreamResponse
        assert "DIFY_API_BASE" in error.message
        assert (other.requests, len(dify.asked())) == ([], 1)
    finally:
        other.close()


def test_an_answer_cut_at_any_byte_is_an_error(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    steps = replayed("1.13.2/chat/slow_first_token_ping")
    whole = b"".join(step for step in steps if isinstance(step, bytes))
    assert whole.endswith(LAST_CHUNK)
    for position in range(len(whole)):
        dify.answers = [[whole[:position], CLOSE]]
        assert type(failure(client, model)) is errors.BadUpstreamResponse, position
    assert len(dify.asked()) == len(whole)


SILENT = [
    pytest.param([FOREVER], id="before its head"),
    pytest.param([STREAM_HEAD[:30], FOREVER], id="in its head"),
    pytest.param([STREAM_HEAD, FOREVER], id="after its head"),
    pytest.param([STREAM_HEAD, chunk(PING), FOREVER], id="after one ping, as 1.13 with a dead run"),
    pytest.param([STREAM_HEAD, chunk(Chat().text("a")), FOREVER], id="after text"),
    pytest.param([STREAM_HEAD, chunk(Chat().end())[:-20], FOREVER], id="in an event"),
    pytest.param([head(500, "Content-Length: 50"), FOREVER], id="in a refusal"),
]


@pytest.mark.parametrize("steps", SILENT)
def test_a_dify_that_falls_silent_is_given_up(
    dify: FakeDify, http: PooledClient, model: Model, steps: list[Step]
) -> None:
    dify.answers = [steps]
    error = failure(DifyClient(http, read_timeout=0.2), model)
    assert type(error) is errors.UpstreamTimeout
    assert "0.2 seconds" in error.message
    assert len(dify.asked()) == 1


def test_pings_are_life(dify: FakeDify, http: PooledClient, model: Model) -> None:
    dify.answers = [streamed(PING, *[0.1, PING] * 8, Chat().text("late"), Chat().end())]
    assert text(DifyClient(http, read_timeout=0.5), model) == "late"


def concrete_httpx_errors() -> list[type[httpx.RequestError]]:
    def below(kind: type[Any]) -> list[type[Any]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    return below(httpx.RequestError)


@pytest.mark.parametrize("kind", concrete_httpx_errors(), ids=lambda kind: kind.__name__)
def test_every_error_of_httpx_becomes_one_of_ours(kind: type[httpx.RequestError]) -> None:
    class Failing(PooledTransport):
        def begin(
            self, request: httpx.Request, cancellation: Cancellation = NEVER
        ) -> PendingResponse:
            raise kind("secret words of a library", request=request)

    with PooledClient(Failing(LIMITS)) as http:
        client = DifyClient(http, read_timeout=1)
        with pytest.raises(errors.OpenDifyError) as caught:
            client.stream(Model("tiny", KEY, "http://dify/v1"), "/chat-messages", BODY, NEVER)
    assert caught.value.status in (502, 503, 504)
    assert "secret" not in caught.value.message


# --- one connection, many answers ------------------------------------------------------------


def test_twenty_answers_need_one_connection(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    for _ in range(20):
        assert text(client, model) == "Hello"
    assert (len(dify.asked()), dify.connections) == (20, 1)


def test_refusals_do_not_cost_the_connection(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    for _ in range(5):
        dify.answers = [replayed("1.13.2/chat/missing_query")]
        assert type(failure(client, model)) is errors.RejectedByDify
        assert text(client, model) == "Hello"
    assert dify.connections == 1


def test_an_answer_that_has_said_its_last_word_is_read_to_its_end(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    said = streamed(Chat().end())
    dify.answers = [[*said[:-1], 0.01, LAST_CHUNK]]
    stream = ask(client, model)
    assert stream.read(time.monotonic() + 5)
    stream.drain()
    assert text(client, model) == "Hello"
    assert dify.connections == 1


def test_a_connection_that_is_held_open_after_the_last_word_is_not_waited_for(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    dify.answers = [[*streamed(Chat().end())[:-1], FOREVER]]
    stream = ask(client, model)
    assert stream.read(time.monotonic() + 5)
    begun = time.monotonic()
    stream.drain()
    assert time.monotonic() - begun < 1
    assert text(client, model) == "Hello"
    assert dify.connections == 2


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param([b"zz\r\n"], id="a broken chunk"),
        pytest.param([CLOSE], id="the end of the connection"),
        pytest.param([LAST_CHUNK + b"surplus"], id="more than the end"),
        pytest.param(
            [chunk(Chat().event("error", status=500, code="x", message="y")), LAST_CHUNK],
            id="another event",
        ),
    ],
)
def test_what_follows_the_last_word_harms_nobody(
    dify: FakeDify, client: DifyClient, model: Model, rest: list[Step]
) -> None:
    dify.answers = [[*streamed(Chat().end())[:-1], 0.02, *rest]]
    stream = ask(client, model)
    assert stream.read(time.monotonic() + 5)
    stream.drain()
    stream.close()
    assert text(client, model) == "Hello"


def test_an_answer_that_was_left_in_the_middle_gives_its_connection_up(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    dify.answers = [[STREAM_HEAD, chunk(Chat().text("a")), FOREVER]]
    stream = ask(client, model)
    assert stream.read(time.monotonic() + 5)
    stream.close()
    assert text(client, model) == "Hello"
    assert dify.connections == 2


@pytest.mark.parametrize("step", [CLOSE, RESET], ids=["closed", "reset"])
def test_a_kept_connection_that_dify_closed_meanwhile_is_asked_once_more(
    dify: FakeDify, client: DifyClient, model: Model, step: Step
) -> None:
    dify.answers = [Chat().says("one"), [step], Chat().says("two")]
    assert text(client, model) == "one"
    assert text(client, model) == "two"
    assert [request.connection for request in dify.asked()] == [1, 1, 2]
    assert len({request.body for request in dify.asked()}) == 1


def test_no_question_is_asked_a_third_time(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    dify.answers = [Chat().says("one"), [CLOSE], [CLOSE]]
    assert text(client, model) == "one"
    assert type(failure(client, model)) is errors.BadUpstreamResponse
    assert len(dify.asked()) == 3


DIED_LATER = [
    pytest.param([0.3, CLOSE], id="after a while"),
    pytest.param([0.3, RESET], id="reset after a while"),
    pytest.param([b"HTTP/1.1 2", CLOSE], id="after the first bytes"),
    pytest.param([STREAM_HEAD, CLOSE], id="after its head"),
    pytest.param([STREAM_HEAD, chunk(PING), CLOSE], id="after a ping"),
]


@pytest.mark.parametrize("steps", DIED_LATER)
def test_a_dify_that_may_have_begun_is_not_asked_again(
    dify: FakeDify,
    client: DifyClient,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[Step],
) -> None:
    monkeypatch.setattr(pending_response, "REUSE_RACE_SECONDS", 0.1)
    dify.answers = [Chat().says("one"), steps]
    assert text(client, model) == "one"
    assert type(failure(client, model)) is errors.BadUpstreamResponse
    assert len(dify.asked()) == 2


def test_a_connection_that_dify_closed_while_it_was_idle_is_not_used(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    dify.answers = [[*Chat().says("one"), CLOSE]]
    assert text(client, model) == "one"
    time.sleep(0.1)
    assert text(client, model) == "Hello"
    assert (len(dify.asked()), dify.connections) == (2, 2)


@pytest.mark.parametrize("step", [CLOSE, RESET], ids=["closed", "reset"])
def test_a_call_on_a_kept_connection_that_dify_has_closed_is_made_once_more(
    dify: FakeDify, client: DifyClient, model: Model, step: Step
) -> None:
    answers = [refused(200, {"n": 1}), [step], refused(200, {"n": 2}), [step], [step]]
    dify.answer = lambda request: answers.pop(0)
    files = {"file": ("a.txt", b"hello", "text/plain")}
    assert client.call(model, "GET", "/meta") == {"n": 1}
    assert client.call(model, "POST", "/files/upload", data={"user": "u"}, files=files) == {"n": 2}
    with pytest.raises(errors.UpstreamUnreachable):
        client.call(model, "GET", "/meta")
    assert [request.connection for request in dify.requests] == [1, 1, 2, 2, 3]
    assert all(b"hello" in request.body for request in dify.requests[1:3])


@pytest.mark.parametrize("steps", [[b"HTTP/1.1 2", CLOSE], [b"HTTP/1.1 2", 0.05, RESET]])
def test_a_call_that_dify_began_to_answer_is_not_made_again(
    dify: FakeDify, client: DifyClient, model: Model, steps: list[Step]
) -> None:
    answers = [refused(200, {"n": 1}), steps]
    dify.answer = lambda request: answers.pop(0)
    assert client.call(model, "GET", "/meta") == {"n": 1}
    with pytest.raises(errors.UpstreamUnreachable):
        client.call(model, "GET", "/meta")
    assert len(dify.requests) == 2


def test_a_full_pool_is_an_error_of_ours_and_not_of_dify(dify: FakeDify, model: Model) -> None:
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    with PooledClient(PooledTransport(limits), trust_env=False) as http:
        client = DifyClient(http, read_timeout=2)
        dify.answers = [[STREAM_HEAD, FOREVER]]
        stream = ask(client, model)
        with pytest.raises(errors.Overloaded) as caught:
            ask(client, model)
        assert caught.value.retry_after
        stream.close()
        assert text(client, model) == "Hello"


def test_concurrent_answers_have_a_connection_each(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    together = threading.Barrier(8)
    dify.answer = lambda request: Chat().says(str(request.json["query"]))
    found: list[str] = []

    def one(number: int) -> None:
        together.wait(10)
        stream = client.stream(model, "/chat-messages", {"query": number}, NEVER)
        found.append(f"{number}={''.join(e.get('answer', '') for e in events(stream))}")
        stream.close()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == [f"{n}={n}" for n in range(8)]


# --- the caller ------------------------------------------------------------------------------


@pytest.fixture
def caller() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The caller's end of a connection, and ours."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        here, _ = server.accept()
    with theirs, here:
        yield theirs, here


@pytest.mark.parametrize("how", ["close", "reset", "shutdown"])
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([FOREVER], id="before the head"),
        pytest.param([STREAM_HEAD, chunk(PING), FOREVER], id="in a silence"),
        pytest.param([STREAM_HEAD, *[chunk(PING), 0.02] * 500], id="while events flow"),
    ],
)
def test_a_caller_that_hangs_up_is_noticed(
    dify: FakeDify,
    client: DifyClient,
    model: Model,
    caller: tuple[socket.socket, socket.socket],
    steps: list[Step],
    how: str,
) -> None:
    theirs, here = caller
    dify.answers = [steps]
    stream = ask(client, model, here.fileno())
    assert stream.read(time.monotonic() + 0.1) == []
    if how == "reset":
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if how == "shutdown":
        theirs.shutdown(socket.SHUT_RDWR)
    else:
        theirs.close()
    with pytest.raises(errors.ClientDisconnected):
        stream.read(time.monotonic() + 2)
    stream.close()


def test_a_caller_that_sends_more_has_not_disconnected(
    dify: FakeDify,
    client: DifyClient,
    model: Model,
    caller: tuple[socket.socket, socket.socket],
) -> None:
    theirs, here = caller
    theirs.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
    stream = ask(client, model, here.fileno())
    assert events(stream)
    stream.close()


def test_the_rest_of_an_answer_is_read_though_the_caller_is_gone(
    dify: FakeDify,
    client: DifyClient,
    model: Model,
    caller: tuple[socket.socket, socket.socket],
) -> None:
    theirs, here = caller
    dify.answers = [[*streamed(Chat().end())[:-1], 0.01, LAST_CHUNK]]
    stream = ask(client, model, here.fileno())
    assert stream.read(time.monotonic() + 5)
    theirs.close()
    stream.drain()
    assert text(client, model) == "Hello"
    assert dify.connections == 1


def test_a_post_on_a_connection_that_dify_has_closed_is_made_once_more(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    dify.answer = lambda r: [CLOSE] if len(dify.requests) == 2 else refused(201, {"id": "f"})
    assert client.post(model, "/files/upload", NEVER, data={"user": "u"}) == {"id": "f"}
    assert client.post(model, "/files/upload", NEVER, data={"user": "u"}) == {"id": "f"}
    assert len(dify.requests) == 3
    dify.answer = lambda r: [CLOSE]
    with pytest.raises(errors.DifyError):
        client.post(model, "/files/upload", NEVER, data={"user": "u"})


def test_a_post_ends_with_its_caller(dify: FakeDify, client: DifyClient, model: Model) -> None:
    dify.answer = lambda r: [FOREVER]
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(errors.ClientDisconnected):
        theirs.close()
        client.post(model, "/files/upload", Cancellation(ours.fileno()), data={"user": "u"})


# --- stop ------------------------------------------------------------------------------------


def stop(client: DifyClient, model: Model) -> None:
    """Stops, and waits until what Dify says to it is read."""
    client.stop(model, "/chat-messages/task-1/stop", "u")
    until = time.monotonic() + 10
    while len(client.background_reader):
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_run_is_stopped_for_its_user(dify: FakeDify, client: DifyClient, model: Model) -> None:
    stop(client, model)
    (request,) = dify.requests
    assert (request.method, request.path) == ("POST", "/v1/chat-messages/task-1/stop")
    assert request.json == {"user": "u"}
    assert request.headers["authorization"] == f"Bearer {KEY}"


def test_a_stop_and_a_question_share_a_connection(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    stop(client, model)
    assert text(client, model) == "Hello"
    stop(client, model)
    assert dify.connections == 1


def test_a_stop_that_fails_is_logged_without_the_key(
    client: DifyClient, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model("tiny", KEY, f"http://127.0.0.1:{free_port()}/v1")
    with caplog.at_level(logging.DEBUG):
        stop(client, model)
    assert "model=tiny" in caplog.text
    assert KEY not in caplog.text


def test_a_stop_that_is_redirected_goes_nowhere_else(
    dify: FakeDify, client: DifyClient, model: Model
) -> None:
    other = FakeDify()
    try:
        to = f"Location: {other.base}/elsewhere"
        dify.answer_stop = [head(307, to, "Content-Length: 0")]
        stop(client, model)
        assert (other.requests, len(dify.stopped())) == ([], 1)
    finally:
        other.close()


def test_a_stop_that_finds_the_pool_full_is_not_the_end_of_anything(
    dify: FakeDify, model: Model
) -> None:
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    with PooledClient(PooledTransport(limits), trust_env=False) as http:
        client = DifyClient(http, read_timeout=2)
        dify.answers = [[STREAM_HEAD, FOREVER]]
        stream = ask(client, model)
        stop(client, model)
        stream.close()
        assert dify.stopped() == []


# --- TLS and proxies -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


@pytest.fixture
def secure_dify(authority: trustme.CA) -> Iterator[FakeDify]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    fake = FakeDify(tls=context)
    yield fake
    fake.close()


def connected(*bases: str, **environ: str) -> PooledClient:
    """A client made as the application makes it."""
    return PooledClient(PooledTransport(LIMITS, proxies_for(bases, environ)), trust_env=False)


@pytest.mark.usefixtures("trusted")
def test_answers_stream_over_tls_on_one_connection(secure_dify: FakeDify) -> None:
    model = Model("tiny", KEY, secure_dify.base)
    with connected(model.base) as http:
        client = DifyClient(http, read_timeout=2)
        for _ in range(3):
            assert text(client, model) == "Hello"
    assert secure_dify.connections == 1


@pytest.mark.usefixtures("trusted")
def test_what_tls_has_already_unpacked_is_read_without_waiting(secure_dify: FakeDify) -> None:
    texts = [Chat().text(f"{number} " * 50) for number in range(1000)]
    burst = b"".join(chunk(text) for text in texts)
    secure_dify.answers = [[STREAM_HEAD + burst, FOREVER]]
    model = Model("tiny", KEY, secure_dify.base)
    with connected(model.base) as http:
        stream = ask(DifyClient(http, read_timeout=5), model)
        found: list[Any] = []
        until = time.monotonic() + 4
        while len(found) < 1000 and time.monotonic() < until:
            found += stream.read(until) or []
        stream.close()
    assert len(found) == 1000


def test_a_certificate_that_nobody_vouches_for_is_refused(secure_dify: FakeDify) -> None:
    model = Model("tiny", KEY, secure_dify.base)
    with connected(model.base) as http:
        assert type(failure(DifyClient(http, 2), model)) is errors.UpstreamUnreachable
    assert secure_dify.requests == []


RELAYS = [pytest.param(HttpRelay, id="HTTP"), pytest.param(Socks5Relay, id="SOCKS 5")]


@pytest.fixture(params=RELAYS)
def relay(request: pytest.FixtureRequest) -> Iterator[Relay]:
    made = request.param()
    yield made
    made.close()


def test_answers_stream_through_a_proxy_on_one_connection(relay: Relay, dify: FakeDify) -> None:
    model = Model("tiny", KEY, dify.base)
    with connected(model.base, HTTP_PROXY=relay.url) as http:
        client = DifyClient(http, read_timeout=2)
        for _ in range(3):
            assert text(client, model) == "Hello"
        stop(client, model)
    assert relay.targets == [f"127.0.0.1:{dify.port}"]
    assert (len(dify.asked()), len(dify.stopped())) == (3, 1)


@pytest.mark.usefixtures("trusted")
def test_answers_stream_over_tls_through_a_proxy(relay: Relay, secure_dify: FakeDify) -> None:
    model = Model("tiny", KEY, secure_dify.base)
    with connected(model.base, HTTPS_PROXY=relay.url) as http:
        client = DifyClient(http, read_timeout=2)
        for _ in range(3):
            assert text(client, model) == "Hello"
    assert relay.targets == [f"127.0.0.1:{secure_dify.port}"]
    assert secure_dify.connections == 1


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("make", RELAYS)
def test_tls_records_that_arrive_in_pieces_are_put_together(
    make: Callable[..., Relay], secure_dify: FakeDify
) -> None:
    relay = make(piece=7)
    try:
        secure_dify.answers = [Chat().says(*["word "] * 200)]
        model = Model("tiny", KEY, secure_dify.base)
        with connected(model.base, ALL_PROXY=relay.url) as http:
            assert text(DifyClient(http, read_timeout=5), model) == "word " * 200
    finally:
        relay.close()


@pytest.mark.usefixtures("trusted")
def test_answers_stream_over_tls_through_a_proxy_that_speaks_tls_itself(
    authority: trustme.CA, secure_dify: FakeDify
) -> None:
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    relay = SecureRelay(theirs)
    try:
        proxy = httpx.Proxy(relay.url, ssl_context=ours)
        transport = PooledTransport(LIMITS, {secure_dify.base.removesuffix("/v1"): proxy})
        with PooledClient(transport, trust_env=False) as http:
            client = DifyClient(http, read_timeout=2)
            model = Model("tiny", KEY, secure_dify.base)
            for texts in (["Hello"], ["word "] * 2000, ["Hello"]):
                secure_dify.answers = [Chat().says(*texts)]
                assert text(client, model) == "".join(texts)
    finally:
        relay.close()
    assert relay.targets == [f"127.0.0.1:{secure_dify.port}"]
    assert secure_dify.connections == 1


def test_a_host_that_needs_no_proxy_is_reached_directly(relay: Relay, dify: FakeDify) -> None:
    model = Model("tiny", KEY, dify.base)
    with connected(model.base, ALL_PROXY=relay.url, NO_PROXY="127.0.0.1") as http:
        assert text(DifyClient(http, 2), model) == "Hello"
    assert relay.targets == []


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_that_is_not_there_is_an_error(dify: FakeDify, scheme: str) -> None:
    model = Model("tiny", KEY, dify.base)
    with connected(model.base, ALL_PROXY=f"{scheme}://127.0.0.1:{free_port()}") as http:
        assert type(failure(DifyClient(http, 2), model)) is errors.UpstreamUnreachable
    assert dify.requests == []


def test_a_fresh_connection_through_a_proxy_is_not_asked_again_either(
    relay: Relay, dify: FakeDify
) -> None:
    dify.answers = [[CLOSE]]
    model = Model("tiny", KEY, dify.base)
    with connected(model.base, ALL_PROXY=relay.url) as http:
        assert type(failure(DifyClient(http, 2), model)) is errors.BadUpstreamResponse
    assert len(dify.asked()) == 1


def test_a_kept_connection_through_a_proxy_is_asked_once_more(relay: Relay, dify: FakeDify) -> None:
    dify.answers = [Chat().says("one"), [CLOSE], Chat().says("two")]
    model = Model("tiny", KEY, dify.base)
    with connected(model.base, ALL_PROXY=relay.url) as http:
        client = DifyClient(http, read_timeout=2)
        assert text(client, model) == "one"
        assert text(client, model) == "two"
    assert len(dify.asked()) == 3
