"""The deadline of a worker that stops, and the signal by which running responses learn of it."""

import contextlib
import math
import os
import time
from collections.abc import Iterable

# Seconds before the end of graceful_timeout at which the application is told to end its responses,
# at which remaining connections are cut, and at which the worker exits: when the time has run out,
# the master kills it.
_DRAIN_SECONDS = 5.0
_DISCONNECT_SECONDS = 1.5
_EXIT_SECONDS = 0.5


class DrainSignal:
    """A descriptor that becomes readable, for ``poll``, when running responses have to end, and
    stays so. One per worker, made after the fork; nothing reads from it.

    The worker puts it into the WSGI environment as ``opendify.ending``.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._is_set = False

    def fileno(self) -> int:
        return self._reader

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            os.write(self._writer, b"\0")


class GracefulShutdown:
    """Tells the two meanings of SIGTERM apart: a worker that is replaced (SIGHUP) has no time
    limit; when the master itself stops, it kills its workers after ``graceful_timeout`` seconds.

    ``master`` is the process ID of the master, ``listening`` the inodes of its listening sockets.
    """

    def __init__(self, graceful_timeout: float, master: int, listening: set[int]) -> None:
        self.deadline = math.inf
        self._signalled_at = 0.0
        self._signals = self._handled_signals = 0
        self._graceful_timeout = graceful_timeout
        self._master = master
        self._listening = listening

    def on_sigterm(self) -> None:
        """Records a SIGTERM. Safe in a signal handler."""
        self._signalled_at = time.monotonic()
        self._signals += 1

    def start_deadline(self) -> None:
        """For a worker that stops without a signal: its master is gone, or its code changed."""
        self.deadline = time.monotonic() + self._graceful_timeout

    def handle_signals(self) -> None:
        """Finds out what the last SIGTERM meant."""
        signals = self._signals  # a signal may arrive at any line
        if signals == self._handled_signals:
            return
        self._handled_signals = signals
        if not has_any_open(self._master, self._listening):
            self.deadline = min(self.deadline, self._signalled_at + self._graceful_timeout)

    @property
    def was_signalled(self) -> bool:
        return self._signals > 0

    @property
    def must_exit(self) -> bool:
        return self._remaining <= min(_EXIT_SECONDS, self._graceful_timeout / 8)

    @property
    def must_drain(self) -> bool:
        return self._remaining <= min(_DRAIN_SECONDS, self._graceful_timeout / 2)

    @property
    def must_disconnect(self) -> bool:
        return self._remaining <= min(_DISCONNECT_SECONDS, self._graceful_timeout * 3 / 8)

    @property
    def _remaining(self) -> float:
        return self.deadline - time.monotonic()


def socket_inodes(descriptors: Iterable[int]) -> set[int]:
    """The inodes by which sockets are identified across processes."""
    return {os.fstat(descriptor).st_ino for descriptor in descriptors}


def has_any_open(pid: int, inodes: set[int]) -> bool:
    """Whether a process has any of these sockets open: a master that stops closes its listening
    sockets before it signals its workers. False where that cannot be seen: on systems other than
    Linux, and when the process belongs to another user.
    """
    directory = f"/proc/{pid}/fd"
    names = {f"socket:[{inode}]" for inode in inodes}
    try:
        descriptors = os.listdir(directory)
    except OSError:
        return False
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if os.readlink(f"{directory}/{descriptor}") in names:
                return True
    return False
