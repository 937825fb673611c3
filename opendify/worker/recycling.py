"""When a worker that has served ``max_requests`` requests is replaced."""

import fcntl
import logging
import sys
import tempfile


class WorkerRecycler:
    """A worker that reached ``max_requests`` (0: never) keeps serving until it is idle, so that no
    request waits for its successor. One that is never idle stops at twice that number, but only one
    worker at a time: ``lock`` is None where there are no other workers, and then it never does."""

    def __init__(
        self, max_requests: int, lock: "ExclusiveLock | None", log: logging.Logger
    ) -> None:
        self.is_recycling = False
        self._max_requests = max_requests or sys.maxsize
        self._lock = lock
        self._log = log

    def is_due(self, answered: int, is_idle: bool) -> bool:
        """Whether the worker should stop now."""
        if answered < self._max_requests:
            return False
        if not self.is_recycling:
            self.is_recycling = True
            self._log.info("Autorestarting worker when it is idle.")
        return is_idle or self._is_overdue(answered)

    def _is_overdue(self, answered: int) -> bool:
        if answered < 2 * self._max_requests or self._lock is None or not self._lock.acquire():
            return False
        self._log.info("This worker was never idle; it leaves new connections to others.")
        return True


class ExclusiveLock:
    """A lock shared by the processes that are forked after it is made. The process that acquires
    it holds it until it exits, for whatever reason."""

    def __init__(self, temp_dir: str | None) -> None:
        self._file = tempfile.TemporaryFile(dir=temp_dir)  # noqa: SIM115, open until exit

    def acquire(self) -> bool:
        """Whether this process has the lock now; never blocks."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
