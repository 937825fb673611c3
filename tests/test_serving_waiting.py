"""How much is kept of bodies that are on their way."""

import logging
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from gunicorn.config import Config

from opendify.serving.connection import Connection
from opendify.serving.waiting import Waiting

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


class Callers:
    """Their connections, in a Waiting that keeps 1500 bytes."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.started: list[Connection] = []
        poller = stack.enter_context(selectors.DefaultSelector())
        log = logging.getLogger("test")
        self.waiting = Waiting(poller, log, self.started.append, most=100, most_bytes=1500)

    def send(self, body: int) -> tuple[socket.socket, Connection]:
        caller, ours = (self._stack.enter_context(end) for end in socket.socketpair())
        caller.settimeout(5)
        ours.setblocking(False)
        conn = Connection(Config(), ours, ("x", 1), ("x", 2), limit=1000, folder=None)
        caller.sendall(HEAD + bytes(body))
        self.waiting.welcome(conn)
        return caller, conn


@pytest.fixture
def callers() -> Iterator[Callers]:
    with ExitStack() as stack:
        yield Callers(stack)


def is_refused(caller: socket.socket) -> bool:
    caller.setblocking(False)
    try:
        return caller.recv(100).startswith(b"HTTP/1.1 503")
    except BlockingIOError:
        return False


def test_bodies_are_refused_where_they_are_too_many_together(callers: Callers) -> None:
    assert not is_refused(callers.send(700)[0])
    assert not is_refused(callers.send(700)[0])
    assert is_refused(callers.send(700)[0])


def test_bodies_that_have_gone_leave_their_place_to_others(callers: Callers) -> None:
    for _ in range(5):
        callers.send(1000)  # whole: it has a thread
        callers.waiting.drop(callers.send(900)[1])
    assert len(callers.started) == 5
    caller, conn = callers.send(900)
    refused, other = callers.send(900)
    assert (is_refused(caller), is_refused(refused)) == (False, True)
    callers.waiting.drop(other)
    assert not is_refused(callers.send(500)[0])
    callers.waiting.drop(conn)
