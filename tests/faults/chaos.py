"""A Dify that fails in the way that the key of the asked model names, and how each failure is to
be told. Its faults are data: a case is a fault, not code.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support.fake_dify import (
    CLOSE,
    FOREVER,
    LAST_CHUNK,
    PING,
    RESET,
    STREAM_HEAD,
    Chat,
    FakeDify,
    Request,
    Step,
    Steps,
    chunk,
    event,
    head,
    refused,
    streamed,
)

# Seconds of silence after which the services of these tests give an answer up.
READ_TIMEOUT = 2

# What must never be seen by a caller: it stands in the page of a gateway.
PAGE_MARK = "internal-host-7"
PAGE = f"<html><head><title>Oops</title></head><body>{PAGE_MARK} nginx/1.25</body></html>".encode()


def _bomb(mebibytes: int) -> bytes:
    """Gzip of so much of nothing, a thousandth of it. One block is packed, and repeated: every
    process that collects the tests makes this."""
    nothing = bytes(1024**2)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = packer.compress(nothing) + packer.flush(zlib.Z_FULL_FLUSH)
    check = 0
    for _ in range(mebibytes):
        check = zlib.crc32(nothing, check)
    head = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    end = struct.pack("<II", check, mebibytes * len(nothing))
    return head + block * mebibytes + packer.flush() + end


BOMB = _bomb(512)


def task_of(request: Request) -> str:
    """The name that Dify gives to the run of this question."""
    return f"task-of-{request.json['user']}"


def chat_of(request: Request) -> Chat:
    return Chat(task_id=task_of(request))


Answering = Callable[[Request], Steps]


@dataclass(frozen=True)
class Fault:
    """``answer`` gives the steps that Dify takes; ``status`` and ``code`` are what a caller is
    told before the first byte, and in an answer that is not streamed.

    ``mid`` says that text came first: a stream then has begun, and ends with an error event.
    ``retry`` is the header ``x-should-retry`` that is due, ``after`` the header ``Retry-After``;
    ``stops`` says whether a run is left behind that must be stopped; ``says`` must be in the
    message.
    """

    answer: Answering
    status: int = 502
    code: str = "upstream_error"
    mid: bool = False
    retry: str | None = "false"
    after: str | None = None
    stops: bool = False
    says: str = ""
    type: str = "api_error"


def _plain(*steps: Step) -> Answering:
    return lambda request: list(steps)


def _page(status: int, *headers: str) -> Answering:
    length = f"Content-Length: {len(PAGE)}"
    return _plain(head(status, "Content-Type: text/html", length, *headers) + PAGE)


def _told(status: int, code: str, message: str, *headers: str) -> Answering:
    body = json.dumps({"code": code, "message": message, "status": status}).encode()
    first = head(status, "Content-Type: application/json", f"Content-Length: {len(body)}", *headers)
    return _plain(first + body)


def _stream(*steps: Step) -> Answering:
    return lambda request: streamed(*steps)


def _body(content: bytes, media_type: str, *headers: str) -> Answering:
    length = f"Content-Length: {len(content)}"
    return _plain(head(200, f"Content-Type: {media_type}", length, *headers) + content)


def _body_of(status: int, content: bytes, media_type: str, *headers: str) -> Answering:
    length = f"Content-Length: {len(content)}"
    return _plain(head(status, f"Content-Type: {media_type}", length, *headers) + content)


def _dripping(status: int) -> Answering:
    """A page of which a little comes now and then, for longer than anybody waits."""

    def answer(request: Request) -> Iterator[Step]:
        yield head(status, "Content-Type: text/html", "Content-Length: 9999")
        for _ in range(20 * READ_TIMEOUT):
            yield b"x"
            yield 0.5

    return answer


def _failed(code: str, message: str, status: int = 400) -> Answering:
    """The error event of a stream, after which Dify 1.13 may keep the connection open."""
    return _stream(event(event="error", code=code, message=message, status=status), FOREVER)


def _rate_limit(message: str = "Too many requests. Please try again later.") -> str:
    return message


# --- what fails before there is anything to tell -----------------------------------------------

_LIMITED: dict[str, Any] = {
    "status": 429,
    "code": "rate_limit_exceeded",
    "type": "rate_limit_error",
    "retry": None,
    "after": "2",
}
_REJECTED: dict[str, Any] = {
    "status": 400,
    "code": "rejected_by_dify",
    "type": "invalid_request_error",
    "retry": None,
}
_AUTH: dict[str, Any] = {"code": "upstream_auth_error", "says": "{model}"}
_TIMEOUT: dict[str, Any] = {"status": 504, "code": "upstream_timeout"}
_AWAY: dict[str, Any] = {"status": 503, "code": "upstream_unavailable", "retry": "true"}

REFUSALS = {
    "reset-at-once": Fault(_plain(RESET)),
    "closed-at-once": Fault(_plain(CLOSE)),
    "closed-in-head": Fault(_plain(b"HTTP/1.1 200 OK\r\nContent-Ty", CLOSE)),
    "reset-in-head": Fault(_plain(b"HTTP/1.1 200 OK\r\nContent-Ty", 0.05, RESET)),
    "closed-after-head": Fault(_plain(STREAM_HEAD, CLOSE)),
    "reset-after-head": Fault(_plain(STREAM_HEAD, 0.05, RESET)),
    "not-http": Fault(_plain(b"SSH-2.0-OpenSSH_9.2\r\n" + PAGE, CLOSE)),
    "endless-head": Fault(_plain(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, CLOSE)),
    "bad-length": Fault(_plain(head(200, "Content-Type: text/event-stream", "Content-Length: x"))),
    "not-json": Fault(_body(b"surprise " + PAGE, "application/json")),
    "half-json": Fault(_body(b'{"code": "inv', "application/json")),
    "json-instead-of-a-stream": Fault(_body(b'{"answer": "Hello"}', "application/json")),
    "page-with-200": Fault(_page(200), says="no event stream"),
    "answer-of-another-type": Fault(_body(Chat().text("Hello") + Chat().end(), "text/plain")),
    "text-instead-of-a-stream": Fault(_body(b"data: {}\n\n", "text/plain")),
    "no-content-type": Fault(_plain(head(200, "Content-Length: 5") + b"Hello")),
    "page-404": Fault(_page(404)),
    "page-405": Fault(_page(405)),
    "page-413": Fault(_page(413), 413, "file_too_large", type="invalid_request_error", retry=None),
    "page-429": Fault(_page(429), **_LIMITED),
    "page-400": Fault(_page(400)),
    "page-500": Fault(_page(500)),
    "page-502": Fault(_page(502)),
    "page-503": Fault(_page(503), after="2", **_AWAY),
    "page-503-later": Fault(_page(503, "Retry-After: 7"), after="7", **_AWAY),
    "page-503-date": Fault(
        _page(503, "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"), after="2", **_AWAY
    ),
    "page-504": Fault(_page(504), **_TIMEOUT),
    "page-520": Fault(_page(520)),
    "told-500": Fault(_told(500, "internal_server_error", f"It broke: {PAGE.decode()}")),
    "told-503": Fault(_told(503, "unavailable", "later", "Retry-After: 11"), after="11", **_AWAY),
    "page-in-a-message": Fault(
        _told(400, "completion_request_error", f"[openai] Error: {PAGE.decode()}"),
        code="run_failed",
    ),
    "key-in-a-message": Fault(
        _told(400, "completion_request_error", "[openai] key app-ThisIsASecret0 is wrong"),
        code="run_failed",
    ),
    "told-401": Fault(_told(401, "unauthorized", "Access token is invalid"), **_AUTH),
    "told-403": Fault(_told(403, "forbidden", "The app's API service is off"), **_AUTH),
    "page-401": Fault(
        _page(401, 'WWW-Authenticate: Basic realm="x"'), says="front of Dify refused the request"
    ),
    "page-403": Fault(_page(403), says="(403, a page)"),
    "page-407": Fault(_page(407), says="(407, a page)"),
    "json-403-of-a-gateway": Fault(
        _body_of(403, b'{"message":"Forbidden"}', "application/json"), says="front of Dify"
    ),
    "sign-in-302": Fault(
        _page(302, f"Location: https://login.{PAGE_MARK}/?next=/v1"), says="a sign-in page"
    ),
    "sign-in-307": Fault(_page(307, "Location: /oauth2/start"), says="a sign-in page"),
    "moved-301": Fault(_page(301, f"Location: https://{PAGE_MARK}/v1"), says="redirects"),
    "page-that-wants-tls": Fault(
        _body_of(400, b"<html>The plain HTTP request was sent to HTTPS port</html>", "text/html"),
        says="https://",
    ),
    "told-422": Fault(_told(422, "unprocessable_entity", "query: too long"), **_REJECTED),
    "page-422": Fault(_page(422)),
    "page-in-drops": Fault(_dripping(502), says="failed (502, a page)"),
    "page-of-gigabytes": Fault(
        _plain(head(502, "Content-Type: text/html"), *[b"<html>" + b"x" * 65536] * 100),
        says="failed (502, a page)",
    ),
    "packed-refusal": Fault(
        _body_of(
            400,
            gzip.compress(b'{"code":"invalid_param","message":"no city","status":400}'),
            "application/json",
            "Content-Encoding: gzip",
        ),
        **_REJECTED,
    ),
    "tls-alert": Fault(_plain(b"\x15\x03\x01\x00\x02\x02\x46", CLOSE), says="speaks TLS"),
    "told-429": Fault(_told(429, "too_many_requests", _rate_limit()), **_LIMITED),
    "told-429-later": Fault(
        _told(429, "too_many_requests", _rate_limit(), "Retry-After: 9"),
        **(_LIMITED | {"after": "9"}),
    ),
    "limit-as-a-400": Fault(_told(400, "invalid_param", _rate_limit()), **_LIMITED),
    "limit-of-the-provider": Fault(
        _told(400, "completion_request_error", "[openai] Rate Limit Error, 429 slow down"),
        **_LIMITED,
    ),
    "quota": Fault(
        _told(400, "provider_quota_exceeded", "Your quota is used up"),
        429,
        "insufficient_quota",
        type="insufficient_quota",
    ),
    "not-published": Fault(
        _told(400, "invalid_param", "Workflow not published"), code="model_not_ready"
    ),
    "wrong-kind": Fault(
        _told(400, "not_chat_app", "Check the app mode"), code="upstream_config_error"
    ),
    "told-400": Fault(_told(400, "invalid_param", "city is required in input form"), **_REJECTED),
    "too-long": Fault(
        _told(400, "completion_request_error", "maximum context length is 8192 tokens"),
        400,
        "context_length_exceeded",
        type="invalid_request_error",
        retry=None,
    ),
    "told-413": Fault(
        _told(413, "file_too_large", "File size exceeded. {message}"),
        **(_REJECTED | {"status": 413, "code": "file_too_large"}),
    ),
    "told-415": Fault(
        _told(415, "unsupported_file_type", "File type not allowed."),
        **(_REJECTED | {"status": 415, "code": "unsupported_file_type"}),
    ),
    "packed-in-br": Fault(
        _body(b"\x0b\x02\x80Hello\x03", "text/event-stream", "Content-Encoding: br"),
        says="compressed (br)",
    ),
    "packed-in-zstd": Fault(
        _body(b"\x28\xb5\x2f\xfd", "text/event-stream", "Content-Encoding: zstd"),
        says="compressed (zstd)",
    ),
    "packed-badly": Fault(
        _body(b"\x1f\x8b\x08 no gzip", "text/event-stream", "Content-Encoding: gzip"),
        says="not packed as it says",
    ),
    "packed-bomb": Fault(
        _body(BOMB, "text/event-stream", "Content-Encoding: gzip"), says="times its size"
    ),
    "empty-stream": Fault(_stream()),
    "pings-and-the-end": Fault(_stream(PING, PING)),
    "comment-and-the-end": Fault(_stream(b": nothing\n\n")),
    "error-event": Fault(_failed("completion_request_error", "it broke"), code="run_failed"),
    "error-event-after-a-ping": Fault(
        _stream(PING, event(event="error", code="invalid_param", message="no city", status=400)),
        **_REJECTED,
    ),
    "limit-in-an-event": Fault(
        _failed("completion_request_error", "[openai] Rate Limit Error, slow down"),
        **(_LIMITED | {"retry": "false"}),  # the question is in its conversation by now
    ),
    "event-not-json": Fault(_stream(b"data: surprise\n\n", FOREVER)),
    "event-a-list": Fault(_stream(b"data: [1]\n\n", FOREVER)),
    "event-a-page": Fault(_stream(b"data: " + PAGE + b"\n\n", FOREVER)),
    "silent": Fault(_plain(FOREVER), **_TIMEOUT),
    "silent-in-head": Fault(_plain(b"HTTP/1.1 200 OK\r\n", FOREVER), **_TIMEOUT),
    "silent-after-head": Fault(_plain(STREAM_HEAD, FOREVER), **_TIMEOUT),
    # A dead run of Dify 1.13: one ping, then nothing.
    "silent-after-ping": Fault(_stream(PING, FOREVER), **_TIMEOUT),
    "silent-after-pings": Fault(_stream(PING, 0.5, PING, 0.5, PING, FOREVER), **_TIMEOUT),
    "silent-in-a-page": Fault(
        _plain(head(502, "Content-Type: text/html", "Content-Length: 9999") + PAGE, FOREVER),
        **_TIMEOUT,
    ),
}


# --- what fails after the first text ------------------------------------------------------------


def _after_text(*steps: Step, **names: Any) -> Answering:
    def answer(request: Request) -> Steps:
        chat = chat_of(request)
        return [
            STREAM_HEAD,
            chunk(chat.text("Half an ")),
            *(step(chat) if callable(step) else step for step in steps),
        ]

    return answer


def _in_chunk(**fields: Any) -> Callable[[Chat], bytes]:
    return lambda chat: chunk(chat.event(**fields))


_STOPPED: dict[str, Any] = {"mid": True, "stops": True}
_OVER: dict[str, Any] = {"mid": True, "code": "run_failed"}

CUTS = {
    "closed": Fault(_after_text(CLOSE), **_STOPPED),
    "reset": Fault(_after_text(0.1, RESET), **_STOPPED),
    "ended": Fault(_after_text(LAST_CHUNK), **_STOPPED),
    "closed-in-a-chunk": Fault(_after_text(b'4f\r\ndata: {"event": "mes', CLOSE), **_STOPPED),
    "closed-in-an-event": Fault(_after_text(chunk(b"data: {"), LAST_CHUNK), **_STOPPED),
    "chunk-without-a-size": Fault(_after_text(b"zz\r\nHello\r\n", FOREVER), **_STOPPED),
    "chunk-too-short": Fault(_after_text(b"3\r\nHello\r\n", FOREVER), **_STOPPED),
    "not-an-event": Fault(_after_text(chunk(b"data: surprise\n\n"), FOREVER), **_STOPPED),
    "a-page": Fault(_after_text(chunk(b"data: " + PAGE + b"\n\n"), FOREVER), **_STOPPED),
    "enormous": Fault(
        _after_text(*[chunk(b"x" * 1024 * 1024)] * 34, FOREVER), **_STOPPED
    ),
    "endless": Fault(
        _after_text(
            *[lambda chat: chunk(chat.text("x" * 60_000))] * 20,
            FOREVER,
        ),
        mid=True,
        stops=True,
        code="answer_too_long",
        says="1 MB",
    ),
    "endless-thoughts": Fault(
        _after_text(
            *[
                lambda chat: chunk(
                    chat.event("reasoning_chunk", data={"reasoning": "x" * 60_000, "node_id": "n"})
                )
            ]
            * 20,
            FOREVER,
        ),
        mid=True,
        stops=True,
        code="answer_too_long",
    ),
    "endless-steps": Fault(
        _after_text(
            lambda chat: chunk(
                b"".join(chat.event("agent_thought", id=str(i), tool="t") for i in range(8_000))
            ),
            FOREVER,
        ),
        mid=True,
        stops=True,
        code="answer_too_long",
    ),
    "endless-nodes": Fault(
        _after_text(
            lambda chat: chunk(
                b"".join(
                    chat.event("node_started", data={"title": "n", "node_type": "llm"})
                    for _ in range(8_000)
                )
            ),
            FOREVER,
        ),
        mid=True,
        stops=True,
        code="answer_too_long",
    ),
    "endless-nothing": Fault(
        _after_text(
            lambda chat: chunk(b"".join(chat.text("") for _ in range(8_000))),
            FOREVER,
        ),
        mid=True,
        stops=True,
        code="answer_too_long",
    ),
    "enormous-outputs": Fault(
        _after_text(
            _in_chunk(name="workflow_finished", data={"outputs": {"text": "x" * 1_500_000}}),
            FOREVER,
        ),
        mid=True,
        stops=True,
        code="answer_too_long",
    ),
    "silence": Fault(_after_text(FOREVER), **_STOPPED, **_TIMEOUT),
    "ping-and-silence": Fault(_after_text(chunk(PING), FOREVER), **_STOPPED, **_TIMEOUT),
    "error-kept-open": Fault(
        _after_text(
            _in_chunk(name="error", code="completion_request_error", message="broke", status=400),
            FOREVER,
        ),
        **_OVER,
    ),
    "error-closed": Fault(
        _after_text(
            _in_chunk(name="error", code="completion_request_error", message="broke", status=400),
            CLOSE,
        ),
        **_OVER,
    ),
    "error-with-a-page": Fault(
        _after_text(
            _in_chunk(
                name="error",
                code="completion_request_error",
                message=f"[model] Error: {PAGE.decode()} key app-ThisIsASecret0",
                status=400,
            ),
            FOREVER,
        ),
        **_OVER,
    ),
    "run-failed-without-an-error": Fault(
        _after_text(
            _in_chunk(name="workflow_finished", data={"status": "failed", "error": "broke"}), 1.0,
            LAST_CHUNK,
        ),
        **_OVER,
    ),
    "run-failed-and-silent": Fault(
        _after_text(
            _in_chunk(name="workflow_finished", data={"status": "failed", "error": "broke"}),
            FOREVER,
        ),
        **_OVER,
    ),
}  # fmt: skip


# --- what is strange and is an answer all the same ---------------------------------------------


def _whole(make: Callable[[Chat], Iterator[Step] | list[Step]]) -> Answering:
    return lambda request: make(chat_of(request))


def _events(chat: Chat) -> bytes:
    return chat.text("All ") + chat.text("is well") + chat.end()


def _byte_by_byte(chat: Chat) -> Iterator[Step]:
    for byte in STREAM_HEAD + chunk(_events(chat)) + LAST_CHUNK:
        yield bytes([byte])


def _slowly(chat: Chat) -> Iterator[Step]:
    for start in range(0, len(STREAM_HEAD), 16):
        yield STREAM_HEAD[start : start + 16]
        yield 0.2
    yield chunk(_events(chat)) + LAST_CHUNK


def _pinging(chat: Chat) -> Iterator[Step]:
    yield STREAM_HEAD
    for _ in range(2 * READ_TIMEOUT):
        yield chunk(PING)
        yield 0.7
    yield chunk(_events(chat)) + LAST_CHUNK


def _packed(content: bytes, coding: str, step: int = 1000) -> list[Step]:
    first = STREAM_HEAD.replace(b"\r\n\r\n", f"\r\nContent-Encoding: {coding}\r\n\r\n".encode())
    return [
        first,
        *(chunk(content[i : i + step]) for i in range(0, len(content), step)),
        LAST_CHUNK,
    ]


def _flushed(chat: Chat) -> Iterator[Step]:
    """As a proxy packs a stream that it passes on piece by piece."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    yield STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    for piece in (chat.text("All "), chat.text("is well"), chat.end()):
        yield chunk(packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH))
        yield 0.2
    yield chunk(packer.flush()) + LAST_CHUNK


def _unchunked(version: bytes, chat: Chat) -> list[Step]:
    first = b"HTTP/" + version + b" 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    return [first + _events(chat), CLOSE]


STRANGE: dict[str, Answering] = {
    "byte-by-byte": _whole(_byte_by_byte),
    "slow-head": _whole(_slowly),
    "many-pings": _whole(_pinging),
    "held-open": _whole(lambda chat: [STREAM_HEAD, chunk(_events(chat)), FOREVER]),
    "closed-after-the-end": _whole(lambda chat: [STREAM_HEAD, chunk(_events(chat)), CLOSE]),
    "reset-after-the-end": _whole(lambda chat: [STREAM_HEAD, chunk(_events(chat)), 0.1, RESET]),
    "garbage-after-the-end": _whole(
        lambda chat: [STREAM_HEAD + chunk(_events(chat)) + LAST_CHUNK + b"garbage" * 100]
    ),
    "answer-after-the-end": _whole(
        lambda chat: [STREAM_HEAD + chunk(_events(chat)) + LAST_CHUNK + head(500) + PAGE]
    ),
    "error-after-the-end": _whole(
        lambda chat: streamed(_events(chat), event(event="error", code="x", message="too late"))
    ),
    "early-hints": _whole(
        lambda chat: [
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            *streamed(_events(chat)),
        ]
    ),
    "http-1.0": _whole(lambda chat: _unchunked(b"1.0", chat)),
    "until-close": _whole(lambda chat: _unchunked(b"1.1", chat)),
    "carriage-returns": _whole(lambda chat: streamed(_events(chat).replace(b"\n", b"\r\n"))),
    "unknown-events": _whole(
        lambda chat: streamed(
            b'data: {"event": "from_the_future", "data": {"a": [1]}}\n\n',
            b"id: 7\nretry: 10\n\n",
            _events(chat),
        )
    ),
    "packed": _whole(lambda chat: _packed(gzip.compress(_events(chat)), "gzip")),
    "packed-byte-by-byte": _whole(
        lambda chat: _packed(zlib.compress(_events(chat)), "deflate", step=1)
    ),
    "packed-as-it-comes": _whole(_flushed),
    "broken-characters": _whole(
        lambda chat: streamed(
            chat.text("All "),
            b'data: {"event":"message","answer":"is well","other":"\xff"}\n\n',
            b'data: {"event":"node_started","data":{"title":"\xe4\xbd"}}\n\n',
            b'data: {"event":"\xff"}\n\n',
            chat.end(),
        )
    ),
    "picture-of-the-user": _whole(
        lambda chat: streamed(
            chat.text("All is well"),
            chat.event(
                "message_end",
                files=[
                    {
                        "type": "image",
                        "transfer_method": "remote_url",
                        "url": "http://x/y.png",
                        "remote_url": "http://x/y.png",
                        "related_id": "r",
                        "upload_file_id": "r",
                    }
                ],
            ),
        )
    ),
    "thought-only": _whole(
        lambda chat: streamed(
            chat.event("agent_thought", id="a", thought="", tool=""),
            chat.event("agent_thought", id="a", thought="All is well", tool=""),
            chat.end(),
        )
    ),
    "trailers": _whole(
        lambda chat: [STREAM_HEAD, chunk(_events(chat)), b"0\r\nX-Sum: 1\r\n\r\n"]
    ),
}  # fmt: skip

# --- the Dify ----------------------------------------------------------------------------------


@dataclass
class Chaos:
    """A Dify with an app for every fault, and for whatever a test adds to ``answers``. Of each
    the key is ``app-secret-of-<name>`` and the model has the name."""

    answers: dict[str, Answering] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = {name: fault.answer for name, fault in REFUSALS.items()}
        cuts = {f"cut-{name}": fault.answer for name, fault in CUTS.items()}
        self.answers = {**faults, **cuts, **STRANGE, **self.answers}
        self.dify = FakeDify(answer=self._answer)

    def models(self) -> dict[str, Any]:
        """The value of MODEL_CONFIG for all of them."""
        return {name: {"key": key_of(name), "type": "chat"} for name in self.answers}

    def asked(self, model: str, user: str = "") -> list[Request]:
        """The questions to this app, in order."""
        return [r for r in self._of(model, user) if r.path == "/v1/chat-messages"]

    def stopped(self, model: str, user: str = "") -> list[Request]:
        return [r for r in self._of(model, user) if r.path.endswith("/stop")]

    def _of(self, model: str, user: str) -> list[Request]:
        authorization = f"Bearer {key_of(model)}"
        return [
            request
            for request in list(self.dify.requests)
            if request.headers.get("authorization") == authorization
            and request.method == "POST"
            and "json" in request.headers.get("content-type", "")
            and (not user or request.json.get("user") == user)
        ]

    def _answer(self, request: Request) -> Steps:
        name = request.headers.get("authorization", "").removeprefix("Bearer app-secret-of-")
        if request.path == "/v1/chat-messages" and name in self.answers:
            return self.answers[name](request)
        return refused(404, {"code": "not_found", "message": "Not Found", "status": 404})


def key_of(model: str) -> str:
    return f"app-secret-of-{model}"
