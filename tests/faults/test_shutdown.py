"""Signals, dying workers and workers that are replaced, each with answers on their way."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.faults.calls import Answer, address, ask, asking, question
from tests.faults.chaos import Chaos, chat_of
from tests.faults.conftest import started
from tests.support.fake_dify import (
    FOREVER,
    LAST_CHUNK,
    PING,
    STREAM_HEAD,
    Chat,
    Request,
    Step,
    chunk,
)
from tests.support.service import Service, receive_until
from tests.support.waiting import wait_for

# What a machine that has other things to do may need for what is immediate else.
SOON = 10.0
GRACE = 4  # seconds; the answers that still run are ended 2 s before

PATIENT = {"DIFY_READ_TIMEOUT": "60"}


class Gate:
    """An app that says a word and goes on when the gate is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, request: Request) -> Iterator[Step]:
        chat = chat_of(request)
        yield STREAM_HEAD + chunk(chat.text("All "))
        self.opened.wait(60)
        yield chunk(chat.text("is well")) + chunk(chat.end()) + LAST_CHUNK


def _running(name: str, chat: Chat) -> Iterator[Step]:
    """Answers that do not end."""
    yield STREAM_HEAD
    yield chunk(chat.event("agent_thought"))
    if name == "thinking":
        yield FOREVER
    yield chunk(chat.text("word "))
    while name != "silent":
        yield 0.1
        yield chunk(PING if name == "pinging" else chat.text("word "))
    yield FOREVER


ENDLESS = ["thinking", "silent", "pinging", "flowing"]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def dify(gate: Gate) -> Iterator[Chaos]:
    endless = {name: lambda r, name=name: _running(name, chat_of(r)) for name in ENDLESS}
    chaos = Chaos({"gated": gate, **endless})
    yield chaos
    chaos.dify.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def is_closed(port: tuple[str, int]) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(port, timeout=5):
        return False
    return True


def test_sigterm_lets_short_answers_end(
    dify: Chaos, gate: Gate, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with started(tmp_path, dify, GUNICORN_GRACEFUL_TIMEOUT="30", **PATIENT) as running:
        streamed = pool.submit(ask, running, question("gated", "s", stream=True))
        whole = pool.submit(ask, running, question("gated", "w"))
        wait_for(lambda: len(dify.asked("gated")) == 2, SOON)
        running.process.send_signal(signal.SIGTERM)
        wait_for(lambda: is_closed(address(running)), SOON, "the refusal of new connections")
        gate.opened.set()
        for answer in (streamed.result(SOON), whole.result(SOON)):
            assert (answer.status, answer.said()) == (200, "All is well")
        assert streamed.result().finishes() == ["stop"]
        assert running.process.wait(SOON) == 0
    assert not dify.stopped("gated")


def test_sigterm_ends_long_answers_with_an_error_and_a_stop(
    dify: Chaos, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    variables = {"GUNICORN_GRACEFUL_TIMEOUT": str(GRACE), **PATIENT}
    with started(tmp_path, dify, **variables) as running:
        asked = {
            f"{name}-{stream}": pool.submit(
                ask, running, question(name, f"{name}-{stream}", stream=stream)
            )
            for name in ENDLESS
            for stream in (True, False)
        }
        wait_for(lambda: sum(len(dify.asked(name)) for name in ENDLESS) == len(asked), SOON)
        time.sleep(1.2)  # all have begun to answer
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(GRACE + SOON) == 0
    for user, future in asked.items():
        check_ended(user, future)
        name = user.partition("-")[0]
        assert len(dify.stopped(name, user)) == 1, f"{user} was not stopped once"


def check_ended(user: str, future: Future[Answer]) -> None:
    answer = future.result(SOON)
    if user.endswith("True"):
        assert answer.finishes() == [], user
        assert len(answer.stream_errors()) == 1, (user, answer.text)
        assert answer.events[-1] == "[DONE]", user
    else:
        assert answer.status == 503, (user, answer.text)
        assert answer.headers["x-should-retry"] == "false", "the run has begun"
        assert answer.error["type"] == "api_error"


def test_sighup_loses_no_answer(
    dify: Chaos, gate: Gate, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """Not even one that takes longer than graceful_timeout."""
    variables = {"GUNICORN_WORKERS": "2", "GUNICORN_GRACEFUL_TIMEOUT": "2", **PATIENT}
    with started(tmp_path, dify, **variables) as running:
        wait_for(lambda: len(running.workers()) == 2, SOON)
        old = set(running.workers())
        asked = [
            pool.submit(ask, running, question("gated", f"u{n}", stream=bool(n % 2)))
            for n in range(6)
        ]
        wait_for(lambda: len(dify.asked("gated")) == 6, SOON)
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: set(running.workers()) - old, SOON, "a new worker")
        served = [ask(running, question("byte-by-byte", stream=True)) for _ in range(10)]
        assert [one.said() for one in served] == ["All is well"] * 10
        time.sleep(4)
        gate.opened.set()
        for future in asked:
            answer = future.result(SOON)
            assert (answer.status, answer.said()) == (200, "All is well")
        wait_for(lambda: not old & set(running.workers()), SOON, "the end of the old workers")
        wait_for(lambda: len(running.workers()) == 2, SOON)


def opened_streams(running: Service, dify: Chaos, count: int) -> list[socket.socket]:
    """So many streams of the gated app, each of which has begun."""
    streams = []
    for number in range(count):
        stream = asking(running, question("gated", f"u{number}", stream=True))
        receive_until(stream, b"All ")
        streams.append(stream)
    return streams


def worker_of(running: Service, stream: socket.socket) -> int:
    """The worker that holds the other end of a connection, by the tables of the kernel."""
    ours, theirs = (f":{name[1]:04X}" for name in (stream.getsockname(), stream.getpeername()))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = [row[9] for row in rows if row[1].endswith(theirs) and row[2].endswith(ours)]
    for pid in running.workers():
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                if os.readlink(entry) == f"socket:[{inode}]":
                    return int(pid)
    raise AssertionError("no worker has it")


def rest_of(stream: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionError):
        while b"[DONE]" not in received and (piece := stream.recv(65536)):
            received += piece
    return received


# So many that no worker alone has answered them all.
CHATS = [{"X-OpenWebUI-Chat-Id": f"kept-{number}"} for number in range(12)]


def test_a_killed_worker_takes_nothing_with_it_but_its_own_streams(
    dify: Chaos, gate: Gate, tmp_path: Path
) -> None:
    limits = {"GUNICORN_WORKERS": "2", "MAX_CONCURRENT_STREAMS": "6"}  # not enough in one worker
    with started(tmp_path, dify, **limits, **PATIENT) as running:
        for chat in CHATS:
            assert ask(running, question("trailers"), chat).status == 200
        streams = opened_streams(running, dify, 8)
        workers = [worker_of(running, stream) for stream in streams]
        assert len(set(workers)) == 2
        killed = workers[0]
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: killed not in running.workers(), SOON)
        assert ask(running, question("trailers", stream=True)).said() == "All is well"
        gate.opened.set()
        for stream, worker in zip(streams, workers, strict=True):
            ended_well = b'"finish_reason":"stop"' in rest_of(stream)
            assert ended_well == (worker != killed)
            stream.close()
        wait_for(lambda: len(running.workers()) == 2, SOON, "a new worker")
        history = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "All is well"},
            {"role": "user", "content": "And now?"},
        ]
        body = {**question("trailers"), "messages": history}
        for chat in CHATS:
            assert ask(running, body, chat).status == 200
            assert dify.asked("trailers")[-1].json["conversation_id"], "a mapping was lost"


@pytest.mark.parametrize("workers", [1, 2])
def test_max_requests_cuts_no_stream(dify: Chaos, gate: Gate, tmp_path: Path, workers: int) -> None:
    variables = {
        "GUNICORN_WORKERS": str(workers),
        "GUNICORN_MAX_REQUESTS": "5",
        "GUNICORN_MAX_REQUESTS_JITTER": "0",
    }
    with started(tmp_path, dify, **variables, **PATIENT) as running:
        old = set(running.workers())
        streams = opened_streams(running, dify, 3)
        for _ in range(30):
            answer = ask(running, question("trailers", stream=True), timeout=5)
            assert answer.said() == "All is well"
        gate.opened.set()
        for stream in streams:
            assert b'"finish_reason":"stop"' in rest_of(stream)
            stream.close()

        def are_replaced() -> bool:
            httpx.get(f"{running.url}/healthz", timeout=5, trust_env=False)
            return not old & set(running.workers())

        wait_for(are_replaced, SOON, "the successor of a worker that had its share")


def test_a_master_that_is_killed_leaves_no_workers(dify: Chaos, gate: Gate, tmp_path: Path) -> None:
    variables = {"GUNICORN_WORKERS": "2", "GUNICORN_GRACEFUL_TIMEOUT": str(GRACE), **PATIENT}
    with started(tmp_path, dify, **variables) as running:
        workers = running.workers()
        (stream,) = opened_streams(running, dify, 1)
        running.process.kill()
        running.process.wait(SOON)
        gate.opened.set()
        assert b'"finish_reason":"stop"' in rest_of(stream)
        stream.close()
        wait_for(lambda: not any(is_running(pid) for pid in workers), GRACE + SOON)
        assert is_closed(address(running))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
