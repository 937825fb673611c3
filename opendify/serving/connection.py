"""A caller's connection, with what it has sent ahead of its thread."""

import enum
import io
import socket
import struct
import time
from typing import Any

from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn

from opendify.serving.intake import Intake, Stage

_HEAD_SECONDS = 15.0
# A body must not pause for longer, and after the grace it must have come at this pace on average.
_SILENT_SECONDS = 30.0
_GRACE_SECONDS = 60.0
_BYTES_A_SECOND = 8 * 1024
# These two are kept by the kernel: they bound how long a call may wait, not a whole answer. To a
# caller that reads nothing, the first calls still place some bytes: it is left after about thrice
# the time.
_RECEIVE_TIMEOUT = struct.pack("ll", 30, 0)
_SEND_TIMEOUT = struct.pack("ll", 10, 0)


class Phase(enum.IntEnum):
    """What a connection without a thread is doing; the first are the first to be given up."""

    CLOSING = 0
    IDLE = 1
    SENDING = 2


class Unreader(SocketUnreader):
    """Gives the parser what an Intake has collected, then what the socket has."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._intake: Intake | None = None
        self._rest_bytes = 0

    def give(self, intake: Intake) -> None:
        self.buf = io.BytesIO()
        self.buf.write(intake.beginning)
        self._intake = intake
        if intake.rest is not None:
            self._rest_bytes = intake.rest.seek(0, io.SEEK_END)
            intake.rest.seek(0)

    def take_back(self) -> bytes:
        """What is left: the beginning of the request that follows."""
        left: bytes = self.take_buffered()
        return left + self._read_rest(-1)

    def chunk(self, size_hint: int | None = None) -> bytes:
        size = max(self.mxchunk, min(size_hint or 0, self.max_body_chunk))
        if data := self._read_rest(size):
            return data
        try:
            received: bytes = super().chunk(size_hint)
        except BlockingIOError as exc:
            raise TimeoutError("a caller sent nothing for too long") from exc
        return received

    def _read_rest(self, size: int) -> bytes:
        if self._intake is None or self._intake.rest is None:
            return b""
        data = self._intake.rest.read(size)
        self._rest_bytes -= len(data)
        if not self._rest_bytes:  # an answer may run for long: its request is not kept for it
            self._intake.close()
        return data


class Connection(TConn):
    """``deadline`` and ``since`` are times of ``time.monotonic``; they and ``phase`` are for the
    worker's main loop, while the connection has no thread. ``limit`` and ``folder`` are those of
    an Intake.
    """

    def __init__(
        self,
        cfg: Config,
        sock: socket.socket,
        client: Any,
        server: Any,
        limit: int,
        folder: str | None,
    ) -> None:
        super().__init__(cfg, sock, client, server)
        self.initialized = True  # there is no parser to be made in the thread
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECEIVE_TIMEOUT)
        self.unreader = Unreader(sock)
        self.parser = RequestParser(cfg, sock, client)
        self.parser.unreader = self.unreader
        self.has_continued = False
        self._limit = limit
        self._folder = folder
        self.intake = Intake(limit, folder)
        self._begin(Phase.SENDING, time.monotonic(), _HEAD_SECONDS)

    @property
    def has_request(self) -> bool:
        """Whether a part of a request has come."""
        return self.phase is Phase.SENDING and bool(self.intake.beginning)

    @property
    def is_in_body(self) -> bool:
        return self.phase is Phase.SENDING and self.intake.stage is Stage.BODY

    @property
    def rank(self) -> tuple[Phase, bool, float]:
        """Of two connections, the one with the lower rank is missed less."""
        return (self.phase, self.is_in_body, self.since)

    def take(self, data: bytes, now: float) -> None:
        """Takes what came, and sets the time by when more has to come. Raises OSError."""
        if self.phase is Phase.IDLE:
            self._begin(Phase.SENDING, now, _HEAD_SECONDS)
        was_in_body = self.is_in_body
        self.intake.feed(data)
        if not self.is_in_body:
            return
        if not was_in_body:
            self.since = now
        paced = self.since + _GRACE_SECONDS + self.intake.body_bytes / _BYTES_A_SECOND
        self.deadline = min(now + _SILENT_SECONDS, paced)

    def start(self) -> None:
        """Makes it ready for a thread, which lets all calls block."""
        self.unreader.give(self.intake)

    def await_next(self, seconds: float) -> bytes:
        """Makes it ready for the next request; returns what came of that already."""
        left = self.unreader.take_back()
        self.intake.close()
        self.intake = Intake(self._limit, self._folder)
        self.has_continued = False
        self._begin(Phase.IDLE, time.monotonic(), seconds)
        return left

    def receive(self) -> bytes:
        """What is there to be read. Never waits, though calls of a connection that had a thread
        else do; raises BlockingIOError for nothing, and other OSErrors."""
        received: bytes = self.sock.recv(self.intake.piece, socket.MSG_DONTWAIT)
        return received

    def send(self, data: bytes) -> int:
        """Sends as much as there is place for, and never waits. Raises OSError."""
        return int(self.sock.send(data, socket.MSG_DONTWAIT))

    def begin_to_close(self, now: float, seconds: float) -> None:
        """Says that nothing more is sent, and lets the caller read all that was: to close at once
        while bytes of the caller are unread would take the answer away from it (RFC 9112, 9.6).

        Raises OSError when the connection is no more.
        """
        self._begin(Phase.CLOSING, now, seconds)
        self.sock.shutdown(socket.SHUT_WR)

    def close(self, graceful: bool = False) -> None:
        self.intake.close()
        super().close()

    def _begin(self, phase: Phase, now: float, seconds: float) -> None:
        self.phase = phase
        self.since = now
        self.deadline = now + seconds
