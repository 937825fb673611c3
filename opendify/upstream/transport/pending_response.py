"""Sends a request and reads its response as it arrives."""

import select
import time
from collections.abc import Callable, Iterable, Mapping

import httpx

from opendify.upstream.cancellation import Cancellation
from opendify.upstream.transport.connection import Connection, Origin
from opendify.upstream.transport.pool import ConnectionPool
from opendify.upstream.transport.response_reader import ProtocolError, RawHeaders, ResponseReader

# Within this time after the start of a request, the end of a reused connection can mean that the
# peer closed it before the request arrived.
REUSE_RACE_SECONDS = 1.0

# ``poll`` accepts no infinite time.
_MAX_POLL_SECONDS = 3600.0


class PendingResponse:
    """Sends a request. Its response is then read with one ``poll`` over the connection, the
    cancellation's descriptors, and a deadline. Must be closed.

    ``parts`` returns the bytes of the request, each time it is called; ``timeout`` has httpx's
    ``pool``, ``connect`` and ``write``, in seconds.

    If a reused connection ends before the first byte of the response, the request is sent once more
    on a new one: the peer may have closed the idle connection while the request was on its way.
    Only within REUSE_RACE_SECONDS, since a peer that closes later may have processed the request.

    ``has_ended`` is whether the peer has closed the connection.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        origin: Origin,
        method: str,
        parts: Callable[[], Iterable[bytes]],
        timeout: Mapping[str, float | None],
        cancellation: Cancellation,
    ) -> None:
        self._pool = pool
        self._origin = origin
        self._method = method
        self._parts: Callable[[], Iterable[bytes]] | None = parts
        self._timeout = timeout
        self._send(cancellation, must_be_new=False)

    def _send(self, cancellation: Cancellation, must_be_new: bool) -> None:
        """Raises ClientDisconnected, ServerStopping and the errors of httpx."""
        assert self._parts is not None
        parts = iter(self._parts())
        part = next(parts)  # an invalid request raises before a connection is acquired
        connection = self._pool.acquire(self._origin, self._timeout, must_be_new)
        self._connection: Connection | None = connection
        self._reader = ResponseReader(self._method)
        self._failure: ProtocolError | None = None
        self._early_body: list[bytes] = []
        self._is_sent = False
        self.has_ended = False
        self._watch(connection, cancellation)
        self._begun_at = time.monotonic()
        try:
            self._is_sent = self._write(connection, part) and all(
                self._write(connection, part) for part in parts
            )
        except BaseException:
            self.close()
            raise

    def _watch(self, connection: Connection, cancellation: Cancellation) -> None:
        self._cancellation = cancellation
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)
        cancellation.register(self._poll)

    def _write(self, connection: Connection, part: bytes) -> bool:
        """Whether the part was written; else the peer has closed the connection or has already
        responded, and the rest of the request need not be sent."""
        data = memoryview(part)
        while data:
            try:
                sent = connection.send(data, self._timeout.get("write"))
            except TimeoutError as exc:
                raise httpx.WriteTimeout("the request was not taken in time") from exc
            except OSError:
                return False  # a response that the peer sent before is read next
            data = data[sent:]
            if data and not self._wait_to_write(connection):
                return False
        return True

    def _wait_to_write(self, connection: Connection) -> bool:
        """Whether more can be written; it cannot once the response has started."""
        seconds = self._timeout.get("write")
        self._poll.modify(connection.fileno(), select.POLLIN | select.POLLOUT)
        try:
            ready = self._poll.poll(None if seconds is None else seconds * 1000)
            self._cancellation.check(ready)
        finally:
            self._poll.modify(connection.fileno(), select.POLLIN)
        if not ready:
            raise httpx.WriteTimeout("the request was not taken in time")
        if not any(events & ~select.POLLOUT for _, events in ready):
            return True
        return self._read_early(connection)

    def _read_early(self, connection: Connection) -> bool:
        """Reads bytes that arrived before the request was written; returns whether to continue
        writing, that is, whether they contain no response yet."""
        try:
            data = connection.receive()
            if data:
                self._parts = None
                self._early_body.append(self._reader.feed(data))
        except OSError:
            return False
        except ProtocolError as exc:
            self._failure = exc
            return False
        return data != b"" and not self._reader.status

    # --- the response ------------------------------------------------------------------------

    @property
    def status(self) -> int:
        """The status, 0 until the head has arrived."""
        return self._reader.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers with lower-case names; values of the same name are joined with commas."""
        return self._reader.headers

    @property
    def raw_headers(self) -> RawHeaders:
        """The headers, one item per line."""
        return self._reader.raw_headers

    @property
    def is_complete(self) -> bool:
        """Whether the whole body was read."""
        return self._reader.complete and not self._early_body

    @property
    def is_ready(self) -> bool:
        """Whether ``read`` needs no wait although the descriptor may not be readable."""
        connection = self._connection
        return (
            self._reader.complete
            or self._failure is not None
            or bool(self._early_body)
            or (connection is not None and connection.has_buffered)
        )

    def fileno(self) -> int:
        """The descriptor to poll, -1 once closed. It changes when the request is sent again."""
        return -1 if self._connection is None else self._connection.fileno()

    def read(self, until: float, cancellation: Cancellation) -> bytes | None:
        """The next bytes of the body, b"" where bytes arrived that are not part of the body.

        Returns None where nothing arrived by ``until``, a time of ``time.monotonic``, and possibly
        earlier. Raises ClientDisconnected and ServerStopping when cancelled, httpx.ReadError,
        httpx.RemoteProtocolError, and where the request is sent again everything that sending
        raises. What arrived before a failure is returned first.
        """
        connection = self._connection
        if connection is None:
            raise httpx.ReadError("the response was closed")
        if cancellation is not self._cancellation:
            self._watch(connection, cancellation)
        if not self.is_ready:
            seconds = min(max(0.0, until - time.monotonic()), _MAX_POLL_SECONDS)
            ready = self._poll.poll(seconds * 1000)
            cancellation.check(ready)
            if not ready:
                return None
        return self.read_available()

    def read_available(self) -> bytes | None:
        """As ``read``, for a caller that has polled: does not wait, ignores the cancellation."""
        connection = self._connection
        if connection is None:
            raise httpx.ReadError("the response was closed")
        if self._early_body or self._failure is not None or self._reader.complete:
            return self._read_stored()
        try:
            data = connection.receive()
        except OSError as exc:
            return self._end(exc)
        if data is None:
            return None
        return self._feed(data) if data else self._end(None)

    def _read_stored(self) -> bytes:
        """Returns or raises what was received earlier."""
        if self._early_body:
            body, self._early_body = b"".join(self._early_body), []
            return body
        if self._failure is not None:
            raise httpx.RemoteProtocolError(str(self._failure)) from self._failure
        return b""

    def _feed(self, data: bytes) -> bytes:
        self._parts = None  # it will not be sent again: frees its memory
        try:
            return self._reader.feed(data)
        except ProtocolError as exc:
            self._failure = exc
            return exc.body or self._read_stored()

    def _end(self, cause: OSError | None) -> bytes:
        """Handles the end of the connection, with an error or without."""
        if self._send_again():
            return b""
        if cause is not None:
            raise httpx.ReadError(str(cause)) from cause
        self.has_ended = True
        try:
            self._reader.end()
        except ProtocolError as exc:
            self._failure = exc
        return self._read_stored()

    def close(self) -> None:
        """Releases the connection if the response was read to its end, else closes it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._is_sent and self._reader.reusable and self._reader.complete:
            self._pool.release(connection)
        else:
            self._pool.discard(connection)

    def _send_again(self) -> bool:
        connection = self._connection
        if (
            self._parts is None
            or connection is None
            or not connection.is_reused
            or time.monotonic() - self._begun_at > REUSE_RACE_SECONDS
        ):
            return False
        self.close()
        self._send(self._cancellation, must_be_new=True)
        return True
