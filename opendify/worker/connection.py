"""A caller's connection, with what it has sent ahead of its thread."""

import enum
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from opendify.worker.gunicorn_api import Config, TConn
from opendify.worker.head import RequestHead, parse_head
from opendify.worker.request_buffer import RequestBuffer, Stage

_HEAD_SECONDS = 15.0
# A body must not pause for longer. After the grace it must have come at this pace on average, and
# a large one faster: however large, it has this time.
_SILENT_SECONDS = 30.0
_GRACE_SECONDS = 60.0
_MIN_BYTES_A_SECOND = 8 * 1024
_MAX_BODY_SECONDS = 600.0
# A body that came at the pace from its beginning is rather kept than one that did not.
_START_SECONDS = 2.0
# Kept by the kernel: it bounds how long a call may wait, not a whole answer. To a caller that reads
# nothing, the first calls still place some bytes: it is left after about thrice the time.
_SEND_TIMEOUT = struct.pack("ll", 10, 0)


class Phase(enum.IntEnum):
    """What a connection without a thread is doing; the first are the first to be given up."""

    CLOSING = 0
    IDLE = 1
    SENDING = 2


class Connection(TConn):
    """``deadline`` and ``since`` are times of ``time.monotonic``; they and ``phase`` are for the
    worker's main loop, while the connection has no thread. ``max_body_bytes`` and ``folder`` are
    those of an Intake; ``accepts_body`` says of a request whose body is still to come whether it
    is to be collected.
    """

    def __init__(
        self,
        cfg: Config,
        sock: socket.socket,
        client: Any,
        server: Any,
        max_body_bytes: int,
        folder: str | None,
        accepts_body: Callable[["Connection", RequestHead], bool],
    ) -> None:
        super().__init__(cfg, sock, client, server)
        self.initialized = True  # there is no parser to be made in the thread
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        self._max_body_bytes = max_body_bytes
        self._folder = folder
        self._accepts_body = accepts_body
        self.intake = self._new_intake()
        self._begin(Phase.SENDING, time.monotonic(), _HEAD_SECONDS)

    @property
    def address(self) -> str:
        """The caller's, without the port; "" at a Unix socket."""
        return str(self.client[0]) if isinstance(self.client, tuple) else ""

    @property
    def has_request(self) -> bool:
        """Whether a part of a request has come."""
        return self.phase is Phase.SENDING and self.intake.has_begun

    @property
    def is_in_body(self) -> bool:
        return self.phase is Phase.SENDING and self.intake.stage is Stage.BODY

    def rank(self, now: float) -> tuple[Phase, bool, float]:
        """Of two connections, the one with the lower rank is missed less."""
        return (self.phase, self.is_in_body and self._keeps_pace(now), self.since)

    def _keeps_pace(self, now: float) -> bool:
        due = (now - self.since - _START_SECONDS) * _MIN_BYTES_A_SECOND
        return self.intake.body_bytes >= due

    def body_cost(self, now: float) -> float:
        """How much room an unfinished body has taken, and for how long: in byte seconds."""
        return self.intake.body_bytes * (now - self.since) if self.is_in_body else 0.0

    def take(self, data: bytes, now: float) -> None:
        """Takes what came, and sets the time by when more has to come. Raises OSError, and
        Gunicorn's ParseException for what is no request."""
        if self.phase is Phase.IDLE:
            self._begin(Phase.SENDING, now, _HEAD_SECONDS)
        was_in_body = self.is_in_body
        self.intake.feed(data)
        if self.is_in_body and not was_in_body:
            self.since = now
            if not self._accepts_body(self, self.intake.request):
                self.intake.skip_body()
        if self.is_in_body:
            due = self.intake.body_bytes / _MIN_BYTES_A_SECOND
            paced = self.since + min(_GRACE_SECONDS + due, _MAX_BODY_SECONDS)
            self.deadline = min(now + _SILENT_SECONDS, paced)

    def start(self) -> None:
        """Makes it ready for a thread, which finds its one request where it looks for a parser and
        reads nothing from the socket. Raises OSError."""
        self.parser = iter([self.intake.hand_over()])

    def await_next(self, seconds: float) -> bytes:
        """Makes it ready for the next request; returns what came of that already."""
        left = self.intake.left
        self.intake.close()
        self.parser = None
        self.intake = self._new_intake()
        self._begin(Phase.IDLE, time.monotonic(), seconds)
        return left

    def _new_intake(self) -> RequestBuffer:
        parse = partial(parse_head, self.cfg, self.client)
        return RequestBuffer(parse, self._max_body_bytes, self._folder)

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
        self.intake.close()
        self._begin(Phase.CLOSING, now, seconds)
        self.sock.shutdown(socket.SHUT_WR)

    def close(self, graceful: bool = False) -> None:
        self.intake.close()
        super().close()

    def _begin(self, phase: Phase, now: float, seconds: float) -> None:
        self.phase = phase
        self.since = now
        self.deadline = now + seconds
