"""The connections of a worker that have no thread: those that send a request, are idle, or are
being closed.

Everything here runs in the main loop, and nothing blocks.
"""

import contextlib
import logging
import selectors
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial

from opendify.worker import error_responses
from opendify.worker.connection import Connection, Phase
from opendify.worker.gunicorn_api import ParseException
from opendify.worker.request_buffer import Stage
from opendify.worker.request_log import log_rejected

# The request of a new connection mostly arrives within this time; until then a thread is reserved
# for it. Each connection that stays silent for longer halves the time for those that follow, down
# to the minimum; each that sends at once restores it.
_FRESH_SECONDS = 0.1
_MIN_FRESH_SECONDS = 0.005
_SWEEP_SECONDS = 0.25
_CLOSING_SECONDS = 2.0
_WARNING_INTERVAL = 60.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class PendingConnections:
    """``start`` gets each connection whose request is ready for a thread. Beyond
    ``max_connections`` connections, or ``max_body_bytes`` of their bodies (at least twice the
    largest body), some are evicted."""

    def __init__(
        self,
        poller: selectors.BaseSelector,
        log: logging.Logger,
        start: Callable[[Connection], None],
        max_connections: int,
        max_body_bytes: int,
    ) -> None:
        self._poller = poller
        self._log = log
        self._start = start
        self._max_connections = max_connections
        self._max_body_bytes = max_body_bytes
        self._connections: dict[Connection, None] = {}
        self._body_bytes = 0  # of all connections; summing them up at each read would take too long
        self._fresh: dict[Connection, float] = {}
        self._fresh_seconds = _FRESH_SECONDS
        self._swept_at = self._warned_at = 0.0
        self._evicted = 0

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._connections))

    @property
    def poll_timeout(self) -> float:
        """How long the main loop may wait for events, in seconds."""
        if self._fresh:
            return self._fresh_seconds
        return _SWEEP_SECONDS if self._connections else 1.0

    def count_fresh(self) -> int:
        """The number of new connections whose request is expected at any moment."""
        if not self._fresh:
            return 0
        now = time.monotonic()
        for conn, until in list(self._fresh.items()):
            if until > now:
                break
            del self._fresh[conn]
            self._fresh_seconds = max(self._fresh_seconds / 2, _MIN_FRESH_SECONDS)
        return len(self._fresh)

    def add_new(self, conn: Connection) -> None:
        """Adds a new connection. Mostly its request has arrived already and starts at once."""
        try:
            data = conn.receive()
        except BlockingIOError:
            self._fresh[conn] = time.monotonic() + self._fresh_seconds
            self._add(conn)
            return
        except OSError:
            data = b""
        if data:
            self._fresh_seconds = _FRESH_SECONDS
            self._process(conn, data)
        else:
            conn.close()

    def add_idle(self, conn: Connection, received: bytes) -> None:
        """Adds a connection that awaits its next request, and what was received of that."""
        if received:
            self._process(conn, received)
        else:
            self._add(conn)

    def close(self, conn: Connection) -> None:
        """Closes a connection after its response, so that the client can read all of it."""
        self._remove(conn)
        try:
            conn.start_closing(time.monotonic(), _CLOSING_SECONDS)
        except OSError:
            conn.close()
            return
        self._add(conn)

    def drop(self, conn: Connection) -> None:
        self._remove(conn)
        conn.close()

    def evict_one(self) -> None:
        """Drops the connection with the lowest eviction key."""
        if self._connections:
            self._evicted += 1
            now = time.monotonic()
            self.drop(min(self._connections, key=lambda conn: conn.eviction_key(now)))

    def expire_idle_by(self, until: float) -> None:
        """Makes connections without a partial request expire by this time of
        ``time.monotonic``."""
        for conn in self._connections:
            if not conn.has_partial_request:
                conn.deadline = min(conn.deadline, until)

    def close_expired(self) -> None:
        """Closes connections whose deadline has passed."""
        now = time.monotonic()
        if now < self._swept_at + _SWEEP_SECONDS:
            return
        self._swept_at = now
        for conn in self:
            if conn.deadline > now:
                continue
            if conn.has_partial_request:
                self._evicted += 1
                self._reject(conn, 408)
            else:
                self.drop(conn)
        if self._evicted and now >= self._warned_at + _WARNING_INTERVAL:
            self._warned_at = now
            self._log.warning(
                "Connections closed because they were too slow or too many: %d", self._evicted
            )
            self._evicted = 0

    def _add(self, conn: Connection) -> None:
        if len(self._connections) >= self._max_connections:
            self.evict_one()
        self._connections[conn] = None
        self._body_bytes += conn.buffer.body_bytes
        on_readable = partial(self._on_readable, conn)
        self._poller.register(conn.sock, selectors.EVENT_READ, on_readable)

    def _remove(self, conn: Connection) -> None:
        self._fresh.pop(conn, None)
        if conn in self._connections:
            del self._connections[conn]
            self._body_bytes -= conn.buffer.body_bytes
            self._poller.unregister(conn.sock)

    def _on_readable(self, conn: Connection, _sock: socket.socket) -> None:
        if conn not in self._connections:  # closed since the poll
            return
        try:
            data = conn.receive()
        except BlockingIOError:
            return
        except OSError:
            self.drop(conn)
            return
        if self._fresh.pop(conn, None) and data:
            self._fresh_seconds = _FRESH_SECONDS
        if data and conn.phase is not Phase.CLOSING:
            self._process(conn, data)
        elif not data and conn.is_receiving_body:
            self._reject(conn, 400)
        elif not data:
            self.drop(conn)

    def _process(self, conn: Connection, data: bytes) -> None:
        try:
            self._feed(conn, data)
        except ParseException as exc:
            self._reject(conn, error_responses.status_of(exc), type(exc).__name__)
        except OSError:
            self._log.exception("The body of a request cannot be stored")
            self._reject(conn, 503)
        except Exception:  # noqa: BLE001 the main loop must go on
            self._log.exception("A request could not be read")
            self._reject(conn, 500)
        else:
            self._advance(conn)

    def _feed(self, conn: Connection, data: bytes) -> None:
        known = conn.buffer.body_bytes
        try:
            conn.feed(data, time.monotonic())
        finally:
            if conn in self._connections:
                self._body_bytes += conn.buffer.body_bytes - known

    def _advance(self, conn: Connection) -> None:
        if conn.buffer.stage is Stage.READY:
            self._remove(conn)
            self._start(conn)
            return
        if conn not in self._connections:
            self._add(conn)
        while self._body_bytes > self._max_body_bytes:
            self._evicted += 1
            self._reject(self._costliest_body(), 503)
        if conn.is_receiving_body and conn.buffer.awaits_continue:
            conn.buffer.awaits_continue = False
            with contextlib.suppress(OSError):
                conn.send(_CONTINUE)

    def _costliest_body(self) -> Connection:
        """The incomplete body to evict when they take too much: the one with the highest cost, of
        the client address with the highest sum of costs.

        So clients that delay their bodies lose them first, and an address with many bodies takes
        none away from others. There is no fixed share per address: behind a reverse proxy all
        clients have the same one, and nothing is rejected while there is room.
        """
        now = time.monotonic()
        storing = [conn for conn in self._connections if conn.buffer.body_bytes]
        costs = {conn: conn.body_cost(now) for conn in storing}
        by_address: defaultdict[str, float] = defaultdict(float)
        for conn, cost in costs.items():
            by_address[conn.client_ip] += cost
        address = max(by_address, key=by_address.__getitem__)
        return max((conn for conn in costs if conn.client_ip == address), key=costs.__getitem__)

    def _reject(self, conn: Connection, status: int, reason: str = "") -> None:
        request_id = uuid.uuid4().hex
        log_rejected(status, request_id, conn.client, reason=reason)
        with contextlib.suppress(OSError):
            conn.send(error_responses.render(status, request_id))
        self.close(conn)
