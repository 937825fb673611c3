"""What tells the worker that a request is complete; cut at every place."""

import contextlib
import logging
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import LimitRequestHeaders, ParseException
from gunicorn.workers.gthread import ThreadWorker
from hypothesis import given
from hypothesis import strategies as st

from opendify.worker.connection import Connection, Phase
from opendify.worker.connection_set import PendingConnections
from opendify.worker.head import parse_head
from opendify.worker.request_buffer import MAX_HEAD_BYTES, RequestBuffer, Stage
from opendify.worker.shutdown import has_any_open, socket_inodes
from opendify.worker.worker import Worker

LINE = b"POST / HTTP/1.1\r\n"

CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"
# A request, and the body that the application gets.
COMPLETE = {
    "no body": (LINE + b"A: b\r\n\r\n", b""),
    "no headers": (LINE + b"\r\n", b""),
    "an empty line before": (b"\r\n" + LINE + b"\r\n", b""),
    "a length": (LINE + b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "a length in other letters": (LINE + b"CONTENT-length:5\r\n\r\n12345", b"12345"),
    "a length of nothing": (LINE + b"Content-Length: 0\r\n\r\n", b""),
    "chunks": (CHUNKED + b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    "extensions": (CHUNKED + b'1;a="b"\r\nx\r\n0;c\r\n\r\n', b"x"),
    "trailers": (CHUNKED + b"A\r\n0123456789\r\n0\r\nA: b\r\n\r\n", b"0123456789"),
    "upper chunks": (CHUNKED.upper() + b"00a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "a name within another": (LINE + b"X-Content-Length: 5\r\n\r\n", b""),
    "a length in a value": (LINE + b"X: Content-Length: 5\r\n\r\n", b""),
}
NEXT = b"GET / HTTP/1.1\r\n\r\n"


def new_intake() -> RequestBuffer:
    return RequestBuffer(partial(parse_head, Config(), ("127.0.0.1", 1)), 1000, None)


def collected(intake: RequestBuffer) -> bytes:
    request = intake.to_request()
    headers = dict(request.headers)
    assert "TRANSFER-ENCODING" not in headers
    assert request.body is not None
    body: bytes = request.body.read()
    assert headers.get("CONTENT-LENGTH", "0") == str(len(body))
    intake.close()
    return body


@pytest.mark.parametrize(("data", "body"), COMPLETE.values(), ids=COMPLETE)
def test_a_request_is_ready_with_its_last_byte_wherever_it_is_cut(data: bytes, body: bytes) -> None:
    for cut in range(1, len(data)):
        intake = new_intake()
        intake.feed(data[:cut])
        assert intake.stage in (Stage.HEAD, Stage.BODY)
        intake.feed(data[cut:])
        assert (intake.stage, intake.is_complete, intake.remainder) == (Stage.READY, True, b"")
        assert collected(intake) == body


@given(st.sampled_from(list(COMPLETE.values())), st.lists(st.integers(1, 9), min_size=1))
def test_the_pieces_do_not_matter(request: tuple[bytes, bytes], sizes: list[int]) -> None:
    data, body = request
    intake, position, turn = new_intake(), 0, 0
    while position < len(data):
        assert intake.stage in (Stage.HEAD, Stage.BODY)
        size = min(sizes[turn % len(sizes)], intake.read_size)
        intake.feed(data[position : position + size])
        position, turn = position + size, turn + 1
    assert intake.is_complete
    assert collected(intake) == body


@pytest.mark.parametrize(("data", "body"), COMPLETE.values(), ids=COMPLETE)
def test_what_follows_a_request_is_left_for_the_next(data: bytes, body: bytes) -> None:
    intake = new_intake()
    intake.feed(data + NEXT)
    assert (intake.is_complete, intake.remainder) == (True, NEXT)
    assert collected(intake) == body


TOO_LARGE = {
    "a length": LINE + b"Content-Length: 1001\r\n\r\n",
    "a length of many digits": LINE + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n",
    "chunks": CHUNKED + b"3e8\r\n" + bytes(1000) + b"\r\n1\r\n",
    "a chunk to come": CHUNKED + b"3e9\r\n",
    "a chunk beyond all sizes": CHUNKED + b"f" * 16 + b"\r\n",
}


@pytest.mark.parametrize("data", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_body_beyond_the_limit_is_not_collected_and_shows_its_size(data: bytes) -> None:
    intake = new_intake()
    intake.feed(data)
    assert (intake.stage, intake.is_complete, intake.body_bytes) == (Stage.READY, False, 0)
    request = intake.to_request()
    assert int(dict(request.headers)["CONTENT-LENGTH"]) > 1000
    assert request.body is not None
    assert request.body.read() == b""


REFUSED = {
    "a bare LF": b"GET / HTTP/1.1\n",
    "a bare LF in a header": LINE + b"A: b\nC: d\r\n",
    "a length that is no number": LINE + b"Content-Length: ten\r\n\r\n",
    "a length with a sign": LINE + b"Content-Length: +5\r\n\r\n",
    "a negative length": LINE + b"Content-Length: -5\r\n\r\n",
    "a length in hexadecimal": LINE + b"Content-Length: 0x5\r\n\r\n",
    "a length with an underscore": LINE + b"Content-Length: 1_0\r\n\r\n",
    "a length with a blank in it": LINE + b"Content-Length: 1 0\r\n\r\n",
    "a length of nothing at all": LINE + b"Content-Length:\r\n\r\n",
    "a list of lengths": LINE + b"Content-Length: 5, 5\r\n\r\n",
    "the same length twice": LINE + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "a length of other digits": LINE + b"Content-Length: \xb2\r\n\r\n",
    "a length before a blank": LINE + b"Content-Length : 5\r\n\r\n",
    "a length beyond all numbers": LINE + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "a length and chunks": CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n",
    "chunks twice": CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n",
    "chunks in a list, twice": LINE + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
    "chunks of HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0"),
    "packed chunks": LINE + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunks and more": LINE + b"Transfer-Encoding: chunked, identity\r\n\r\n",
    "a coding of nobody": LINE + b"Transfer-Encoding: xchunked\r\n\r\n",
    "an end without CR": CHUNKED + b"0\n\n",
    "a size that is none": CHUNKED + b"zz",
    "a trailer that is no field": CHUNKED + b"0\r\nnonsense\r\n\r\n",
    "a trailer that changes the framing": CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n",
    "a trailer with a blank in its name": CHUNKED + b"0\r\nA b: c\r\n\r\n",
    "a folded trailer": CHUNKED + b"0\r\nA: b\r\n c\r\n\r\n",
    "two hundred trailers": CHUNKED + b"0\r\n" + b"A: b\r\n" * 200 + b"\r\n",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_is_no_request_is_refused_at_once(data: bytes) -> None:
    intake = new_intake()
    with pytest.raises(ParseException):
        intake.feed(data)
    intake.close()


def test_a_head_has_an_end() -> None:
    intake = new_intake()
    intake.feed(LINE + b"A: " + b"x" * (MAX_HEAD_BYTES - len(LINE) - 3))
    assert intake.stage is Stage.HEAD
    with pytest.raises(LimitRequestHeaders):
        intake.feed(b"x")


@given(st.binary(max_size=200), st.sampled_from([b"", LINE, CHUNKED]))
def test_no_bytes_upset_it(data: bytes, before: bytes) -> None:
    intake = new_intake()
    with contextlib.suppress(ParseException):
        for byte in before + data:
            if intake.stage is not Stage.READY:
                intake.feed(bytes([byte]))
    intake.close()


@pytest.mark.parametrize("size", [10, 1000])
def test_a_body_is_closed_with_its_last_byte(size: int) -> None:
    intake = new_intake()
    intake.feed(LINE + b"Content-Length: %d\r\n\r\n" % size + bytes(size))
    body = intake.to_request().body
    assert body is not None
    assert intake._body is not None
    assert body.read(size - 1) == bytes(size - 1)
    assert body.read() == bytes(1)
    assert intake._body.closed


CLOSING = {
    "nothing": ((), False),
    "close": (("close",), True),
    "other letters": (("Close",), True),
    "a list": (("keep-alive, close",), True),
    "a list with tabs": (("x,\t CLOSE\t,y",), True),
    "two fields": (("keep-alive", "close"), True),
    "another word": (("closed, keep-alive",), False),
    "keep-alive": (("keep-alive",), False),
}


@pytest.mark.parametrize(("values", "closes"), CLOSING.values(), ids=CLOSING)
def test_the_connection_option_close_ends_the_connection(
    values: tuple[str, ...], closes: bool
) -> None:
    intake = new_intake()
    fields = "".join(f"Connection: {value}\r\n" for value in values)
    intake.feed(LINE + fields.encode() + b"\r\n")
    assert intake.request.should_close() is closes


EXPECTING = {
    "a body to come": (LINE, True),
    "HTTP/1.0": (LINE.replace(b"1.1", b"1.0"), False),
    "another header before": (LINE + b"A: b\r\n", True),
}


@pytest.mark.parametrize(("beginning", "expected"), EXPECTING.values(), ids=EXPECTING)
def test_only_a_request_that_expects_it_gets_100_continue(beginning: bytes, expected: bool) -> None:
    intake = new_intake()
    intake.feed(beginning + b"expect: 100-Continue\r\nContent-Length: 5\r\n\r\n")
    assert intake.awaits_continue is expected


@pytest.fixture
def conn() -> Iterator[Connection]:
    caller, sock = socket.socketpair()
    with caller, sock:
        yield Connection(Config(), sock, "", "", 10**9, None, lambda conn, request: True)


def test_the_head_has_one_deadline_however_it_trickles(conn: Connection) -> None:
    deadline = conn.deadline
    assert 14 < deadline - time.monotonic() <= 15
    for byte in LINE:
        conn.feed(bytes([byte]), conn.since + 10)
    assert conn.deadline == deadline


def test_an_idle_connection_has_the_time_for_a_head_from_its_first_byte(conn: Connection) -> None:
    conn.await_next_request(75)
    assert conn.phase is Phase.IDLE
    conn.feed(b"G", 1000.0)
    assert (conn.phase, conn.deadline) == (Phase.SENDING, 1015.0)


def test_a_body_may_be_slow_but_not_silent_and_not_for_ever(conn: Connection) -> None:
    conn.feed(LINE + b"Content-Length: 64000000\r\n\r\n", 1000.0)
    assert conn.deadline == 1030.0
    conn.feed(b"x", 1029.0)
    assert conn.deadline == 1059.0
    conn.feed(b"x", 1058.0)
    assert conn.deadline == pytest.approx(1060.0, abs=0.001)
    conn.feed(b"x" * 8192 * 100, 1059.0)
    assert conn.deadline == 1089.0
    for second in range(1060, 1570, 10):
        conn.feed(b"x" * 8192 * 100, float(second))
    assert conn.deadline == 1590.0
    conn.feed(b"x" * 8192 * 100, 1571.0)
    assert conn.deadline == 1600.0, "ten minutes after its beginning, however large it is"
    conn.close()


def test_a_body_that_is_not_accepted_is_not_waited_for() -> None:
    caller, sock = socket.socketpair()
    with caller, sock:
        conn = Connection(Config(), sock, "", "", 1000, None, lambda conn, request: False)
        conn.feed(LINE + b"Content-Length: 5\r\n\r\nhell", 1000.0)
        assert (conn.buffer.stage, conn.buffer.is_complete) == (Stage.READY, False)
        assert conn.buffer.to_request().body.read() == b""
        conn.await_next_request(1)
        conn.feed(LINE + b"Content-Length: 5\r\n\r\nhello", 1000.0)
        assert conn.buffer.is_complete, "what is there is answered as any other"
        conn.close()


def test_a_thread_is_kept_for_a_new_connection_for_a_moment(conn: Connection) -> None:
    with selectors.DefaultSelector() as poller:
        waiting = PendingConnections(poller, logging.getLogger("test"), lambda conn: None, 10, 1000)
        waiting.add_new(conn)
        assert waiting.count_fresh() == 1
        until = time.monotonic() + 5
        while waiting.count_fresh():
            assert time.monotonic() < until
            time.sleep(waiting.poll_timeout)
        assert len(waiting) == 1
        waiting.drop(conn)


def test_no_thread_is_kept_for_a_connection_that_has_begun_to_send() -> None:
    caller, sock = socket.socketpair()
    with caller, selectors.DefaultSelector() as poller:
        conn = Connection(Config(), sock, "", "", 1000, None, lambda conn, request: True)
        waiting = PendingConnections(poller, logging.getLogger("test"), lambda conn: None, 10, 1000)
        caller.sendall(b"GET")
        waiting.add_new(conn)
        assert (len(waiting), waiting.count_fresh()) == (1, 0)
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
        known = socket_inodes([ours.fileno()])
        assert has_any_open(os.getpid(), known)
    assert not has_any_open(os.getpid(), known)
    assert not has_any_open(2**22 + 1, known)


TURN = """
import os, sys
from opendify.worker.recycling import ExclusiveLock

lock = ExclusiveLock(None)
for _ in range(3):  # what ends lets go
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, b"%d" % lock.acquire())
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
