"""A caller who leaves: Dify is asked to stop, once, and nothing is held for the caller."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.calls import ask, asking, connected, question, raw_head
from tests.faults.chaos import Chaos, chat_of
from tests.faults.conftest import started
from tests.support import service
from tests.support.fake_dify import (
    FOREVER,
    LAST_CHUNK,
    PING,
    STREAM_HEAD,
    Chat,
    FakeDify,
    Request,
    Step,
    Steps,
    chunk,
    refused,
)
from tests.support.service import receive_until
from tests.support.waiting import wait_for

# The promise is 2 s; the rest is for a machine that has other things to do.
SOON = 3.0

PATIENT = {"DIFY_READ_TIMEOUT": "30"}


def _steps(name: str, chat: Chat) -> Iterator[Step]:
    """How far Dify has come when the caller leaves; it never ends by itself."""
    if name == "before-the-head":
        yield 1.5  # a model that thinks before its first word; Dify sends no head till then
    yield STREAM_HEAD
    if name == "pinged":
        yield chunk(PING)
        yield 1.5
    if name == "thinking":
        yield chunk(chat.event("agent_thought"))
        yield FOREVER
    yield chunk(chat.text("word "))
    while name == "flowing":
        yield 0.05
        yield chunk(chat.text("word "))
    yield FOREVER


PHASES = ["before-the-head", "pinged", "thinking", "silent", "flowing"]


@pytest.fixture(scope="module")
def leaving() -> Iterator[Chaos]:
    """An app for each phase, one that ends, and one that takes long for a file."""
    chaos = Chaos(
        {
            **{name: lambda r, name=name: _steps(name, chat_of(r)) for name in PHASES},
            "ends": lambda request: chat_of(request).says("word ", "and end"),
        }
    )
    yield chaos
    chaos.dify.close()


@pytest.fixture(scope="module")
def left(leaving: Chaos, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    with started(tmp_path_factory.mktemp("left"), leaving, **PATIENT) as running:
        yield running


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", PHASES)
def test_the_run_is_stopped_once(
    left: service.Service, leaving: Chaos, user: str, name: str, stream: bool
) -> None:
    with asking(left, question(name, user, stream=stream)) as connection:
        wait_for(lambda: leaving.asked(name, user), 5, "the question")
        if stream and name in ("silent", "flowing"):
            receive_until(connection, b"word")
        else:
            time.sleep(0.3)
    # A run has no name that could be stopped until Dify says its first word, 1.5 s after.
    late = 1.5 if name in ("before-the-head", "pinged") else 0.0
    wait_for(lambda: leaving.stopped(name, user), SOON + late, "the stop")
    time.sleep(0.5)
    (stop,) = leaving.stopped(name, user)
    assert stop.path == f"/v1/chat-messages/task-of-{user}/stop"
    assert stop.json == {"user": user}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_run_that_ended_is_not_stopped(
    left: service.Service, leaving: Chaos, user: str, stream: bool
) -> None:
    answer = ask(left, question("ends", user, stream=stream))
    assert answer.said() == "word and end"
    time.sleep(0.5)
    assert not leaving.stopped("ends", user)


def test_a_stopped_answer_is_read_to_its_end(tmp_path: Path) -> None:
    """Dify 1.13 keeps the partial answer of a stopped chat only so."""

    def talk(chat: Chat) -> Iterator[Step]:
        yield STREAM_HEAD + chunk(chat.text("word "))
        wait_for(fake.stopped, 10)
        yield 0.8
        yield chunk(chat.end()) + LAST_CHUNK

    fake = FakeDify(answer=lambda request: talk(chat_of(request)))
    variables = service.free_variables(fake.base, GUNICORN_WORKERS="1")
    with service.running(tmp_path, variables) as running:
        with asking(running, question("tiny", stream=True)) as connection:
            receive_until(connection, b"word")
        wait_for(fake.stopped, SOON, "the stop")
        time.sleep(1.5)
        assert ask(running, question("tiny", stream=True)).said() == "word "
        first, second = fake.asked()
        assert first.connection == second.connection, "the connection was closed unread"
    fake.close()


def test_no_thread_is_held_for_callers_who_left(leaving: Chaos, user: str, tmp_path: Path) -> None:
    """As many as there are threads leave; then others are served at once."""
    with started(tmp_path, leaving, GUNICORN_THREADS="12", **PATIENT) as running:
        for name in ("silent", "before-the-head", "thinking"):
            left = [asking(running, question(name, f"{user}-{n}", stream=True)) for n in range(9)]
            wait_for(
                lambda name=name: all(leaving.asked(name, f"{user}-{n}") for n in range(9)), 10
            )
            for connection in left:
                connection.close()
            wait_for(lambda: ask(running, question("ends", user, stream=True)).status == 200, SOON)


def upload_steps(request: Request) -> Steps:
    if request.path == "/v1/files/upload":
        return [2.0, *refused(201, {"id": "file-1"})]
    if request.path == "/v1/info":
        return refused(200, {"name": "App", "mode": "chat"})
    if request.path == "/v1/parameters":
        rules = {
            "enabled": True,
            "allowed_file_types": ["image"],
            "allowed_file_upload_methods": ["local_file"],
            "number_limits": 3,
        }
        return refused(200, {"file_upload": rules, "user_input_form": []})
    return Chat().says("A picture")


def test_no_run_is_started_for_a_caller_who_left_during_an_upload(tmp_path: Path) -> None:
    picture = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="  # noqa: E501
    content = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    fake = FakeDify(answer=upload_steps, tells_of_its_app=True)
    variables = service.free_variables(fake.base, GUNICORN_WORKERS="1")
    with service.running(tmp_path, variables) as running:
        with asking(running, body):
            wait_for(lambda: [r for r in fake.requests if "/upload" in r.path], 5, "the upload")
        time.sleep(3)
        assert not fake.asked(), "a run was begun for somebody who had left"
        assert ask(running, body).said() == "A picture"
    fake.close()


def test_an_incomplete_request_starts_no_turn(
    left: service.Service, leaving: Chaos, user: str
) -> None:
    data = json.dumps(question("ends", user)).encode()
    with connected(left) as connection:
        connection.sendall(raw_head(len(data)) + data[:20])
    with connected(left) as connection:
        connection.sendall(raw_head(len(data)) + data[:20])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    with connected(left) as connection:
        connection.sendall(raw_head(len(data) + 100) + data)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert not leaving.asked("ends", user)
    assert httpx.get(f"{left.url}/healthz", timeout=5, trust_env=False).status_code == 200
