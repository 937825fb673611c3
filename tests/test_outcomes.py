"""How requests end, as the real service reports it in its log and its metrics."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.fake_dify import Chat, FakeDify, Step, streamed
from tests.support.service import Service, free_variables, running
from tests.support.waiting import wait_for
from tests.test_observability_metrics import Samples, parsed, value
from tests.test_web import HI, PATH

WAITS: list[Step] = [*streamed(Chat().text("word "))[:-1], 60.0]
TALKS: list[Step] = streamed(*[step for _ in range(600) for step in (Chat().text("word "), 0.1)])


@pytest.fixture
def service(tmp_path: Path, dify: FakeDify) -> Iterator[Service]:
    variables = free_variables(
        dify.base, GUNICORN_WORKERS="2", GUNICORN_GRACEFUL_TIMEOUT="4", TMPDIR=str(tmp_path)
    )
    with running(tmp_path, variables) as running_service:
        yield running_service


def begun(service: Service) -> socket.socket:
    """A connection on which a streamed answer has begun."""
    address = urlsplit(service.url)
    connection = socket.create_connection((address.hostname or "", address.port or 0), 20)
    body = httpx.Request(
        "POST", service.url, json={"model": "tiny", "messages": HI, "stream": True}
    ).content
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    received = b""
    while b"word" not in received:
        received += connection.recv(65536)
    return connection


def scraped(service: Service) -> Samples:
    return parsed(httpx.get(f"{service.url}/metrics", trust_env=False).text)


def ends(service: Service) -> list[str]:
    return re.findall(rf"route={PATH} .* ended=(\S+)$", service.output(), re.MULTILINE)


@pytest.mark.parametrize("steps", [WAITS, TALKS], ids=["silent", "talking"])
def test_a_caller_that_leaves_is_logged_and_its_run_is_stopped(
    service: Service, dify: FakeDify, steps: list[Step]
) -> None:
    dify.answers = [steps]
    connection = begun(service)
    assert value(scraped(service), "streams_open", model="tiny") == 1
    connection.close()
    wait_for(lambda: ends(service) == ["caller_gone"])
    wait_for(lambda: value(scraped(service), "stops_total", model="tiny") == 1)
    samples = scraped(service)
    assert value(samples, "streams_open", model="tiny") == 0
    assert value(samples, "requests_total", route=PATH, model="tiny", outcome="caller_gone") == 1


def test_what_is_no_http_is_answered_under_a_name_too(service: Service) -> None:
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname or "", address.port or 0), 20) as connection:
        connection.sendall(b"NO HTTP\r\n\r\n")
        answer = connection.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 400 ")
    (name,) = re.findall(r"^X-Request-Id: ([0-9a-f]{32})\r$", answer, re.MULTILINE)
    wait_for(lambda: f"id={name}" in service.output())


def test_a_response_that_ends_with_its_server_is_logged(service: Service, dify: FakeDify) -> None:
    dify.answers = [TALKS]
    connection = begun(service)
    service.stop()
    connection.close()
    assert ends(service) == ["server_stopping"]


def test_streams_of_a_worker_that_was_killed_are_not_open_any_more(
    service: Service, dify: FakeDify
) -> None:
    dify.answers = [TALKS]
    connection = begun(service)
    assert value(scraped(service), "streams_open", model="tiny") == 1
    for worker in service.workers():
        os.kill(worker, signal.SIGKILL)
    wait_for(lambda: len(service.workers()) == 2)
    connection.close()
    wait_for(lambda: value(scraped(service), "streams_open", model="tiny") == 0)
