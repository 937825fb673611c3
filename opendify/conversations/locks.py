"""Locks between processes, which the kernel frees when their holder dies."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FIRST_PAUSE, _LONGEST_PAUSE = 0.0001, 0.002


class FileLock:
    """A lock on a file that is never replaced.

    The file is opened anew each time. So threads exclude each other too, a process that forks
    shares nothing with its child, and it does no harm when somebody deletes the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def held(self, patience: float) -> Iterator[None]:
        """Hold the lock; raises TimeoutError when it is not free within so many seconds.

        Asked for again and again instead of waited for: the holder may be a paused container.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _acquire(descriptor, patience, self._path)
            try:
                yield
            finally:
                # Closing is not enough if the process forked meanwhile: the child's copy of the
                # descriptor would go on holding the lock.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)


def _acquire(descriptor: int, patience: float, path: Path) -> None:
    pause = _FIRST_PAUSE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if patience <= 0:
                raise TimeoutError(f"{path} is held by another process") from None
        time.sleep(pause)
        patience -= pause
        pause = min(pause * 2, _LONGEST_PAUSE)
