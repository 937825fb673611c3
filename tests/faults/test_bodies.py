"""Bodies made to cost a worker more than they weigh, beside ordinary questions: they are refused or
served, the memory of the worker stays bounded, and nobody else waits for long."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.calls import PATH, Answer, ask, question, to_answer
from tests.faults.chaos import Chaos
from tests.faults.conftest import started
from tests.support.service import Service

GOOD = "carriage-returns"
SIZE = 62_000_000
MAX_MEGABYTES = 300
# Far above what it takes, and far below what it took: the machine may be busy.
SOON = 15.0

QUESTION = json.dumps(question(GOOD)).encode()


def filled(start: bytes, item: bytes, end: bytes, size: int = SIZE) -> bytes:
    return start + item * ((size - len(start) - len(end)) // len(item)) + end


def with_field(start: bytes, item: bytes, end: bytes, size: int = SIZE) -> bytes:
    """A question with one more field."""
    return filled(QUESTION[:-1] + b"," + start, item, end + b"}", size)


def with_text(start: bytes, item: bytes, end: bytes) -> bytes:
    """A question whose text is this, as JSON writes it."""
    before, after = QUESTION.split(b"Hi", 1)
    return filled(before + start, item, end + after)


def in_messages(item: bytes) -> bytes:
    return filled(b'{"model":"%s","messages":[' % GOOD.encode(), item + b",", item + b"]}")


def deep() -> bytes:
    half = SIZE // 2
    return QUESTION[:-1] + b',"inputs":{"a":' + b"[" * half + b"]" * half + b"}}"


def names() -> bytes:
    return QUESTION[:-1] + b"".join(b',"k%08d":1' % n for n in range(SIZE // 14)) + b"}"


def image() -> bytes:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,@"}}
    message = {"role": "assistant", "content": [{"type": "text", "text": "Hi"}, part]}
    body: dict[str, Any] = question(GOOD)
    body["messages"] = [*body["messages"], message, *body["messages"]]
    start, end = json.dumps(body).encode().split(b"@")
    return filled(start, b"iVBORw0KGgoA", end)


BODIES: dict[str, tuple[Callable[[], bytes], int]] = {
    "lists-in-an-unknown-field": (lambda: with_field(b'"x":[', b"[],", b"[]]"), 413),
    "lists-in-messages": (lambda: in_messages(b"[]"), 413),
    "objects-in-messages": (lambda: in_messages(b'{"role":"user"}'), 413),
    "objects-in-metadata": (lambda: with_field(b'"metadata":{', b'"":{},', b'"":{}}'), 413),
    "lists-in-inputs": (lambda: with_field(b'"inputs":{"a":[', b"[],", b"[]]}"), 413),
    "objects-in-tools": (lambda: with_field(b'"tools":[', b'{"a":{}},', b"{}]"), 413),
    "values-within-the-limit-of-text": (
        lambda: with_field(b'"inputs":{"a":[', b'{"":[]},', b"0]}", 8_000_000),
        400,
    ),
    "deep": (deep, 413),
    "names": (names, 413),
    "digits": (lambda: with_field(b'"inputs":{"a":', b"1", b"}"), 413),
    "blanks": (lambda: with_field(b"", b" ", b'"x":1'), 413),
    "words": (lambda: with_text(b"", b"lorem, ", b""), 413),
    "one-word": (lambda: with_text(b"", b"aaaa", b""), 413),
    "one-word-with-a-wide-character": (lambda: with_text(b"", b"aaaa", b"\\ud83d\\ude00"), 413),
    "bytes-that-are-no-text": (lambda: with_field(b'"x":"', b"\xff", b'"'), 413),
    "base64-in-inputs": (lambda: with_field(b'"inputs":{"a":"', b"aaaa", b'"}'), 413),
    "an-image-seen-before": (image, 200),
}


def memory(pid: int) -> int:
    """The most that a process has used so far, in megabytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) // 1024


def post(running: Service, data: bytes, in_chunks: bool) -> Answer:
    def chunks() -> Iterator[bytes]:
        for start in range(0, len(data), 65536):
            yield data[start : start + 65536]

    response = httpx.post(
        running.url + PATH,
        content=chunks() if in_chunks else data,
        headers={"Content-Type": "application/json"},
        timeout=60,
        trust_env=False,
    )
    return to_answer(response)


@pytest.mark.parametrize("name", BODIES)
def test_a_body_costs_what_it_weighs(chaos: Chaos, tmp_path: Path, name: str) -> None:
    make, status = BODIES[name]
    check(chaos, tmp_path, make(), status, in_chunks=False)


@pytest.mark.parametrize("name", ["lists-in-messages", "an-image-seen-before"])
def test_and_so_does_one_in_chunks(chaos: Chaos, tmp_path: Path, name: str) -> None:
    make, status = BODIES[name]
    check(chaos, tmp_path, make(), status, in_chunks=True)


def check(chaos: Chaos, folder: Path, data: bytes, status: int, in_chunks: bool) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        started(folder, chaos, GUNICORN_THREADS="8") as running,
    ):
        (worker,) = running.workers()
        sending = pool.submit(post, running, data, in_chunks)
        asked = 0
        while not sending.done() or not asked:
            health = httpx.get(f"{running.url}/healthz", timeout=SOON, trust_env=False)
            assert health.status_code == 200
            answer = ask(running, question(GOOD, "another"), timeout=SOON)
            assert answer.status == 200
            asked += 1
        answer = sending.result()
        assert answer.status == status, answer.text[:500]
        if status != 200:
            codes = {400: "invalid_request", 413: "request_too_large"}
            assert answer.error["code"] == codes[status]
        assert running.workers() == [worker]
        assert memory(worker) < MAX_MEGABYTES
        assert "Traceback" not in running.output()
