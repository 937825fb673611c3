"""More requests than permits: each is answered, or refused at once with the time to retry after."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.faults.calls import Answer, ask, question
from tests.faults.chaos import Chaos, chat_of
from tests.faults.conftest import started
from tests.support.fake_dify import LAST_CHUNK, STREAM_HEAD, Request, Step, chunk
from tests.support.service import Service
from tests.support.waiting import wait_for

SOON = 10.0


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def dify(gate: threading.Event) -> Iterator[Chaos]:
    def answer(request: Request) -> Iterator[Step]:
        chat = chat_of(request)
        yield STREAM_HEAD + chunk(chat.text("All "))
        gate.wait(60)
        yield chunk(chat.text("is well")) + chunk(chat.end()) + LAST_CHUNK

    chaos = Chaos({"gated": answer})
    yield chaos
    chaos.dify.close()


def get(running: Service, path: str) -> int:
    return httpx.get(running.url + path, timeout=5, trust_env=False).status_code


def test_requests_without_a_permit_are_refused_at_once(
    dify: Chaos, gate: threading.Event, tmp_path: Path
) -> None:
    variables = {"GUNICORN_THREADS": "16", "MAX_CONCURRENT_STREAMS": "8"}
    with (
        ThreadPoolExecutor(40) as pool,
        started(tmp_path, dify, **variables, DIFY_READ_TIMEOUT="60") as running,
    ):
        asked = [
            pool.submit(ask, running, question("gated", f"u{n}", stream=bool(n % 2)))
            for n in range(40)
        ]
        wait_for(lambda: sum(one.done() for one in asked) == 32, SOON, "the refusal of the rest")
        assert (get(running, "/healthz"), get(running, "/v1/models")) == (200, 200)
        gate.set()
        answers = [one.result(SOON) for one in asked]
    served = [answer for answer in answers if answer.status == 200]
    assert [answer.said() for answer in served] == ["All is well"] * 8
    assert len(dify.asked("gated")) == 8
    check_refused([answer for answer in answers if answer.status != 200])


def check_refused(answers: list[Answer]) -> None:
    assert len(answers) == 32
    for answer in answers:
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-should-retry"] == "true"


def test_the_pool_is_as_large_as_the_threads(
    dify: Chaos, gate: threading.Event, tmp_path: Path
) -> None:
    """httpx's own limit of 100 connections gave 96 errors to 200 streams in one worker."""
    with (
        ThreadPoolExecutor(120) as pool,
        started(tmp_path, dify, GUNICORN_THREADS="144", DIFY_READ_TIMEOUT="60") as running,
    ):
        asked = [
            pool.submit(ask, running, question("gated", f"u{n}", stream=True)) for n in range(120)
        ]
        wait_for(lambda: len(dify.asked("gated")) == 120, 30, "the last of the questions")
        gate.set()
        assert {one.result(30).said() for one in asked} == {"All is well"}
