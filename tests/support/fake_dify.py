"""A Dify on loopback that says what a test tells it to, byte for byte.

An answer is a series of steps: bytes to send, seconds to wait (a number), CLOSE, or RESET. The
connection is kept unless the steps close it or never end the answer.
"""

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parent.parent / "data" / "dify"

CLOSE = object()
RESET = object()
FOREVER = 3600.0
PING = b"event: ping\n\n"

Step = bytes | float | object
Steps = Iterable[Step]


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Recording:
    status: int
    headers: dict[str, str]
    body: bytes
    ended_by: str

    @property
    def is_stream(self) -> bool:
        return "event-stream" in self.headers.get("Content-Type", "")


def recording(name: str) -> Recording:
    """``name`` is ``<version>/<app>/<case>``."""
    whole = json.loads((RECORDINGS / f"{name}.json").read_text())
    raw = whole["response"]
    body = raw["body"]
    data = body["latin1"].encode("latin-1") if isinstance(body, dict) else (body or "").encode()
    return Recording(raw["status"], raw["headers"], data, whole["ended_by"])


def recorded_names() -> list[str]:
    """The names of all recordings."""
    paths = sorted(RECORDINGS.glob("*/*/*.json"))
    return [path.relative_to(RECORDINGS).as_posix().removesuffix(".json") for path in paths]


def asked_path(name: str) -> str:
    """Where the question of a recording went, empty where it was none (not a POST)."""
    request = json.loads((RECORDINGS / f"{name}.json").read_text())["request"]
    return request["path"] if request["method"] == "POST" else ""


def recorded_mode(name: str) -> str:
    """The mode of the app that a recording is from."""
    app = name.split("/")[1]
    if app.startswith("flow"):
        return "advanced-chat"
    modes = ("advanced-chat", "agent-chat", "agent", "chat", "completion", "workflow")
    return next(mode for mode in modes if app.startswith(mode))


def recorded_streams() -> list[str]:
    """The names of all recordings of POST /chat-messages that asked for a stream."""
    names = []
    for name in recorded_names():
        request = json.loads((RECORDINGS / f"{name}.json").read_text())["request"]
        if request["path"] == "/v1/chat-messages" and '"streaming"' in (request["body"] or ""):
            names.append(name)
    return names


def head(status: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Said so", *headers, "", ""]).encode()


STREAM_HEAD = head(
    200, "Content-Type: text/event-stream; charset=utf-8", "Transfer-Encoding: chunked"
)
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def streamed(*steps: Step) -> list[Step]:
    """An event stream: each bytes step becomes a chunk, as Dify sends its events."""
    body = [chunk(step) if isinstance(step, bytes) else step for step in steps]
    return [STREAM_HEAD, *body, LAST_CHUNK]


def replayed(name: str) -> list[Step]:
    """A recorded answer, in the pieces in which Dify sent it, and with its end: the last chunk,
    or none where it was the client that left."""
    answer = recording(name)
    if not answer.is_stream:
        return refused(answer.status, answer.body, answer.headers.get("Content-Type", ""))
    events = [block + b"\n\n" for block in answer.body.split(b"\n\n") if block]
    steps = streamed(*events)
    return steps if answer.ended_by == "last chunk" else [*steps[:-1], FOREVER]


def refused(status: int, body: bytes | dict[str, Any], content_type: str = "") -> list[Step]:
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    kind = f"Content-Type: {content_type or 'application/json'}"
    return [head(status, kind, f"Content-Length: {len(data)}") + data]


@dataclass
class Chat:
    """Events of one answer, with Dify's names for it."""

    conversation_id: str = "11111111-1111-4111-8111-111111111111"
    message_id: str = "22222222-2222-4222-8222-222222222222"
    task_id: str = "33333333-3333-4333-8333-333333333333"

    def event(self, name: str, **fields: Any) -> bytes:
        return event(
            event=name,
            conversation_id=self.conversation_id,
            message_id=self.message_id,
            task_id=self.task_id,
            created_at=1795460080,
            **fields,
        )

    def text(self, text: str) -> bytes:
        return self.event("message", answer=text)

    def end(self) -> bytes:
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return self.event("message_end", metadata={"usage": usage})

    def says(self, *texts: str) -> list[Step]:
        return streamed(*(self.text(text) for text in texts), self.end())


@dataclass
class FakeDify:
    """``answers`` are used up one by one for POST /chat-messages; ``answer`` serves the rest, but
    for what the proxy asks about the app where the test does not care (``tells_of_its_app``)."""

    answer: Callable[[Request], Steps] = lambda request: Chat().says("Hello")
    answers: list[Steps] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    tells_of_its_app: bool = False
    host: str = "127.0.0.1"
    port: int = 0  # any that is free
    tls: ssl.SSLContext | None = None
    answer_stop: Steps = field(default_factory=lambda: refused(200, {"result": "success"}))

    def __post_init__(self) -> None:
        self._server = socket.create_server((self.host, self.port), backlog=512)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = threading.Event()
        self.port = self._server.getsockname()[1]
        self.base = f"{'https' if self.tls else 'http'}://{self.host}:{self.port}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def asked(self) -> list[Request]:
        """The questions, in the order in which they came."""
        return [r for r in self.requests if r.path == "/v1/chat-messages"]

    def stopped(self) -> list[Request]:
        return [r for r in self.requests if r.path.endswith("/stop")]

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown(socket.SHUT_RDWR)  # close alone does not wake the thread in accept
        self._server.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            args = (connection, self.connections)
            threading.Thread(target=self._serve, args=args, daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as reader:
                while (request := read_request(reader, number)) is not None:
                    if not self._play(connection, self._choose(request)):
                        return
        except (OSError, ValueError):  # ValueError: it does not speak HTTP
            pass
        finally:
            self._open.discard(connection)

    def _choose(self, request: Request) -> Steps:
        with self._lock:
            self.requests.append(request)
            if request.path.endswith("/stop"):
                return self.answer_stop
            if request.path == "/v1/chat-messages" and self.answers:
                return self.answers.pop(0)
        if request.path in ("/v1/info", "/v1/parameters", "/v1/site") and not self.tells_of_its_app:
            return refused(404, {"code": "not_found", "message": "Not Found", "status": 404})
        return self.answer(request)

    def _play(self, connection: socket.socket, steps: Steps) -> bool:
        for step in steps:
            if step is RESET:
                now = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            if step in (CLOSE, RESET):
                return False
            if isinstance(step, bytes):
                connection.sendall(step)
            elif isinstance(step, int | float):
                self._closed.wait(step)
        return not self._closed.is_set()


def read_request(reader: Any, number: int) -> Request | None:
    line = reader.readline().decode()
    if not line:
        return None
    method, path, _ = line.split(" ", 2)
    headers = dict(_read_headers(reader))
    body = reader.read(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body, number)


def _read_headers(reader: Any) -> Iterator[tuple[str, str]]:
    while line := reader.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        yield name.strip().lower(), value.strip()
