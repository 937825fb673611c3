"""When the files are tidied: the snapshot rewritten, old mappings removed, the disk tried again."""

import heapq
import threading
from collections.abc import Callable
from contextlib import suppress

from opendify.conversations.store.journaled_map import JournaledMap
from opendify.conversations.store.records import Entries, Patch

DAY = 86400

_SETTLED_AFTER = 5
_MEND_EVERY = 5
_WAIT_AFTER_A_FAILED_FOLD = 60
_LONGEST_FOLD_SECONDS = 15.0
_FEW_ENTRIES = 10_000


class Compactor:
    """Looks at the ledger once a second, from a thread of its own, in each process that uses it.

    In each, because the process that wrote last may have been killed.
    """

    TICK_SECONDS = 1.0
    LEAST_TO_FOLD = 1 << 20
    """Bytes; a journal is not folded sooner while the store is busy."""

    def __init__(
        self,
        ledger: JournaledMap,
        *,
        clock: Callable[[], float],
        max_age_days: float | None,
        max_entries: int,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._max_age_days = max_age_days
        self._max_entries = max_entries
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._place = (0, 0)
        self._quiet = 0
        self._until_mending = _MEND_EVERY
        self._until_folding = 0

    def start(self) -> None:
        """Start the thread, if it does not run yet."""
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._start()

    def stop(self) -> None:
        """End the thread; waits, though not forever, for what it is doing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LONGEST_FOLD_SECONDS)

    def tick(self) -> None:
        """Do what is due."""
        self._until_mending -= 1
        if self._until_mending <= 0:
            self._until_mending = _MEND_EVERY
            self._ledger.retry_writes()
        if self._ledger.count() > self._max_entries * 1.25:
            self.expire()
        place = self._ledger.place()
        self._quiet = self._quiet + 1 if place == self._place else 0
        self._place = place
        self._until_folding -= 1
        if self._until_folding <= 0 and not self._ledger.is_failing and self._should_compact():
            self._until_folding = 0 if self.compact() else _WAIT_AFTER_A_FAILED_FOLD

    def compact(self, patience: float = 0.0) -> bool:
        """Remove what is too old or too much, and write the snapshot; whether the disk let us."""
        self.expire()
        return self._ledger.compact(patience)

    def expire(self) -> None:
        """Remove what is too old, and what is too much: the least recently used first."""
        if self._max_age_days is not None:
            before = self._clock() - self._max_age_days * DAY
            self._ledger.remove(lambda mapping: mapping.last_used < before)
        entries = self._ledger.copy()
        surplus = len(entries) - self._max_entries
        if surplus > 0:
            oldest = heapq.nsmallest(surplus, entries, key=lambda key: entries[key].last_used)

            def plan(now: Entries) -> Patch:
                return {key: None for key in oldest if now.get(key) == entries[key]}

            self._ledger.change(plan)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="conversation-keeper", daemon=True)
        # No thread to be had, or the interpreter is ending: the next use tries again.
        with suppress(RuntimeError):
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while not self._stop.wait(self.TICK_SECONDS):
            self.tick()

    def _should_compact(self) -> bool:
        _, unfolded = self._place
        if unfolded > max(self._ledger.snapshot_size(), self.LEAST_TO_FOLD):
            return True
        if self._quiet < _SETTLED_AFTER or self._ledger.count() >= _FEW_ENTRIES:
            return False
        self._quiet = 0
        return self._ledger.holds_more_than_the_snapshot()
