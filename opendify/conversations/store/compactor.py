"""Background upkeep: rewrites the snapshot, removes old mappings, retries the disk."""

import heapq
import threading
from collections.abc import Callable
from contextlib import suppress

from opendify.conversations.store.journaled_map import JournaledMap
from opendify.conversations.store.records import Entries, Patch

DAY = 86400

_QUIET_TICKS = 5
_RETRY_TICKS = 5
_COMPACT_RETRY_TICKS = 60
_STOP_TIMEOUT = 15.0
_SMALL_MAP = 10_000


class Compactor:
    """Checks the map once a second, from a thread in each process that uses it.

    In each, because the process that wrote last may have been killed.
    """

    TICK_SECONDS = 1.0
    MIN_COMPACT_BYTES = 1 << 20
    """Bytes; a smaller journal is not compacted while the store is busy."""

    def __init__(
        self,
        map_: JournaledMap,
        *,
        clock: Callable[[], float],
        max_age_days: float | None,
        max_entries: int,
    ) -> None:
        self._map = map_
        self._clock = clock
        self._max_age_days = max_age_days
        self._max_entries = max_entries
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._position = (0, 0)
        self._quiet_ticks = 0
        self._ticks_until_retry = _RETRY_TICKS
        self._ticks_until_compaction = 0

    def start(self) -> None:
        """Start the thread, if it is not running."""
        if self._thread is None:
            with self._start_lock:
                if self._thread is None:
                    self._start()

    def stop(self) -> None:
        """Stop the thread; waits, with a timeout, for what it is doing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT)

    def tick(self) -> None:
        """Do what is due."""
        self._ticks_until_retry -= 1
        if self._ticks_until_retry <= 0:
            self._ticks_until_retry = _RETRY_TICKS
            self._map.retry_writes()
        if self._map.count() > self._max_entries * 1.25:
            self.expire()
        position = self._map.position()
        self._quiet_ticks = self._quiet_ticks + 1 if position == self._position else 0
        self._position = position
        self._ticks_until_compaction -= 1
        if (
            self._ticks_until_compaction <= 0
            and not self._map.is_failing
            and self._should_compact()
        ):
            self._ticks_until_compaction = 0 if self.compact() else _COMPACT_RETRY_TICKS

    def compact(self, timeout: float = 0.0) -> bool:
        """Expire mappings and write the snapshot; False if the disk failed."""
        self.expire()
        return self._map.compact(timeout)

    def expire(self) -> None:
        """Remove what is too old, and the least recently used of what is too many."""
        if self._max_age_days is not None:
            before = self._clock() - self._max_age_days * DAY
            self._map.remove(lambda record: record.last_used < before)
        entries = self._map.copy()
        excess = len(entries) - self._max_entries
        if excess > 0:
            oldest = heapq.nsmallest(excess, entries, key=lambda key: entries[key].last_used)

            def mutation(current: Entries) -> Patch:
                return {key: None for key in oldest if current.get(key) == entries[key]}

            self._map.change(mutation)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="conversation-keeper", daemon=True)
        # No thread available, or the interpreter is exiting: the next use tries again.
        with suppress(RuntimeError):
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while not self._stop.wait(self.TICK_SECONDS):
            self.tick()

    def _should_compact(self) -> bool:
        _, journal_size = self._position
        if journal_size > max(self._map.snapshot_size(), self.MIN_COMPACT_BYTES):
            return True
        if self._quiet_ticks < _QUIET_TICKS or self._map.count() >= _SMALL_MAP:
            return False
        self._quiet_ticks = 0
        return self._map.has_journaled_changes()
