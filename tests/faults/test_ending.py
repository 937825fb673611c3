"""The end of the service, as its callers see it: real signals, real Gunicorn."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import schemas
from tests.support.fake_dify import PING, Chat, FakeDify, event, streamed
from tests.support.service import Service, free_variables, running
from tests.support.streams import read_stream
from tests.support.waiting import wait_for

HELLO = [{"role": "user", "content": "Hello"}]
FOREVER = 60.0
STOPPING = "OpenDify is being stopped and could not finish this answer; ask again."


@dataclass
class Call:
    """A request on a thread of its own; ``has_begun`` is set by its first byte."""

    status: int = 0
    content: bytes = b""
    failure: Exception | None = None

    def __post_init__(self) -> None:
        self.has_begun = threading.Event()

    def run(
        self, service: Service, stream: bool, messages: list[dict[str, str]] = HELLO, **headers: str
    ) -> None:
        url = f"{service.url}/v1/chat/completions"
        body = {"model": "tiny", "stream": stream, "messages": messages}
        try:
            with (
                httpx.Client(trust_env=False, timeout=40) as client,
                client.stream("POST", url, json=body, headers=headers) as response,
            ):
                self.status = response.status_code
                for piece in response.iter_raw():
                    self.content += piece
                    self.has_begun.set()
        except httpx.TransportError as exc:
            self.failure = exc


@contextmanager
def called(service: Service, *, stream: bool = True, **more: Any) -> Iterator[Call]:
    call = Call()
    thread = threading.Thread(target=call.run, args=(service, stream), kwargs=more)
    thread.start()
    try:
        yield call
    finally:
        thread.join(40)
    assert not thread.is_alive()
    assert call.failure is None


def wait_for_questions(dify: FakeDify, number: int) -> None:
    wait_for(lambda: len(dify.asked()) >= number, what="the question")


def variables(dify: FakeDify, **more: str) -> dict[str, str]:
    return free_variables(dify.base, GUNICORN_WORKERS="1", GUNICORN_THREADS="8", **more)


def test_what_still_runs_shortly_before_the_end_is_ended_and_stopped(
    tmp_path: Path, dify: FakeDify
) -> None:
    began = event(event="workflow_started", task_id="t-3", workflow_run_id="r", data={})
    dify.answers = [
        streamed(Chat(task_id="t-1").text("Half"), FOREVER),
        streamed(Chat(task_id="t-2").text("Half"), FOREVER),
        streamed(began, FOREVER),
        streamed(PING, FOREVER),
    ]
    with running(tmp_path, variables(dify, GUNICORN_GRACEFUL_TIMEOUT="6")) as service:
        with called(service) as streamed_call:
            wait_for_questions(dify, 1)
            with called(service, stream=False) as whole:
                wait_for_questions(dify, 2)
                with called(service) as only_begun:
                    wait_for_questions(dify, 3)
                    with called(service) as silent:
                        wait_for_questions(dify, 4)
                        assert streamed_call.has_begun.wait(10)
                        service.process.terminate()
        assert service.process.wait(10) == 0
    answer = read_stream(streamed_call.content)
    assert (answer.text, answer.finish_reason) == ("Half", None)
    assert answer.error is not None
    assert (answer.error["code"], answer.error["message"]) == ("server_stopping", STOPPING)
    assert (whole.status, silent.status) == (503, 503)
    for content in (whole.content, silent.content):
        schemas.assert_error(json.loads(content))
        assert json.loads(content)["error"]["code"] == "server_stopping"
    assert b"server_stopping" in only_begun.content
    assert sorted(request.path for request in dify.stopped()) == [
        "/v1/chat-messages/t-1/stop",
        "/v1/chat-messages/t-2/stop",
        "/v1/chat-messages/t-3/stop",
    ]
    assert "Traceback" not in service.output()


def test_what_ends_in_time_is_whole_and_nothing_new_is_taken(
    tmp_path: Path, dify: FakeDify
) -> None:
    dify.answer = lambda request: streamed(Chat().text("Hello"), 1.5, Chat().end())
    with running(tmp_path, variables(dify, GUNICORN_GRACEFUL_TIMEOUT="10")) as service:
        with called(service) as call:
            assert call.has_begun.wait(10)
            service.process.terminate()
            time.sleep(0.5)
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{service.url}/healthz", trust_env=False, timeout=5)
        assert service.process.wait(10) == 0
    assert read_stream(call.content).finish_reason == "stop"
    assert dify.stopped() == []


@pytest.mark.parametrize("cause", ["SIGHUP", "max_requests"])
def test_a_worker_that_is_replaced_loses_no_stream(
    tmp_path: Path, dify: FakeDify, cause: str
) -> None:
    dify.answer = lambda request: streamed(Chat().text("Hello"), 3.0, Chat().end())
    limit = "2" if cause == "max_requests" else "0"
    settings = variables(
        dify,
        GUNICORN_GRACEFUL_TIMEOUT="2",
        GUNICORN_MAX_REQUESTS=limit,
        GUNICORN_MAX_REQUESTS_JITTER="0",
    )
    with running(tmp_path, settings) as service:
        old = service.workers()
        with called(service) as call:
            assert call.has_begun.wait(10)
            if cause == "SIGHUP":
                service.process.send_signal(signal.SIGHUP)
            for _ in range(4):
                health = httpx.get(f"{service.url}/healthz", trust_env=False, timeout=10)
                assert health.status_code == 200
        assert read_stream(call.content).finish_reason == "stop"
        wait_for(lambda: not set(old) & set(service.workers()), what="the end of the old workers")
        with called(service) as after:
            pass
        assert read_stream(after.content).finish_reason == "stop"
    assert dify.stopped() == []


def test_a_worker_that_is_killed_loses_no_conversation_and_no_stream_of_others(
    tmp_path: Path, dify: FakeDify
) -> None:
    dify.answer = lambda request: streamed(Chat().text("Hello"), 2.0, Chat().end())
    settings = variables(dify) | {"GUNICORN_WORKERS": "2", "MAX_CONCURRENT_STREAMS": "1"}
    chat = {"X-OpenWebUI-Chat-Id": "kept"}
    with running(tmp_path, settings) as service:
        with called(service, **chat):
            pass
        calls = [Call(), Call()]
        threads = [threading.Thread(target=call.run, args=(service, True)) for call in calls]
        for thread, call in zip(threads, calls, strict=True):
            thread.start()
            assert call.has_begun.wait(10)
        killed = service.workers()[0]
        os.kill(killed, signal.SIGKILL)
        for thread in threads:
            thread.join(20)
        ends = sorted(call.failure is None for call in calls)
        assert ends == [False, True]
        whole = next(call for call in calls if call.failure is None)
        assert read_stream(whole.content).finish_reason == "stop"
        messages = [*HELLO, {"role": "assistant", "content": "Hello"}, *HELLO]
        with called(service, messages=messages, **chat):
            pass
        assert dify.asked()[-1].json["conversation_id"] == Chat().conversation_id
