"""Callers who leave, many at once or before a Dify that is slow to stop: nothing waits for that."""

import base64
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.fake_dify import CLOSE, Chat, FakeDify, Request, Step, Steps, refused, streamed
from tests.support.service import Service, free_variables, receive_until, running, sent
from tests.support.waiting import wait_for

FOREVER = 60.0


PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


def asking(service: Service) -> socket.socket:
    """A question on a connection of its own, once its answer has begun."""
    caller = sent(service, "Hello")
    answer = caller.recv(65536)
    assert b" 200 " in answer[:20], answer
    return caller


def variables(dify: FakeDify, **more: str) -> dict[str, str]:
    return free_variables(dify.base, GUNICORN_WORKERS="1", **more)


def test_many_who_leave_at_once_are_all_stopped_on_threads_that_go_on(
    tmp_path: Path, dify: FakeDify
) -> None:
    dify.answer = lambda request: streamed(Chat().text("Hello"), FOREVER)
    settings = variables(dify, GUNICORN_THREADS="32", MAX_CONCURRENT_STREAMS="24")
    with running(tmp_path, settings) as service:
        callers = [asking(service) for _ in range(24)]
        before = service.threads()
        for caller in callers:
            caller.close()
        wait_for(lambda: len(dify.stopped()) == 24)
        most = before + 24 + 1  # whom the loop gave on to had no thread before; one listens to Dify
        assert service.threads() <= most
        again = [asking(service) for _ in range(24)]
        for caller in again:
            caller.close()
        wait_for(lambda: len(dify.stopped()) == 48)
        assert service.threads() <= most
        assert "Traceback" not in service.output()


def test_a_dify_that_is_slow_to_stop_holds_no_permit(tmp_path: Path, dify: FakeDify) -> None:
    dify.answer = lambda request: streamed(Chat().text("Hello"), FOREVER)
    dify.answer_stop = [FOREVER]
    settings = variables(dify, GUNICORN_THREADS="4", MAX_CONCURRENT_STREAMS="2")
    with running(tmp_path, settings) as service:
        for _ in range(3):
            begun_at = time.monotonic()
            callers = [asking(service) for _ in range(2)]
            for caller in callers:
                caller.close()
            time.sleep(0.3)
            assert time.monotonic() - begun_at < 5
        wait_for(lambda: len(dify.stopped()) == 6)


class Stops:
    """Other steps each time that a run is stopped."""

    def __init__(self, *steps: Steps) -> None:
        self._left = list(steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self._left.pop(0))


def test_a_stop_on_a_connection_that_dify_has_closed_is_sent_again(
    tmp_path: Path, dify: FakeDify
) -> None:
    """Dify without nginx before it closes what is idle for 2 s; the pool may not know yet."""
    dify.answers = [streamed(Chat().text("Hello"), FOREVER), Chat().says("Hello")]
    dify.answer_stop = Stops([CLOSE], refused(200, {"result": "success"}))
    with running(tmp_path, variables(dify)) as service:
        leaving = asking(service)
        with sent(service, "Hello") as whole:  # whose connection to Dify is idle afterwards
            receive_until(whole, b"[DONE]")
        wait_for(lambda: "completion_tokens=2" in service.output())  # the request is over
        leaving.close()
        wait_for(lambda: len(dify.stopped()) == 2)
        time.sleep(0.2)
        assert "could not stop" not in service.output()


def test_a_chatflow_is_not_read_on_which_keeps_its_answer_anyway(
    tmp_path: Path, dify: FakeDify
) -> None:
    ended = threading.Event()

    def endless(request: Request) -> Steps:
        head, text, _ = streamed(Chat().text("Hello"))
        try:
            yield head
            while True:
                yield text
                yield 0.05
        finally:
            ended.set()

    dify.answer = endless
    config = {"MODEL_CONFIG": '{"tiny":{"key":"app-1","type":"advanced-chat"}}'}
    with running(tmp_path, variables(dify) | config) as service:
        asking(service).close()
        wait_for(dify.stopped)
        assert ended.wait(1.5)


def test_a_caller_who_leaves_during_an_upload_to_dify_holds_no_permit(
    tmp_path: Path, dify: FakeDify
) -> None:
    uploads: list[Request] = []

    def answer(request: Request) -> Steps:
        if request.path == "/v1/files/upload":
            uploads.append(request)
            return [FOREVER]
        return Chat().says("Hello")

    dify.answer = answer
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    content = [
        {"type": "text", "text": "Hello"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    settings = variables(dify, GUNICORN_THREADS="2", MAX_CONCURRENT_STREAMS="1")
    with running(tmp_path, settings) as service:
        caller = sent(service, content)
        wait_for(lambda: uploads)
        caller.close()
        time.sleep(0.5)
        asking(service).close()
        assert len(uploads) == 1
