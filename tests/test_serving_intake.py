"""What tells the worker that a request is complete; cut at every place."""

import logging
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from gunicorn.config import Config
from gunicorn.workers.gthread import ThreadWorker
from hypothesis import given
from hypothesis import strategies as st

from opendify.serving.chunks import ChunkScanner
from opendify.serving.connection import Connection, Phase
from opendify.serving.departure import holds_any, inodes
from opendify.serving.intake import MAX_HEAD_BYTES, Intake, Stage
from opendify.serving.waiting import Waiting
from opendify.serving.worker import Worker

LINE = b"POST / HTTP/1.1\r\n"

COMPLETE = {
    "no body": LINE + b"A: b\r\n\r\n",
    "no headers": LINE + b"\r\n",
    "an empty line before": b"\r\n" + LINE + b"\r\n",
    "a length": LINE + b"Content-Length: 5\r\n\r\nhello",
    "a length in other letters": LINE + b"CONTENT-length:5\r\n\r\n12345",
    "a length of nothing": LINE + b"Content-Length: 0\r\n\r\n",
    "chunks": LINE + b"Transfer-Encoding: chunked\r\n\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n",
    "extensions": LINE + b'Transfer-Encoding: gzip, chunked\r\n\r\n1;a="b"\r\nx\r\n0;c\r\n\r\n',
    "trailers": LINE + b"Transfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\nA: b\r\n\r\n",
    "upper chunks": LINE + b"transfer-encoding:CHUNKED\r\n\r\n00a\r\n0123456789\r\n0\r\n\r\n",
    "a name within another": LINE + b"X-Content-Length: 5\r\n\r\n",
    "a length in a value": LINE + b"X: Content-Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("data", COMPLETE.values(), ids=COMPLETE)
def test_a_request_is_ready_with_its_last_byte_wherever_it_is_cut(data: bytes) -> None:
    for cut in range(1, len(data)):
        intake = Intake(1000, None)
        intake.feed(data[:cut])
        assert intake.stage in (Stage.HEAD, Stage.BODY)
        intake.feed(data[cut:])
        assert (intake.stage, intake.is_whole) == (Stage.READY, True)
        assert collected(intake) == data


@given(st.integers(0, len(COMPLETE) - 1), st.lists(st.integers(1, 9), min_size=1))
def test_the_pieces_do_not_matter(which: int, sizes: list[int]) -> None:
    data = list(COMPLETE.values())[which]
    intake, position, turn = Intake(1000, None), 0, 0
    while position < len(data):
        assert intake.stage in (Stage.HEAD, Stage.BODY)
        size = min(sizes[turn % len(sizes)], intake.piece)
        intake.feed(data[position : position + size])
        position, turn = position + size, turn + 1
    assert intake.is_whole
    assert collected(intake) == data


def collected(intake: Intake) -> bytes:
    rest = b""
    if intake.rest is not None:
        intake.rest.seek(0)
        rest = intake.rest.read()
    intake.close()
    return bytes(intake.beginning) + rest


# The parser refuses these at once, or the application does: there is nothing to wait for.
HOPELESS = {
    "a bare LF": b"GET / HTTP/1.1\n",
    "a bare LF in a header": LINE + b"A: b\nC: d\r\n",
    "a body beyond the limit": LINE + b"Content-Length: 1001\r\n\r\n",
    "a body beyond all numbers": LINE + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("data", HOPELESS.values(), ids=HOPELESS)
def test_what_need_not_be_waited_for_is_ready_and_not_whole(data: bytes) -> None:
    intake = Intake(1000, None)
    intake.feed(data)
    assert (intake.stage, intake.is_whole) == (Stage.READY, False)


AMBIGUOUS = [
    b"Content-Length: 5\r\nContent-Length: 5",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
]


@pytest.mark.parametrize("headers", AMBIGUOUS)
def test_a_body_of_two_lengths_is_not_waited_for(headers: bytes) -> None:
    intake = Intake(1000, None)
    intake.feed(LINE + headers + b"\r\n\r\n")
    assert intake.stage is Stage.READY


def test_chunks_beyond_the_limit_are_ready_and_not_whole() -> None:
    intake = Intake(1000, None)
    intake.feed(LINE + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n" + b"x" * 990)
    assert intake.stage is Stage.BODY
    intake.feed(b"x" * 10)
    assert (intake.stage, intake.is_whole) == (Stage.READY, False)
    intake.close()


def test_a_head_has_an_end() -> None:
    intake = Intake(1000, None)
    intake.feed(LINE + b"A: " + b"x" * (MAX_HEAD_BYTES - len(LINE) - 3))
    assert intake.stage is Stage.HEAD
    intake.feed(b"x")
    assert intake.stage is Stage.HEAD_TOO_LARGE


@pytest.mark.parametrize("data", [b"x\r\n", b"-1\r\n", b"\r\n", b"1" * 20_000], ids=repr)
def test_malformed_chunks_are_not_waited_for(data: bytes) -> None:
    scanner = ChunkScanner()
    scanner.feed(data)
    assert scanner.ended


@given(st.binary(max_size=200))
def test_no_bytes_upset_the_scanner(data: bytes) -> None:
    ChunkScanner().feed(data)
    intake = Intake(1000, None)
    for byte in LINE + b"Transfer-Encoding: chunked\r\n\r\n" + data:
        if intake.stage in (Stage.HEAD, Stage.BODY):
            intake.feed(bytes([byte]))
    intake.close()


EXPECTING = {
    "a body to come": (LINE, True),
    "HTTP/1.0": (LINE.replace(b"1.1", b"1.0"), False),
    "another header before": (LINE + b"A: b\r\n", True),
}


@pytest.mark.parametrize(("beginning", "expected"), EXPECTING.values(), ids=EXPECTING)
def test_only_who_asks_is_told_to_go_on(beginning: bytes, expected: bool) -> None:
    intake = Intake(1000, None)
    intake.feed(beginning + b"expect: 100-Continue\r\nContent-Length: 5\r\n\r\n")
    assert intake.awaits_continue is expected


@pytest.fixture
def conn() -> Iterator[Connection]:
    caller, sock = socket.socketpair()
    with caller, sock:
        yield Connection(Config(), sock, "", "", 10**9, None)


def test_the_head_has_one_deadline_however_it_trickles(conn: Connection) -> None:
    deadline = conn.deadline
    assert 14 < deadline - time.monotonic() <= 15
    for byte in LINE:
        conn.take(bytes([byte]), conn.since + 10)
    assert conn.deadline == deadline


def test_an_idle_connection_has_the_time_for_a_head_from_its_first_byte(conn: Connection) -> None:
    conn.await_next(75)
    assert conn.phase is Phase.IDLE
    conn.take(b"G", 1000.0)
    assert (conn.phase, conn.deadline) == (Phase.SENDING, 1015.0)


def test_a_body_may_be_slow_but_not_silent_and_not_for_ever(conn: Connection) -> None:
    conn.take(LINE + b"Content-Length: 64000000\r\n\r\n", 1000.0)
    assert conn.deadline == 1030.0
    conn.take(b"x", 1029.0)
    assert conn.deadline == 1059.0
    conn.take(b"x", 1058.0)
    assert conn.deadline == pytest.approx(1060.0, abs=0.001)
    conn.take(b"x" * 8192 * 100, 1059.0)
    assert conn.deadline == 1089.0
    conn.close()


def test_a_thread_is_kept_for_a_new_connection_for_a_moment(conn: Connection) -> None:
    with selectors.DefaultSelector() as poller:
        waiting = Waiting(poller, logging.getLogger("test"), lambda conn: None, 10, 1000)
        waiting.welcome(conn)
        assert waiting.fresh() == 1
        until = time.monotonic() + 5
        while waiting.fresh():
            assert time.monotonic() < until
            time.sleep(waiting.patience)
        assert len(waiting) == 1
        waiting.drop(conn)


def test_no_thread_is_kept_for_a_connection_that_has_begun_to_send() -> None:
    caller, sock = socket.socketpair()
    with caller, selectors.DefaultSelector() as poller:
        conn = Connection(Config(), sock, "", "", 1000, None)
        waiting = Waiting(poller, logging.getLogger("test"), lambda conn: None, 10, 1000)
        caller.sendall(b"GET")
        waiting.welcome(conn)
        assert (len(waiting), waiting.fresh()) == (1, 0)
        waiting.drop(conn)


@pytest.mark.parametrize(
    ("name", "value"), [("proxy_protocol", "v1"), ("certfile", __file__), ("protocol", "uwsgi")]
)
def test_what_is_not_plain_http_is_left_to_gunicorns_own_worker(name: str, value: str) -> None:
    cfg = Config()
    cfg.set(name, value)
    worker = Worker(1, 1, [], None, 30, cfg, None)
    assert type(worker) is ThreadWorker
    worker.tmp.close()


def test_listening_sockets_are_found_in_the_process_that_has_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        known = inodes([ours.fileno()])
        assert holds_any(os.getpid(), known)
    assert not holds_any(os.getpid(), known)
    assert not holds_any(2**22 + 1, known)


TURN = """
import os, sys
from opendify.serving.retirement import OneAtATime

turn = OneAtATime(None)
for _ in range(3):  # what ends lets go
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, b"%d" % turn.take())
        os.close(write)
        sys.stdin.readline()
        os._exit(0)
    os.close(write)
    with open(read) as taken:
        print(taken.read(), flush=True)
"""


def test_one_process_at_a_time_has_its_turn() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == [b"1\n", b"0\n", b"0\n"]
        process.kill()
