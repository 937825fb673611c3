"""When a worker that has answered enough requests makes place for a fresh one."""

import fcntl
import logging
import sys
import tempfile


class WorkerRecycler:
    """A worker that reached ``max_requests`` (0 is never) goes on until it has nothing to do, so
    that nobody waits for its successor. One that is never idle goes at twice that number, and only
    while all others stay: ``turn`` is None where there are no others."""

    def __init__(
        self, max_requests: int, turn: "ExclusiveLock | None", log: logging.Logger
    ) -> None:
        self.has_begun = False
        self._max_requests = max_requests or sys.maxsize
        self._turn = turn
        self._log = log

    def is_due(self, answered: int, is_idle: bool) -> bool:
        """Whether the worker should leave now."""
        if answered < self._max_requests:
            return False
        if not self.has_begun:
            self.has_begun = True
            self._log.info("Autorestarting worker when it is idle.")
        return is_idle or self._is_overdue(answered)

    def _is_overdue(self, answered: int) -> bool:
        if answered < 2 * self._max_requests or self._turn is None or not self._turn.take():
            return False
        self._log.info("This worker was never idle; it leaves new connections to others.")
        return True


class ExclusiveLock:
    """A lock among the processes that are forked after it is made. Who takes it keeps it to its
    own end, of whatever kind."""

    def __init__(self, folder: str | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, open to the end

    def take(self) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
