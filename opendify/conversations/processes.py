"""Which of the processes that share the locks are alive.

Each process holds a lock named after itself from its first turn until it ends: the turns that it
runs are marked with its id, and go on while it lives. The kernel releases
the lock of a killed process; in Redis it expires with its lease.
"""

import secrets
import threading

from opendify.conversations.locks.files import Lock, Locks
from opendify.storage.fork import after_fork_in_child


class ProcessRegistry:
    """This process's id, and whether the process of another id is alive."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        self._lock: Lock | None
        self._reset()
        after_fork_in_child(self._reset)

    def own_id(self) -> str:
        """The id of this process, 16 hexadecimal digits."""
        with self._start_lock:
            if self._lock is None:
                self._id = secrets.token_hex(8)
                self._lock = self._try_acquire(self._id)
            return self._id

    def is_alive(self, id_: str) -> bool:
        """Whether the process with this id is running."""
        if id_ == self._id:
            return True
        lock = self._try_acquire(id_)
        if lock is not None:
            lock.release()
        return lock is None

    def _try_acquire(self, id_: str) -> Lock | None:
        return self._locks.try_acquire(f"process {id_}")

    def _reset(self) -> None:
        """Also after a fork: a child is a process of its own."""
        self._start_lock = threading.Lock()
        self._id = ""
        self._lock = None
