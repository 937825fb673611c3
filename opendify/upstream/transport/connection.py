"""A connection that is read and written without blocking.

The caller polls its descriptor together with whatever else may end the wait. What TLS holds in
memory does not show on a descriptor, so a connection also says whether it ``has_buffered``.
"""

import math
import ssl
from typing import NamedTuple

import httpcore

READ_BYTES = 64 * 1024

# The socket does not block, so these are "not yet".
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Origin(NamedTuple):
    """What a connection leads to, with or without a proxy between."""

    scheme: str
    host: str
    port: int


class Connection:
    """A connection to ``origin``, plain or over TLS.

    ``is_reused`` says that it has carried a response before; ``expires_at`` is the time of
    ``time.monotonic`` until which it may be used again.
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
        """The descriptor to poll, -1 once it is closed."""
        return int(self._socket.fileno())

    @property
    def has_buffered(self) -> bool:
        """Whether something can be received that no poll shows."""
        return self._tls is not None and self._tls.pending() > 0

    def receive(self) -> bytes | None:
        """The bytes that have arrived: None where there are none yet, or only a part of a TLS
        record, and b"" at the end of the connection. Raises OSError."""
        try:
            data: bytes = self._socket.recv(READ_BYTES)
        except _NOT_YET:
            return None
        return data

    def send(self, data: memoryview, timeout: float | None) -> int:
        """Writes what the connection takes at once; returns how many bytes that was. ``timeout``
        matters only where writing cannot be done without waiting. Raises OSError."""
        try:
            return int(self._socket.send(data))
        except _NOT_YET:
            return 0

    def is_usable(self, now: float) -> bool:
        """Whether an idle connection can carry a request: it has not expired, and the peer has
        neither closed it nor sent anything without a request."""
        try:
            return now < self.expires_at and self.receive() is None
        except OSError:
            return False

    def close(self) -> None:
        """Closes it, at once and for good."""
        self._stream.close()


class NestedTlsConnection(Connection):
    """TLS within TLS, to an origin behind an ``https://`` proxy.

    Python's sockets cannot do this; httpcore's stream can, in memory. Both layers may hold bytes
    that no poll shows, so only an attempt to read tells.
    """

    def __init__(self, origin: Origin, stream: httpcore.NetworkStream) -> None:
        super().__init__(origin, stream)
        self._may_have_buffered = True

    @property
    def has_buffered(self) -> bool:
        """Whether the last attempt to read found something: there may be more."""
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
        """Waits until a block is written. Raises OSError, and TimeoutError among them."""
        block = bytes(data[:READ_BYTES])
        try:
            self._stream.write(block, timeout)
        except httpcore.WriteTimeout as exc:
            raise TimeoutError(str(exc)) from exc
        except httpcore.WriteError as exc:
            raise OSError(str(exc)) from exc
        return len(block)
