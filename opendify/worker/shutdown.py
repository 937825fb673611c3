"""When a worker that was told to end has to be gone, and how running answers learn of it."""

import contextlib
import math
import os
import time
from collections.abc import Iterable

# Of graceful_timeout: for the application, to end what still runs; for what has to be cut; and for
# the process itself, which is killed when its time has run out.
_ENDING_SECONDS = 5.0
_CUT_SECONDS = 1.5
_LEAVING_SECONDS = 0.5


class DrainSignal:
    """Readable, for ``poll``, from the moment on when running answers have to come to their end;
    it stays so. One for each worker, made after the fork; nobody reads from it.

    The worker puts it into the WSGI environment as ``opendify.ending``.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._has_come = False

    def fileno(self) -> int:
        return self._reader

    def has_come(self) -> bool:
        return self._has_come

    def come(self) -> None:
        if not self._has_come:
            self._has_come = True
            os.write(self._writer, b"\0")


class GracefulShutdown:
    """SIGTERM comes to a worker that others replace (SIGHUP), which may take its time, and to all
    workers of a master that ends and kills them after ``graceful_timeout`` seconds.
    """

    def __init__(self, graceful_timeout: float, master: int, listening: set[int]) -> None:
        self.ends_at = math.inf
        self._told_at = 0.0
        self._times_told = self._times_heard = 0
        self._graceful_timeout = graceful_timeout
        self._master = master
        self._listening = listening

    def tell(self) -> None:
        """SIGTERM came. Safe in a signal handler."""
        self._told_at = time.monotonic()
        self._times_told += 1

    def hasten(self) -> None:
        """The worker ends though nobody told it to: its master is gone, or its code changed."""
        self.ends_at = time.monotonic() + self._graceful_timeout

    def look(self) -> None:
        """Finds out what a SIGTERM meant."""
        times_told = self._times_told  # a signal may come at any line
        if times_told == self._times_heard:
            return
        self._times_heard = times_told
        if not holds_any(self._master, self._listening):
            self.ends_at = min(self.ends_at, self._told_at + self._graceful_timeout)

    @property
    def was_told(self) -> bool:
        return self._times_told > 0

    @property
    def is_over(self) -> bool:
        return self._left <= min(_LEAVING_SECONDS, self._graceful_timeout / 8)

    @property
    def must_end(self) -> bool:
        return self._left <= min(_ENDING_SECONDS, self._graceful_timeout / 2)

    @property
    def must_cut(self) -> bool:
        return self._left <= min(_CUT_SECONDS, self._graceful_timeout * 3 / 8)

    @property
    def _left(self) -> float:
        return self.ends_at - time.monotonic()


def inodes(descriptors: Iterable[int]) -> set[int]:
    """By which sockets are known across processes."""
    return {os.fstat(descriptor).st_ino for descriptor in descriptors}


def holds_any(pid: int, sockets: set[int]) -> bool:
    """Whether a process has any of these sockets open: a master that ends closes its listening
    sockets before it tells its workers. False where that cannot be seen: on systems other than
    Linux, and when the process is another user's.
    """
    folder = f"/proc/{pid}/fd"
    names = {f"socket:[{inode}]" for inode in sockets}
    try:
        descriptors = os.listdir(folder)
    except OSError:
        return False
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if os.readlink(f"{folder}/{descriptor}") in names:
                return True
    return False
