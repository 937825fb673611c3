"""A connection that is read and written without blocking.

The caller polls its descriptor together with others that may end the wait. Bytes in TLS buffers do
not make the descriptor readable; ``has_buffered`` reports those.
"""

import math
import ssl
from typing import NamedTuple

import httpcore

READ_BYTES = 64 * 1024

# On a non-blocking socket, these mean "try again later".
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Origin(NamedTuple):
    """The server that a connection leads to, directly or through a proxy."""

    scheme: str
    host: str
    port: int


class Connection:
    """A connection to ``origin``, plain or over TLS.

    ``is_reused`` is true once it has carried a response; ``expires_at`` is the time of
    ``time.monotonic`` until which it may be reused.
    """

    def __init__(self, origin: Origin, stream: httpcore.NetworkStream) -> None:
        self.origin = origin
        self.is_reused = False
        self.expires_at = math.inf
        self._stream = stream
        self._socket = stream.get_extra_info("socket")
        self._socket.setblocking(False)
        self._tls = self._socket if isinstance(self._socket, ssl.SSLSocket) else None

    def fileno(self) -> int:
        """The descriptor to poll, -1 once closed."""
        return int(self._socket.fileno())

    @property
    def has_buffered(self) -> bool:
        """Whether bytes can be received although the descriptor is not readable."""
        return self._tls is not None and self._tls.pending() > 0

    def receive(self) -> bytes | None:
        """The bytes that have arrived; None where there are none yet or only a part of a TLS
        record, b"" at the end of the connection. Raises OSError."""
        try:
            data: bytes = self._socket.recv(READ_BYTES)
        except _NOT_YET:
            return None
        return data

    def send(self, data: memoryview, timeout: float | None) -> int:
        """Writes what fits into the send buffer; returns the number of bytes. ``timeout`` is used
        only where writing has to block. Raises OSError."""
        try:
            return int(self._socket.send(data))
        except _NOT_YET:
            return 0

    def is_usable(self, now: float) -> bool:
        """Whether an idle connection can carry a request: it has not expired, and the peer has
        neither closed it nor sent anything unrequested."""
        try:
            return now < self.expires_at and self.receive() is None
        except OSError:
            return False

    def close(self) -> None:
        """Closes the connection."""
        self._stream.close()


class NestedTlsConnection(Connection):
    """TLS within TLS, to an origin behind an ``https://`` proxy.

    Python's sockets cannot do this; httpcore's stream can, in memory. Both layers may buffer bytes
    that polling does not show, so only an attempt to read tells.
    """

    def __init__(self, origin: Origin, stream: httpcore.NetworkStream) -> None:
        super().__init__(origin, stream)
        self._may_have_buffered = True

    @property
    def has_buffered(self) -> bool:
        """Whether the last read returned bytes, so that there may be more."""
        return self._may_have_buffered

    def receive(self) -> bytes | None:
        """See Connection."""
        self._may_have_buffered = False
        try:
            data = self._stream.read(READ_BYTES, timeout=0)
        except httpcore.ReadError as exc:
            cause = exc.__cause__
            if isinstance(cause, _NOT_YET):
                return None
            raise (cause if isinstance(cause, OSError) else OSError(str(exc))) from exc
        self._may_have_buffered = True
        return data

    def send(self, data: memoryview, timeout: float | None) -> int:
        """Blocks until up to READ_BYTES are written. Raises OSError, including TimeoutError."""
        block = bytes(data[:READ_BYTES])
        try:
            self._stream.write(block, timeout)
        except httpcore.WriteTimeout as exc:
            raise TimeoutError(str(exc)) from exc
        except httpcore.WriteError as exc:
            raise OSError(str(exc)) from exc
        return len(block)
