"""How slowly a caller may read a file, whose sending holds a thread."""

import errno
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

# Measured anew in each window: what fits into the buffers of both systems at first, which is taken
# at once, must not buy a caller minutes. Slow mobile lines have 20 kB/s, and breaks.
WINDOW_SECONDS = 30.0
MIN_BYTES_PER_SECOND = 8 * 1024

# Smaller files may lie in the send buffer whole, and free their thread.
_MAX_BUFFERED_BYTES = 512 * 1024
# Else a socket becomes writable when a third of its send buffer is free, which can be megabytes:
# at a slow pace that would show only after minutes.
_MAX_UNSENT_BYTES = 32 * 1024


class SlowReaderError(BrokenPipeError):
    """A caller does not keep up. For a server it is as if the caller had gone."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "the caller reads too slowly")


def paced(
    pieces: Iterable[bytes],
    await_room: Callable[[float], bool],
    now: Callable[[], float] = time.monotonic,
) -> Iterator[bytes]:
    """The pieces, as long as their reader takes MIN_BYTES_PER_SECOND on average over each window.

    ``await_room`` waits, for so many seconds at most, until the reader has room for a piece, and
    returns whether it has. After a window that was too slow raises ReadsTooSlowly.
    """
    began_at, taken = now(), 0
    for piece in pieces:
        has_room = False
        while not has_room:
            has_room = await_room(max(0.0, began_at + WINDOW_SECONDS - now()))
            seconds = now() - began_at
            if seconds >= WINDOW_SECONDS:
                if taken < seconds * MIN_BYTES_PER_SECOND:
                    raise SlowReaderError
                began_at, taken = now(), 0
        yield piece
        taken += len(piece)


def writable_waiter(sock: Any, length: int) -> Callable[[float], bool]:
    """The ``await_room`` of a connection on which ``length`` bytes are to be sent; None where the
    server does not tell the socket, and there is always room."""
    if sock is None:
        return lambda seconds: True
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # Linux and macOS
    if option is not None and length > _MAX_BUFFERED_BYTES:
        with suppress(OSError):  # a Unix socket has none
            sock.setsockopt(socket.IPPROTO_TCP, option, _MAX_UNSENT_BYTES)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return lambda seconds: bool(poll.poll(seconds * 1000))
