"""Many callers at once, and what each of them sees."""

import asyncio
import json
import re
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import cast

import httptools

STAMP = re.compile(rb"~(\d{16})")
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Door:
    """How a subject is asked: ``question`` makes the body for a user, a prompt, streamed or not.
    ``end`` is what only the last event of its streams has, and ``copies`` how often its answers
    say each token: some add what Dify sent to what they made of it."""

    port: int
    path: str
    headers: dict[str, str]
    question: Callable[[str, str, bool], dict[str, object]]
    end: bytes = b"[DONE]"
    copies: int = 1

    def request(self, user: str, prompt: str, streamed: bool) -> bytes:
        body = json.dumps(self.question(user, prompt, streamed)).encode()
        lines = [f"POST {self.path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body


@dataclass
class Seen:
    """What the callers of one run have seen; times in seconds."""

    answers: int = 0
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    late: "array[float]" = field(default_factory=lambda: array("d"))
    errors: list[str] = field(default_factory=list)


class Caller(asyncio.Protocol):
    """Asks once and reads to the end. ``done`` is set when the answer is over."""

    def __init__(self, door: Door, request: bytes, load: "Load", seen: Seen) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._door = door
        self._request = request
        self._load = load
        self._seen = seen
        self._tokens = 0
        self._kept = b""
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._body: list[bytes] = []
        self._complete = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._asked = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._parser.feed_data(data)
        if self._status != 200:
            self._end(f"status {self._status}")
        elif self._body:
            body, self._body = self._kept + b"".join(self._body), []
            self._look_at(body, now)
        if self._complete:
            self._end("no last event" if self._load.streamed else "")

    def on_status(self, status: bytes) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._complete = True

    def _look_at(self, body: bytes, now: float) -> None:
        stamps = STAMP.findall(body)
        if stamps:
            if not self._tokens:
                self._seen.first.append(now - self._asked)
            self._tokens += len(stamps)
            self._seen.late.append(now - int(stamps[-1]) / 1e6)
            body = body[body.rindex(stamps[-1]) + 16 :]
        if self._load.streamed and self._door.end in body:
            self._end("an error event" if b'"error":{' in body else "")
        self._kept = body[-16:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("cut off")

    def _end(self, problem: str) -> None:
        if self.done.done():
            return
        self.done.set_result(None)
        seen = self._seen
        tokens, expected = self._tokens / self._door.copies, self._load.tokens
        if not problem and tokens != expected:
            problem = f"{tokens:g} of {expected} tokens"
        if problem:
            seen.errors.append(problem)
        else:
            seen.answers += 1
            seen.tokens += expected
            seen.whole.append(time.monotonic() - self._asked)
        self._transport.abort()


@dataclass(frozen=True)
class Load:
    """``callers`` ask ``rounds`` times each, all within ``ramp`` seconds the first time."""

    callers: int
    tokens: int
    pause_ms: int = 0
    rounds: int = 1
    ramp: float = 0.0
    streamed: bool = True
    in_chinese: bool = False

    @property
    def prompt(self) -> str:
        return f"bench {self.tokens} {self.pause_ms}{' zh' if self.in_chinese else ''}"

    @property
    def seconds(self) -> float:
        """How long it takes where nothing is slow."""
        return self.ramp + self.rounds * self.tokens * self.pause_ms / 1000


async def run(load: Load, door: Door) -> Seen:
    """All callers, to the end of the last."""
    seen = Seen()
    await asyncio.gather(
        *(_call_in_turn(load, door, number, seen) for number in range(load.callers))
    )
    return seen


async def _call_in_turn(load: Load, door: Door, number: int, seen: Seen) -> None:
    await asyncio.sleep(load.ramp * number / load.callers)
    for _ in range(load.rounds):
        if not await _call(load, door, f"user-{number}", seen):
            return


async def _call(load: Load, door: Door, user: str, seen: Seen) -> bool:
    """Whether there was an end; where there was none, more of the same would only take time."""
    request = door.request(user, load.prompt, load.streamed)
    caller = Caller(door, request, load, seen)
    patience = PATIENCE_SECONDS + load.tokens * load.pause_ms / 1000
    try:
        async with asyncio.timeout(patience):
            await asyncio.get_running_loop().create_connection(
                lambda: caller, "127.0.0.1", door.port
            )
            await caller.done
    except TimeoutError:
        seen.errors.append("no end")
        return False
    except OSError as exc:
        seen.errors.append(type(exc).__name__)
    return True


def middle(values: list[float]) -> float:
    return median(values) if values else float("nan")


def worst(values: "list[float] | array[float]") -> float:
    """The 99th of a hundred."""
    return quantiles(values, n=100)[98] if len(values) > 1 else float("nan")
