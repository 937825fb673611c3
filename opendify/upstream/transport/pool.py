"""The connection pool: limits the number of connections and reuses idle ones."""

import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping

import httpx

from opendify.upstream.transport.connection import Connection, Origin

# An expired connection is closed at most this much later.
SWEEP_SECONDS = 0.05


class ConnectionPool:
    """Connections by origin. ``open_connection`` takes an origin and a timeout in seconds.

    Each operation takes constant time. The most recently used connection is reused first, so that
    surplus ones expire. Connections are not shared across a fork: a child starts with an empty
    pool.
    """

    def __init__(
        self,
        limits: httpx.Limits,
        open_connection: Callable[[Origin, float | None], Connection],
    ) -> None:
        self._max_connections = limits.max_connections
        self._max_idle = limits.max_keepalive_connections
        self._keepalive_expiry = limits.keepalive_expiry
        self._open = open_connection
        self._reset()
        _reset_after_fork(self)

    def _reset(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._count = 0  # in use, being opened, or idle
        self._idle_count = 0
        # For each origin, with the most recently used last.
        self._idle: dict[Origin, OrderedDict[Connection, None]] = {}
        self._sweeper: threading.Thread | None = None
        self._is_closed = False

    def acquire(
        self,
        origin: Origin,
        timeout: Mapping[str, float | None],
        must_be_new: bool = False,
    ) -> Connection:
        """A connection for one request, which must be released or discarded.

        ``timeout`` has httpx's ``pool`` and ``connect``, in seconds. Raises httpx.PoolTimeout, and
        what opening a connection raises.
        """
        seconds = timeout.get("pool")
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            idle = self._reserve(origin, until, must_be_new)
            if idle is None:
                break
            if idle.is_usable(time.monotonic()):
                return idle
            self.discard(idle)
        try:
            return self._open(origin, timeout.get("connect"))
        except BaseException:
            self._decrement()
            raise

    def release(self, connection: Connection) -> None:
        """Returns a connection to the pool that can carry another request."""
        connection.is_reused = True
        if not self._store(connection):
            self.discard(connection)

    def discard(self, connection: Connection) -> None:
        """Closes a connection that was acquired."""
        connection.close()
        self._decrement()

    def close(self) -> None:
        """Closes idle connections now, and those in use when they are released."""
        with self._changed:
            self._is_closed = True
            closing = [one for connections in self._idle.values() for one in connections]
            self._idle.clear()
            self._idle_count = 0
            self._count -= len(closing)
        for connection in closing:
            connection.close()

    @property
    def count(self) -> int:
        """The number of connections, including idle ones."""
        return self._count

    @property
    def idle_count(self) -> int:
        """The number of idle connections."""
        return self._idle_count

    def _reserve(self, origin: Origin, until: float | None, must_be_new: bool) -> Connection | None:
        """An idle connection, or None: then a slot is reserved and the caller opens one."""
        evicted = None
        with self._changed:
            while True:
                if not must_be_new and origin in self._idle:
                    return self._pop_idle(origin, newest=True)
                if self._max_connections is None or self._count < self._max_connections:
                    self._count += 1
                    break
                if self._idle:
                    evicted = self._pop_idle(next(iter(self._idle)), newest=False)
                    break
                seconds = None if until is None else until - time.monotonic()
                if seconds is not None and seconds <= 0:
                    raise httpx.PoolTimeout("no connection became free in time")
                self._changed.wait(seconds)
        if evicted is not None:
            evicted.close()
        return None

    def _pop_idle(self, origin: Origin, newest: bool) -> Connection:
        connections = self._idle[origin]
        connection, _ = connections.popitem(last=newest)
        if not connections:
            del self._idle[origin]
        self._idle_count -= 1
        return connection

    def _store(self, connection: Connection) -> bool:
        expiry = self._keepalive_expiry
        with self._changed:
            is_full = self._max_idle is not None and self._idle_count >= self._max_idle
            if self._is_closed or is_full or (expiry is not None and expiry <= 0):
                return False
            if expiry is not None:
                connection.expires_at = time.monotonic() + expiry
                if not self._start_sweeper():
                    return False
            self._idle.setdefault(connection.origin, OrderedDict())[connection] = None
            self._idle_count += 1
            self._changed.notify()
        return True

    def _decrement(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify()

    def _start_sweeper(self) -> bool:
        """Starts the thread that closes expired connections, also when no further request comes:
        else the peer's own closing would not be acknowledged. It ends when no connection is idle.
        Returns whether it runs."""
        if self._sweeper is not None and self._sweeper.is_alive():
            return True
        self._sweeper = threading.Thread(target=self._sweep, name="idle-connections", daemon=True)
        try:
            self._sweeper.start()
        except RuntimeError:  # the system has no thread left
            self._sweeper = None
            return False
        return True

    def _sweep(self) -> None:
        while True:
            now = time.monotonic()
            with self._changed:
                expired = self._pop_expired(now)
                self._count -= len(expired)
                self._changed.notify(len(expired))
                oldest = [next(iter(connections)) for connections in self._idle.values()]
                if not oldest:
                    self._sweeper = None
            for connection in expired:
                connection.close()
            if not oldest:
                return
            next_at = min(connection.expires_at for connection in oldest)
            time.sleep(max(next_at - now, SWEEP_SECONDS))

    def _pop_expired(self, now: float) -> list[Connection]:
        expired = []
        for origin in list(self._idle):
            while origin in self._idle and next(iter(self._idle[origin])).expires_at <= now:
                expired.append(self._pop_idle(origin, newest=False))
        return expired

    def _after_fork(self) -> None:
        """Closes this process's copies of the idle sockets; the parent's connections stay open."""
        inherited = [one for connections in self._idle.values() for one in connections]
        self._reset()
        for connection in inherited:
            connection.close()


def _reset_after_fork(pool: ConnectionPool) -> None:
    reference = weakref.WeakMethod(pool._after_fork)

    def reset() -> None:
        method = reference()
        if method is not None:
            method()

    os.register_at_fork(after_in_child=reset)
