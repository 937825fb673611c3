"""A small WSGI application, to see what a worker does with connections."""

import hashlib
import os
import select
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

from opendify.streaming import (
    BLOCKING,
    ResumableBody,
    WaitFor,
    run_blocking,
)


class Answer:
    """Tells the log when it is closed, as an application that has to tidy up would notice."""

    def __init__(self, chunks: Iterator[bytes], name: str) -> None:
        self._chunks = chunks
        self._name = name

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        os.write(2, f"closed {self._name}\n".encode())


def app(environ: dict[str, Any], start_response: Any) -> Any:
    path = environ["PATH_INFO"].strip("/")
    query = {key: value[0] for key, value in parse_qs(environ["QUERY_STRING"]).items()}
    if path == "boom":
        raise RuntimeError("the secret reason")
    if path == "exit":
        raise SystemExit(3)
    if path == "header":
        start_response("200 OK", [("X-Answer", "secret\nvalue")])
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    if path in ("stream", "stubborn"):
        seconds = float(query["seconds"])
        ending = environ.get("opendify.ending") if path == "stream" else None
        return Answer(stream(seconds, ending), path)
    if path == "steps":
        return Stepped(ticking(int(query["ticks"]), float(query["until"]), query.get("end", "")))
    if path == "big":
        return Answer((bytes(65536) for _ in range(16 * 64)), path)
    if path == "unread":
        return [b"refused"]
    body = environ["wsgi.input"].read()
    return [f"{environ['REQUEST_METHOD']} /{path} {len(body)} {digest(body)}".encode()]


def accepts_body(environ: dict[str, Any]) -> bool:
    if environ["PATH_INFO"] == "/broken":
        raise RuntimeError("the secret reason")
    return bool(environ["PATH_INFO"] != "/refused")


app.config = {"ACCEPTS_BODY": accepts_body}  # type: ignore[attr-defined]


class Stepped:
    """A body that a loop can take."""

    def __init__(self, steps: ResumableBody[bytes]) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[bytes]:
        return run_blocking(self.steps)

    def close(self) -> None:
        os.write(2, b"closed steps\n")


def ticking(ticks: int, until: float, end: str) -> ResumableBody[bytes]:
    """Says by whom each tick was given on: one every 50 ms, and none after the last, for which it
    still waits, ``until`` seconds from then at most."""
    reader, writer = os.pipe()
    try:
        yield b"begun\n"
        for tick in range(ticks + 1):
            if tick < ticks:
                threading.Timer(0.05, os.write, (writer, b".")).start()
            patience = 60.0 if tick < ticks else until
            is_readable = yield WaitFor(reader, time.monotonic() + patience)
            if not is_readable:
                yield b"time is up\n"
                break
            os.read(reader, 1)
            if end == "raise":
                raise RuntimeError("the secret reason")
            yield f"tick {threading.current_thread().name}\n".encode()
        yield BLOCKING
        yield f"end {threading.current_thread().name}\n".encode()
    finally:
        os.close(reader)


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:8]


def stream(seconds: float, ending: Any) -> Iterator[bytes]:
    yield f"{os.getpid()}\n".encode()
    until = time.monotonic() + seconds
    poll = select.poll()
    if ending is not None:
        poll.register(ending.fileno(), select.POLLIN)
    while (left := until - time.monotonic()) > 0:
        if poll.poll(min(left, 0.2) * 1000):
            assert ending.is_set()
            yield b"ended by the application\n"
            return
        yield b"."
    yield b"complete\n"
