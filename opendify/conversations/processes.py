"""Which of the processes that share the turn locks are alive.

Each holds a lock of its own name from its first turn to its end. The kernel frees it when the
process is killed, and in Redis it ends with its lease.
"""

import secrets
import threading
import time

from opendify.conversations.locks.files import TurnLock, TurnLocks
from opendify.storage.fork import after_fork_in_child


class Processes:
    """This process's own id, and whether that of another is still in use."""

    def __init__(self, locks: TurnLocks) -> None:
        self._locks = locks
        self._lock: TurnLock | None
        self._begin()
        after_fork_in_child(self._begin)

    def own(self) -> str:
        """The id of this process, 16 hexadecimal digits."""
        with self._starting:
            if self._lock is None:
                self._id = secrets.token_hex(8)
                self._lock = self._acquire(self._id)
            return self._id

    def is_alive(self, id_: str) -> bool:
        """Whether the process of this id still runs."""
        if id_ == self._id:
            return True
        lock = self._acquire(id_)
        if lock is not None:
            lock.release()
        return lock is None

    def _acquire(self, id_: str) -> TurnLock | None:
        return self._locks.acquire(f"process {id_}", time.monotonic(), lambda: False)

    def _begin(self) -> None:
        """Also after a fork: a child is a process of its own."""
        self._starting = threading.Lock()
        self._id = ""
        self._lock = None
