"""A Dify that costs next to nothing: answers of prepared bytes, in the form of Dify 1.13.2.

    python -m bench.dify PORT [CERTIFICATE KEY]

The question says what the answer is: ``bench 100 20 zh`` asks for 100 tokens, one every 20 ms,
in Chinese; 0 ms means all at once. Each token carries the time at which it was sent
(``~`` and 16 digits, microseconds of the monotonic clock), so that whoever receives it knows how
long it was under way.
"""

import asyncio
import json
import re
import ssl
import sys
import time
import uuid
from typing import Any, cast

import uvloop

ASKED = re.compile(rb"bench (\d+) (\d+)( zh)?")
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
INFO = {"name": "Bench", "description": "", "tags": [], "mode": "chat", "author_name": "bench"}
PARAMETERS = {"opening_statement": "", "suggested_questions": [], "user_input_form": []}
USAGE = {"prompt_tokens": 33, "completion_tokens": 5, "total_tokens": 38}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"X-Version: 1.13.2\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


def stamp() -> bytes:
    return b"~%016d" % (time.monotonic_ns() // 1000)


def compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Answer:
    """The bytes of one answer."""

    def __init__(self, in_chinese: bool) -> None:
        message = str(uuid.uuid4())
        self._ids = {
            "conversation_id": str(uuid.uuid4()),
            "message_id": message,
            "created_at": int(time.time()),
            "task_id": str(uuid.uuid4()),
            "id": message,
        }
        self._word = "人工智能" if in_chinese else "tok"
        text = f"{self._word}~0000000000000000 "
        event = {"event": "message"} | self._ids | {"answer": text, "from_variable_selector": None}
        whole = chunk(b"data: " + compact(event) + b"\n\n")
        self._before, _, self._after = whole.partition(b"~0000000000000000")

    def token(self) -> bytes:
        return self._before + stamp() + self._after

    def end(self) -> bytes:
        metadata = {"annotation_reply": None, "retriever_resources": [], "usage": USAGE}
        event = {"event": "message_end"} | self._ids | {"metadata": metadata, "files": None}
        return chunk(b"data: " + compact(event) + b"\n\n") + LAST_CHUNK

    def whole(self, tokens: int) -> bytes:
        text = (self._word + stamp().decode() + " ") * tokens
        told = {"event": "message", "mode": "chat", "answer": text, "metadata": {"usage": USAGE}}
        return json_answer(told | self._ids)


def json_answer(value: Any) -> bytes:
    body = compact(value)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Version: 1.13.2\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Connection(asyncio.Protocol):
    """One connection, kept from request to request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=1 << 30)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        self._serve(head, body)

    def _serve(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1].partition(b"?")[0]
        asked = ASKED.search(body)
        if asked is None:
            told = INFO if path.endswith(b"/info") else PARAMETERS
            self._transport.write(json_answer(told))
            return
        tokens, milliseconds, in_chinese = int(asked[1]), int(asked[2]), bool(asked[3])
        answer = Answer(in_chinese)
        if b'"blocking"' in body:
            self._transport.write(answer.whole(tokens))
            if b"connection: close" in head.lower():
                self._transport.close()
        elif milliseconds:
            self._transport.write(STREAM_HEAD)
            self._tell(answer, tokens, milliseconds / 1000, self._loop.time())
        else:
            self._transport.write(STREAM_HEAD + answer.token() * tokens + answer.end())

    def _tell(self, answer: Answer, left: int, pause: float, due: float) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(answer.token())
        due += pause
        if left > 1:
            self._loop.call_at(due, self._tell, answer, left - 1, pause, due)
        else:
            self._loop.call_at(due, self._transport.write, answer.end())


async def serve(port: int, certificate: list[str]) -> None:
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*certificate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(loop), "127.0.0.1", port, ssl=context, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2:]))
