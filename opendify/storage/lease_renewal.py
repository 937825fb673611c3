"""What is held in Redis for a short time only, and prolonged until it is given back: so that what
a machine held that died is free soon."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from opendify.storage.fork import after_fork_in_child

T = TypeVar("T")


class LeaseRenewer(Generic[T]):
    """Prolongs, in one thread of this process, whatever is held. `seconds` is how long each lasts
    by itself; `prolong` must not raise."""

    def __init__(self, seconds: float, prolong: Callable[[T], None]) -> None:
        self._seconds = seconds
        self._prolong = prolong
        self._begin()
        after_fork_in_child(self._begin)

    def add(self, lease: T) -> None:
        """Prolong it from now on."""
        with self._changed:
            self._held.add(lease)
            self._start()
            self._changed.notify()

    def discard(self, lease: T) -> bool:
        """Prolong it no longer. False where it was not held."""
        with self._changed:
            was_held = lease in self._held
            self._held.discard(lease)
        return was_held

    def held(self) -> list[T]:
        """All that are held."""
        with self._changed:
            return list(self._held)

    def _begin(self) -> None:
        """Also after a fork: what the parent holds, and its thread, are of no use there."""
        self._changed = threading.Condition()
        self._held: set[T] = set()
        self._thread: threading.Thread | None = None

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(target=self._prolong_for_ever, name="leases", daemon=True)
        with suppress(RuntimeError):  # no thread to be had: the next one tries again
            thread.start()
            self._thread = thread

    def _prolong_for_ever(self) -> None:
        while True:
            with self._changed:
                while not self._held:
                    self._changed.wait()
            time.sleep(self._seconds / 3)
            for lease in self.held():
                self._prolong(lease)
