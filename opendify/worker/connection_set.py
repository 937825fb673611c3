"""The connections of a worker that have no thread: they send, are idle, or are being closed.

Nothing here blocks. All of it is called from the main loop.
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
from opendify.worker.request_log import log_refusal

# A request that is on its way with its connection is here within this time; until then a thread
# is kept for it. A caller that sends later may have to wait for one. Each that does not send at
# once halves the time for those that follow, down to the least; each that does restores it.
_FRESH_SECONDS = 0.1
_LEAST_FRESH_SECONDS = 0.005
_SWEEP_SECONDS = 0.25
_CLOSING_SECONDS = 2.0
_TOLD_SECONDS = 60.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class PendingConnections:
    """``start`` gets each connection whose request can be given to a thread. ``most`` is how many
    connections are kept, ``max_body_bytes`` how much of their bodies: room for two of the largest
    at least."""

    def __init__(
        self,
        poller: selectors.BaseSelector,
        log: logging.Logger,
        start: Callable[[Connection], None],
        most: int,
        max_body_bytes: int,
    ) -> None:
        self._poller = poller
        self._log = log
        self._start = start
        self._most = most
        self._max_body_bytes = max_body_bytes
        self._connections: dict[Connection, None] = {}
        self._body_bytes = 0  # of all of them; to add them up at each piece would take too long
        self._fresh: dict[Connection, float] = {}
        self._fresh_seconds = _FRESH_SECONDS
        self._swept_at = self._told_at = 0.0
        self._given_up = 0

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._connections))

    @property
    def patience(self) -> float:
        """How long the main loop may sleep."""
        if self._fresh:
            return self._fresh_seconds
        return _SWEEP_SECONDS if self._connections else 1.0

    def fresh(self) -> int:
        """How many connections may send their request at any moment now."""
        if not self._fresh:
            return 0
        now = time.monotonic()
        for conn, until in list(self._fresh.items()):
            if until > now:
                break
            del self._fresh[conn]
            self._fresh_seconds = max(self._fresh_seconds / 2, _LEAST_FRESH_SECONDS)
        return len(self._fresh)

    def welcome(self, conn: Connection) -> None:
        """Takes a new connection. Its request mostly is there already, and then it never waits."""
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
            self._take(conn, data)
        else:
            conn.close()

    def keep(self, conn: Connection, left: bytes) -> None:
        """Takes a connection that awaits its next request, of which ``left`` came already."""
        if left:
            self._take(conn, left)
        else:
            self._add(conn)

    def close(self, conn: Connection) -> None:
        """Ends a connection after its answer, so that the caller can read all of it."""
        self._leave(conn)
        try:
            conn.begin_to_close(time.monotonic(), _CLOSING_SECONDS)
        except OSError:
            conn.close()
            return
        self._add(conn)

    def drop(self, conn: Connection) -> None:
        self._leave(conn)
        conn.close()

    def give_up_one(self) -> None:
        """Ends the connection that is missed least: what honest callers send is here at once."""
        if self._connections:
            self._given_up += 1
            now = time.monotonic()
            self.drop(min(self._connections, key=lambda conn: conn.rank(now)))

    def hasten(self, until: float) -> None:
        """Ends connections that carry no request at that time of ``time.monotonic``."""
        for conn in self._connections:
            if not conn.has_request:
                conn.deadline = min(conn.deadline, until)

    def sweep(self) -> None:
        """Ends what is too slow."""
        now = time.monotonic()
        if now < self._swept_at + _SWEEP_SECONDS:
            return
        self._swept_at = now
        for conn in self:
            if conn.deadline > now:
                continue
            if conn.has_request:
                self._given_up += 1
                self._refuse(conn, 408)
            else:
                self.drop(conn)
        if self._given_up and now >= self._told_at + _TOLD_SECONDS:
            self._told_at = now
            self._log.warning("Connections given up, too slow or too many: %d", self._given_up)
            self._given_up = 0

    def _add(self, conn: Connection) -> None:
        if len(self._connections) >= self._most:
            self.give_up_one()
        self._connections[conn] = None
        self._body_bytes += conn.intake.body_bytes
        on_readable = partial(self._on_readable, conn)
        self._poller.register(conn.sock, selectors.EVENT_READ, on_readable)

    def _leave(self, conn: Connection) -> None:
        self._fresh.pop(conn, None)
        if conn in self._connections:
            del self._connections[conn]
            self._body_bytes -= conn.intake.body_bytes
            self._poller.unregister(conn.sock)

    def _on_readable(self, conn: Connection, _sock: socket.socket) -> None:
        if conn not in self._connections:  # ended since the poll
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
            self._take(conn, data)
        elif not data and conn.is_in_body:
            self._refuse(conn, 400)
        elif not data:
            self.drop(conn)

    def _take(self, conn: Connection, data: bytes) -> None:
        try:
            self._feed(conn, data)
        except ParseException as exc:
            self._refuse(conn, error_responses.status_of(exc), type(exc).__name__)
        except OSError:
            self._log.exception("There is no place for the body of a request")
            self._refuse(conn, 503)
        except Exception:  # noqa: BLE001 the loop has others to look after
            self._log.exception("A request could not be read")
            self._refuse(conn, 500)
        else:
            self._judge(conn)

    def _feed(self, conn: Connection, data: bytes) -> None:
        known = conn.intake.body_bytes
        try:
            conn.take(data, time.monotonic())
        finally:
            if conn in self._connections:
                self._body_bytes += conn.intake.body_bytes - known

    def _judge(self, conn: Connection) -> None:
        if conn.intake.stage is Stage.READY:
            self._leave(conn)
            self._start(conn)
            return
        if conn not in self._connections:
            self._add(conn)
        while self._body_bytes > self._max_body_bytes:
            self._given_up += 1
            self._refuse(self._costliest(), 503)
        if conn.is_in_body and conn.intake.awaits_continue:
            conn.intake.awaits_continue = False
            with contextlib.suppress(OSError):
                conn.send(_CONTINUE)

    def _costliest(self) -> Connection:
        """The unfinished body to give up when there is no room: of the address whose bodies have
        taken the most room for the longest time, the one that has.

        So somebody who holds bodies back loses them to those who send theirs, and to one address
        with many of them nobody else loses his. No address has a fixed share: behind a reverse
        proxy all callers have the same, and what fits is never refused.
        """
        now = time.monotonic()
        held = [conn for conn in self._connections if conn.intake.body_bytes]
        costs = {conn: conn.body_cost(now) for conn in held}
        by_address: defaultdict[str, float] = defaultdict(float)
        for conn, cost in costs.items():
            by_address[conn.address] += cost
        address = max(by_address, key=by_address.__getitem__)
        return max((conn for conn in costs if conn.address == address), key=costs.__getitem__)

    def _refuse(self, conn: Connection, status: int, reason: str = "") -> None:
        request_id = uuid.uuid4().hex
        log_refusal(status, request_id, conn.client, reason=reason)
        with contextlib.suppress(OSError):
            conn.send(error_responses.page(status, request_id))
        self.close(conn)
