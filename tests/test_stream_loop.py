"""Answers that the main loop of a worker gives on: real processes and sockets."""

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_dify import Chat, FakeDify, Request, Step, chunk, streamed
from tests.support.service import Service, free_variables, receive_until, running, sent
from tests.support.waiting import wait_for

SOON = 10.0


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker with a small application that gives its answers in steps."""
    numbers = {"GUNICORN_WORKERS": "1", "GUNICORN_THREADS": "8"}
    folder = tmp_path_factory.mktemp("bare")
    with running(folder, numbers, application="tests.support.serving_app:app") as service:
        yield service


@pytest.fixture
def service(tmp_path: Path, dify: FakeDify) -> Iterator[Service]:
    numbers = {
        "GUNICORN_WORKERS": "1",
        "GUNICORN_THREADS": "32",
        "GUNICORN_GRACEFUL_TIMEOUT": "4",
    }
    with running(tmp_path, free_variables(dify.base, **numbers)) as started:
        yield started


def connected(service: Service) -> socket.socket:
    port = int(service.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), SOON)


def stepped(service: Service, query: str, version: str = "1.1") -> socket.socket:
    sock = connected(service)
    sock.sendall(f"GET /steps?{query} HTTP/{version}\r\nHost: x\r\n\r\n".encode())
    return sock


def rest_of(sock: socket.socket) -> bytes:
    received = b""
    while data := sock.recv(1 << 16):
        received += data
    return received


def test_what_is_waited_for_is_given_on_by_the_loop_and_the_end_by_a_thread(bare: Service) -> None:
    with stepped(bare, "ticks=3&until=0.3") as sock:
        answer = receive_until(sock, b"\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    lines = re.findall(rb"(begun|tick .*|time is up|end .*)\n", answer)
    assert lines[:5] == [b"begun", *[b"tick MainThread"] * 3, b"time is up"]
    assert lines[5].startswith(b"end ThreadPoolExecutor")
    wait_for(lambda: "closed steps" in bare.output())


def test_a_caller_of_http_1_0_gets_no_chunks(bare: Service) -> None:
    with stepped(bare, "ticks=1&until=0.1", "1.0") as sock:
        answer = rest_of(sock)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert body.startswith(b"begun\ntick MainThread\ntime is up\nend ")


def test_what_breaks_in_the_loop_ends_its_own_answer_only(bare: Service) -> None:
    with stepped(bare, "ticks=20&until=1") as other:
        receive_until(other, b"tick")
        with stepped(bare, "ticks=1&until=5&end=raise") as sock:
            assert not rest_of(sock).endswith(b"0\r\n\r\n")
        receive_until(other, b"end")
    wait_for(lambda: "the secret reason" in bare.output())
    assert "Error handling request" in bare.output()


def test_a_caller_that_leaves_is_noticed_while_nothing_comes(bare: Service) -> None:
    closed = bare.output().count("closed steps")
    with stepped(bare, "ticks=0&until=2") as sock:
        receive_until(sock, b"begun")
    wait_for(lambda: bare.output().count("closed steps") > closed)


def test_streams_that_wait_for_dify_hold_no_thread(service: Service, dify: FakeDify) -> None:
    go_on = threading.Event()

    def answer(request: Request) -> Iterator[Step]:
        yield from streamed(Chat().text("One"))[:2]
        go_on.wait(SOON)
        yield from streamed(*(Chat().text(f" {n}") for n in range(50)), Chat().end())[1:]

    dify.answer = answer
    callers = []
    for _ in range(20):
        callers.append(sent(service, "Hi"))
        receive_until(callers[-1], b"One")
    assert service.threads() < 12
    go_on.set()
    for caller in callers:
        given = receive_until(caller, b"\r\n0\r\n\r\n")
        said = b"".join(re.findall(rb'"content":"([^"]*)"', given))
        assert said.split()[-50:] == [str(n).encode() for n in range(50)]
        assert b"data: [DONE]" in given
        caller.close()


def test_a_caller_that_does_not_read_delays_no_other_and_loses_nothing(
    service: Service, dify: FakeDify
) -> None:
    numbers = [f"{n:06d}" + "x" * 1000 for n in range(4000)]

    def answer(request: Request) -> Iterator[Step]:
        if "much" not in request.json["query"]:
            for n in range(10):
                yield (b"" if n else streamed()[0]) + chunk(Chat().text(f"n{n}"))
                yield 0.05
            yield from streamed(Chat().end())[1:]
            return
        yield streamed()[0]
        for number in numbers:
            yield chunk(Chat().text(number))
        yield from streamed(Chat().end())[1:]

    dify.answer = answer
    with sent(service, "much") as lazy:
        given = receive_until(lazy, b"000000")
        with sent(service, "Hi") as other:
            receive_until(other, b"[DONE]")
        given += receive_until(lazy, b"[DONE]")
    assert [int(n) for n in re.findall(rb"(\d{6})x{1000}", given)] == list(range(4000))


def test_an_answer_given_on_by_the_loop_ends_with_its_server(
    service: Service, dify: FakeDify
) -> None:
    dify.answer = lambda request: streamed(Chat().text("Hello"), 60.0)
    with sent(service, "Hi") as caller:
        receive_until(caller, b"Hello")
        service.process.terminate()
        given = receive_until(caller, b"[DONE]")
    assert b'"code":"server_stopping"' in given or b"being stopped" in given
    wait_for(lambda: dify.stopped())
