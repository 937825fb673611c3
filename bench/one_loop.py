"""A limit study, and no product: one loop a process that moves all streams.

    PORT=5001 UPSTREAM=http://127.0.0.1:5002 PROCESSES=5 python -m bench.one_loop

It takes the way of a token from OpenDify's own pieces (``http1``, ``sse``, ``pieces``,
``narration``, ``chunks``), but no thread and no WSGI server. Of a request it reads the question
alone: no key, chat, lock, limit, log or error is looked after, and all sends block. So its cost a
token is what a worker class of that kind could come near, and its cost a request says nothing.

    bench/run --only burst --others bench/one_loop.json
"""

import json
import os
import select
import signal
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from bench.subjects import end_with_parent
from opendify import sse
from opendify.chunks import ChunkWriter
from opendify.config.models import Model
from opendify.config.settings import load_settings
from opendify.dify.events import Event, MessageEnded
from opendify.dify.payloads import parse_event, parse_payload
from opendify.dify.pieces import parse_pieces
from opendify.openai import answers
from opendify.telling.narration import Narration
from opendify.upstream.http1 import Answer

READ_BYTES = 64 * 1024
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


class Stream:
    """One answer, on its way from Dify to its caller."""

    def __init__(self, model: Model, caller: socket.socket, dify: socket.socket) -> None:
        self.dify = dify
        self._caller = caller
        self._answer = Answer()
        self._decoder = sse.Decoder()
        self._narration = Narration(model, "chat", lambda *file: "", (), "off")
        self._head = answers.Head("chatcmpl-bench", 1, model.name)
        self._writer = ChunkWriter(self._head)
        first = sse.encode(answers.chunk(self._head, {"role": "assistant", "content": ""}))
        self._unsent = HEAD + _chunk(first)

    def move(self) -> bool:
        """Passes on what has come; whether there is more to come."""
        data = self.dify.recv(READ_BYTES)
        events = _events(self._decoder.feed(self._answer.feed(data)))
        is_over = not data or (bool(events) and isinstance(events[-1], MessageEnded))
        self._send(self._writer.write(self._narration.tell_all(events)), is_over)
        return not is_over

    def close(self) -> None:
        self.dify.close()
        self._caller.close()

    def _send(self, text: bytes, is_over: bool) -> None:
        if is_over:
            last = answers.chunk(self._head, {}, "stop")
            text += sse.encode(last) + sse.DONE
        whole = self._unsent + (_chunk(text) if text else b"") + (LAST_CHUNK if is_over else b"")
        self._unsent = b""
        self._caller.sendall(whole)


def serve(listener: socket.socket, upstream: tuple[str, int], model: Model) -> None:
    """The loop, for ever."""
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    streams: dict[int, Stream] = {}
    while True:
        for descriptor, _ in poll.poll():
            stream = streams.get(descriptor)
            if stream is None:
                stream = _begun(listener, upstream, model)
                if stream is not None:
                    streams[stream.dify.fileno()] = stream
                    poll.register(stream.dify.fileno(), select.EPOLLIN)
            elif not stream.move():
                poll.unregister(descriptor)
                streams.pop(descriptor).close()


def _begun(listener: socket.socket, upstream: tuple[str, int], model: Model) -> Stream | None:
    try:
        caller, _ = listener.accept()
    except BlockingIOError:  # another process was faster
        return None
    caller.setblocking(True)
    body = caller.recv(READ_BYTES).partition(b"\r\n\r\n")[2]
    if not body:  # somebody looks whether this serves
        caller.close()
        return None
    dify = socket.create_connection(upstream)
    dify.sendall(_question(json.loads(body), model))
    return Stream(model, caller, dify)


def _question(asked: Mapping[str, object], model: Model) -> bytes:
    messages = asked["messages"]
    assert isinstance(messages, list)
    told = {"query": messages[-1]["content"], "user": asked["user"], "inputs": {}}
    body = json.dumps(told | {"response_mode": "streaming"}).encode()
    head = f"POST /v1/chat-messages HTTP/1.1\r\nHost: dify\r\nAuthorization: Bearer {model.key}\r\n"
    rest = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + rest).encode() + body


def _events(payloads: Iterable[bytes]) -> list[Event]:
    events: list[Event] = []
    rest = iter(payloads)
    raw: bytes | None = b""
    while raw is not None:
        texts, raw = parse_pieces(rest)
        events += texts
        event = parse_event(parse_payload(raw)) if raw else None
        events += [event] if event else []
    return events


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def main() -> None:
    base = os.environ["UPSTREAM"]
    settings = load_settings({"DIFY_API_BASE": f"{base}/v1", "MODEL_CONFIG": '{"bench":"app-b"}'})
    address = urlsplit(base)
    listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=4096)
    listener.setblocking(False)
    upstream = (address.hostname or "", address.port or 80)
    for _ in range(int(os.environ["PROCESSES"])):
        if not os.fork():
            end_with_parent()
            serve(listener, upstream, settings.models["bench"])
    signal.pause()


if __name__ == "__main__":
    main()
