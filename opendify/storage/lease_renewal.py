"""Renews short leases in Redis until they are released, so that what a dead machine held becomes
free soon."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from opendify.storage.fork import after_fork_in_child

T = TypeVar("T")


class LeaseRenewer(Generic[T]):
    """Renews all active leases from one thread per process. ``seconds`` is the lifetime of a lease;
    ``renew`` must not raise."""

    def __init__(self, seconds: float, renew: Callable[[T], None]) -> None:
        self._seconds = seconds
        self._renew = renew
        self._reset()
        after_fork_in_child(self._reset)

    def add(self, lease: T) -> None:
        """Start renewing this lease."""
        with self._changed:
            self._active.add(lease)
            self._ensure_thread()
            self._changed.notify()

    def discard(self, lease: T) -> bool:
        """Stop renewing this lease. False where it was not active."""
        with self._changed:
            was_active = lease in self._active
            self._active.discard(lease)
        return was_active

    def active(self) -> list[T]:
        """All active leases."""
        with self._changed:
            return list(self._active)

    def _reset(self) -> None:
        """Also after a fork: the leases and the thread of the parent do not exist in the child."""
        self._changed = threading.Condition()
        self._active: set[T] = set()
        self._thread: threading.Thread | None = None

    def _ensure_thread(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(target=self._run, name="leases", daemon=True)
        with suppress(RuntimeError):  # no thread available: the next ``add`` tries again
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._active:
                    self._changed.wait()
            time.sleep(self._seconds / 3)
            for lease in self.active():
                self._renew(lease)
