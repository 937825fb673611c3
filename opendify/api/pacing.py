"""The minimum speed at which a client must read a file, since sending it occupies a thread."""

import errno
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

# Measured separately in each window: the bytes that the socket buffers take at once at the start
# must not allow minutes of slow reading. Slow mobile connections have 20 kB/s, with breaks.
WINDOW_SECONDS = 30.0
MIN_BYTES_PER_SECOND = 8 * 1024

# Smaller files may be buffered completely, which frees their thread.
_MAX_BUFFERED_BYTES = 512 * 1024
# By default a socket becomes writable when a third of its send buffer is free, which can be
# megabytes: with a slow reader, that would take minutes.
_MAX_UNSENT_BYTES = 32 * 1024


class SlowReaderError(BrokenPipeError):
    """The client reads too slowly. The server treats it like a disconnect."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "the caller reads too slowly")


def paced(
    chunks: Iterable[bytes],
    wait_writable: Callable[[float], bool],
    now: Callable[[], float] = time.monotonic,
) -> Iterator[bytes]:
    """Yields the chunks as long as the client reads at least MIN_BYTES_PER_SECOND on average in
    each window.

    ``wait_writable`` waits up to the given number of seconds until the client can take a chunk, and
    returns whether it can. Raises SlowReaderError after a window that was too slow.
    """
    started_at, sent = now(), 0
    for chunk in chunks:
        is_writable = False
        while not is_writable:
            is_writable = wait_writable(max(0.0, started_at + WINDOW_SECONDS - now()))
            seconds = now() - started_at
            if seconds >= WINDOW_SECONDS:
                if sent < seconds * MIN_BYTES_PER_SECOND:
                    raise SlowReaderError
                started_at, sent = now(), 0
        yield chunk
        sent += len(chunk)


def writable_waiter(sock: Any, length: int) -> Callable[[float], bool]:
    """The ``wait_writable`` of a socket on which ``length`` bytes are to be sent. Without a socket
    (the server does not expose it) it always returns True."""
    if sock is None:
        return lambda seconds: True
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # Linux and macOS
    if option is not None and length > _MAX_BUFFERED_BYTES:
        with suppress(OSError):  # a Unix socket has none
            sock.setsockopt(socket.IPPROTO_TCP, option, _MAX_UNSENT_BYTES)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return lambda seconds: bool(poll.poll(seconds * 1000))
