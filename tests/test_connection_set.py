"""How much is kept of bodies that are on their way, and which is given up when it is too much."""

import logging
import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from gunicorn.config import Config

from opendify.worker.connection import Connection
from opendify.worker.connection_set import PendingConnections
from opendify.worker.head import RequestHead

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


class Callers:
    """Client connections in a PendingConnections of at most ten connections and 2000 bytes."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.started: list[Connection] = []
        poller = stack.enter_context(selectors.DefaultSelector())
        log = logging.getLogger("test")
        self.waiting = PendingConnections(
            poller, log, self.started.append, max_connections=10, max_body_bytes=2000
        )

    def send(
        self,
        body: int,
        address: str = "x",
        head: bytes = HEAD,
        age: float = 0.0,
        accepts_body: Callable[[Connection, RequestHead], bool] = lambda conn, request: True,
    ) -> tuple[socket.socket, Connection]:
        """``age``: how many seconds ago it was begun."""
        caller, ours = (self._stack.enter_context(end) for end in socket.socketpair())
        caller.settimeout(5)
        ours.setblocking(False)
        conn = Connection(Config(), ours, (address, 1), ("x", 2), 1000, None, accepts_body)
        caller.sendall(head + bytes(body))
        self.waiting.add_new(conn)
        conn.since -= age
        return caller, conn


@pytest.fixture
def callers() -> Iterator[Callers]:
    with ExitStack() as stack:
        found = Callers(stack)
        yield found
        for conn in [*found.waiting, *found.started]:
            found.waiting.drop(conn)


def is_refused(caller: socket.socket) -> bool:
    caller.setblocking(False)
    try:
        return caller.recv(100).startswith(b"HTTP/1.1 503")
    except BlockingIOError:
        return False


def refused(sent: list[tuple[socket.socket, Connection]]) -> list[int]:
    return [number for number, (caller, _) in enumerate(sent) if is_refused(caller)]


def test_bodies_that_fit_are_kept_whoever_sends_them(callers: Callers) -> None:
    assert refused([callers.send(999), callers.send(999)]) == []


def test_the_body_that_is_held_back_is_refused_and_not_the_newcomer(callers: Callers) -> None:
    sent = [callers.send(900, age=20), callers.send(900, age=200), callers.send(300)]
    assert refused(sent) == [1]


def test_a_small_body_is_spared_for_a_large_one_that_is_not_much_younger(callers: Callers) -> None:
    sent = [callers.send(100, age=200), callers.send(950, age=100), callers.send(960)]
    assert refused(sent) == [1]


def test_an_address_with_many_bodies_loses_them_before_others_lose_theirs(
    callers: Callers,
) -> None:
    sent = [callers.send(900, "honest", age=200)]
    sent += [callers.send(200, "greedy", age=190 + number) for number in range(5)]
    sent += [callers.send(200, "other")]
    assert refused(sent) == [5]


def test_a_complete_body_needs_no_share_of_the_limit(callers: Callers) -> None:
    sent = [callers.send(900), callers.send(900), *[callers.send(1000) for _ in range(5)]]
    assert refused(sent) == []
    assert len(callers.started) == 5


def test_closed_bodies_leave_their_share_of_memory_to_others(callers: Callers) -> None:
    for _ in range(5):
        callers.send(1000)  # whole: it has a thread
        callers.waiting.drop(callers.send(900)[1])
    assert refused([callers.send(900), callers.send(900)]) == []


def test_what_was_refused_or_answered_takes_no_room(callers: Callers) -> None:
    first = [callers.send(900, age=100), callers.send(900), callers.send(900)]
    assert refused(first) == [0]
    for _ in range(3):
        callers.send(1000)
        callers.waiting.close(callers.started[-1])  # as after its answer
    callers.waiting.drop(first[1][1])
    assert refused([callers.send(900)]) == []


def test_an_unexpected_failure_ends_one_request_and_not_the_loop(callers: Callers) -> None:
    def fail(conn: Connection, request: object) -> bool:
        raise RuntimeError("the secret reason")

    caller, _ = callers.send(900, accepts_body=fail)
    answer = caller.recv(1000)
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"secret" not in answer
    assert refused([callers.send(999), callers.send(999)]) == []


def test_a_refused_chunk_releases_its_memory(callers: Callers) -> None:
    chunked = HEAD.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked")
    caller, conn = callers.send(0, head=chunked + b"384\r\n" + bytes(800))
    caller.sendall(bytes(100) + b"zz")
    callers.waiting._on_readable(conn, conn.sock)
    assert caller.recv(100).startswith(b"HTTP/1.1 400")
    assert refused([callers.send(900), callers.send(900)]) == []


def test_of_too_many_the_one_that_is_held_back_is_given_up_and_not_the_newcomer(
    callers: Callers,
) -> None:
    held = [callers.send(1, age=100 - number) for number in range(8)]
    uploading = callers.send(900)
    slow_head = callers.send(0, head=b"POST / HTTP")
    callers.send(0, head=b"POST / HTTP")
    gone = [conn.sock.fileno() == -1 for _, conn in [*held, uploading, slow_head]]
    assert gone == [True, *[False] * 9]
