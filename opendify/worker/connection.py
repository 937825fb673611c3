"""A client's connection, and the request that it is sending."""

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

HEAD_TIMEOUT = 15.0
# A body must not pause for longer than the idle timeout. After the grace period it must have
# arrived at the minimum rate on average, and however large it is, within the last of these.
_BODY_IDLE_TIMEOUT = 30.0
_BODY_GRACE_SECONDS = 60.0
_MIN_BYTES_PER_SECOND = 8 * 1024
_MAX_BODY_TIMEOUT = 600.0
# When connections have to be evicted, a body that has arrived at the minimum rate from this time on
# is kept rather than one that has not.
_PACE_GRACE_SECONDS = 2.0
# SO_SNDTIMEO limits one blocking send, not a whole response. The first sends to a client that reads
# nothing still succeed in part, so it is disconnected after about three times this time.
_SEND_TIMEOUT = struct.pack("ll", 10, 0)


class Phase(enum.IntEnum):
    """What a connection without a thread is doing, in the order of eviction."""

    CLOSING = 0
    IDLE = 1
    SENDING = 2


class Connection(TConn):
    """``phase``, ``since`` (its start) and ``deadline`` are for the main loop, while the connection
    has no thread; both times are of ``time.monotonic``. ``max_body_bytes`` and ``temp_dir`` are
    those of a RequestBuffer; ``accepts_body`` tells for a request whose body has not arrived
    whether to receive it. ``head_timeout`` is how many seconds a head may take.
    """

    def __init__(
        self,
        cfg: Config,
        sock: socket.socket,
        client: Any,
        server: Any,
        max_body_bytes: int,
        temp_dir: str | None,
        accepts_body: Callable[["Connection", RequestHead], bool],
        head_timeout: float = HEAD_TIMEOUT,
    ) -> None:
        super().__init__(cfg, sock, client, server)
        self.initialized = True  # the thread must not make a parser
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        self._max_body_bytes = max_body_bytes
        self._temp_dir = temp_dir
        self._accepts_body = accepts_body
        self._head_timeout = head_timeout
        self.buffer = self._new_buffer()
        self._enter(Phase.SENDING, time.monotonic(), head_timeout)

    @property
    def client_ip(self) -> str:
        """The client's address without the port; "" at a Unix socket."""
        return str(self.client[0]) if isinstance(self.client, tuple) else ""

    @property
    def has_partial_request(self) -> bool:
        return self.phase is Phase.SENDING and self.buffer.has_started

    @property
    def is_receiving_body(self) -> bool:
        return self.phase is Phase.SENDING and self.buffer.stage is Stage.BODY

    def eviction_key(self, now: float) -> tuple[Phase, bool, float]:
        """Of two connections, the one with the lower key is evicted first."""
        return (self.phase, self.is_receiving_body and self._is_on_pace(now), self.since)

    def _is_on_pace(self, now: float) -> bool:
        due = (now - self.since - _PACE_GRACE_SECONDS) * _MIN_BYTES_PER_SECOND
        return self.buffer.body_bytes >= due

    def body_cost(self, now: float) -> float:
        """How much memory or disk an incomplete body has taken for how long, in byte seconds."""
        return self.buffer.body_bytes * (now - self.since) if self.is_receiving_body else 0.0

    def feed(self, data: bytes, now: float) -> None:
        """Buffers received data, and updates the deadline for more. Raises OSError, and Gunicorn's
        ParseException for what is no valid request."""
        if self.phase is Phase.IDLE:
            self._enter(Phase.SENDING, now, self._head_timeout)
        was_receiving_body = self.is_receiving_body
        self.buffer.feed(data)
        if self.is_receiving_body and not was_receiving_body:
            self.since = now
            if not self._accepts_body(self, self.buffer.request):
                self.buffer.skip_body()
        if self.is_receiving_body:
            seconds = self.buffer.body_bytes / _MIN_BYTES_PER_SECOND
            paced = self.since + min(_BODY_GRACE_SECONDS + seconds, _MAX_BODY_TIMEOUT)
            self.deadline = min(now + _BODY_IDLE_TIMEOUT, paced)

    def prepare_for_thread(self) -> None:
        """Puts the request where Gunicorn's worker takes it from a parser, so that the thread reads
        nothing from the socket. Raises OSError."""
        self.parser = iter([self.buffer.to_request()])

    def await_next_request(self, seconds: float) -> bytes:
        """Starts the idle phase; returns what was already received of the next request."""
        received = self.buffer.remainder
        self.buffer.close()
        self.parser = None
        self.buffer = self._new_buffer()
        self._enter(Phase.IDLE, time.monotonic(), seconds)
        return received

    def _new_buffer(self) -> RequestBuffer:
        parse = partial(parse_head, self.cfg, self.client)
        return RequestBuffer(parse, self._max_body_bytes, self._temp_dir)

    def receive(self) -> bytes:
        """Reads without blocking, even where the socket is blocking because a thread had it. Raises
        BlockingIOError when there is nothing to read, and other OSErrors."""
        received: bytes = self.sock.recv(self.buffer.read_size, socket.MSG_DONTWAIT)
        return received

    def send(self, data: bytes) -> int:
        """Sends what the socket accepts, without blocking; returns how much. Raises OSError."""
        return int(self.sock.send(data, socket.MSG_DONTWAIT))

    def start_closing(self, now: float, seconds: float) -> None:
        """Closes the sending side, and gives the client time to read the response: closing the
        socket while data from the client is unread would reset the connection, and the client could
        lose the response (RFC 9112, section 9.6).

        Raises OSError when the connection is already gone.
        """
        self.buffer.close()
        self._enter(Phase.CLOSING, now, seconds)
        self.sock.shutdown(socket.SHUT_WR)

    def close(self, graceful: bool = False) -> None:
        self.buffer.close()
        super().close()

    def _enter(self, phase: Phase, now: float, seconds: float) -> None:
        self.phase = phase
        self.since = now
        self.deadline = now + seconds
