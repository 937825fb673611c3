"""One process's copy of the entries in the folder, kept in sync with the files."""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from opendify.conversations.store.journal import Journal, JournalCompacted, delete_journals
from opendify.conversations.store.loading import load
from opendify.conversations.store.memory import Memory
from opendify.conversations.store.records import ChatRecord, Entries, Patch
from opendify.conversations.store.snapshot import write_snapshot
from opendify.storage.data_dir import DataDir, sync_and_close

log = logging.getLogger(__name__)

_LOCK_TIMEOUT = 2.0
# So that a nearly full disk takes as many lines as fit, instead of one huge torn line.
_MAX_KEYS_PER_LINE = 500


class JournaledMap:
    """Entries shared with other processes through a folder. Thread-safe, opened at first use.

    Never raises OSError. While the disk fails, changes stay in memory on top of what could be read,
    which is logged once, and `retry_writes` tries again.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float], sync: bool, max_unwritten: int
    ) -> None:
        self._folder = DataDir(path)
        self._clock = clock
        self._sync = sync
        self._max_unwritten = max_unwritten
        # Always acquired in this order: _write_lock, then the folder's lock, then _memory_lock. So
        # readers wait only for the memory of other threads, never for another process. A thread
        # that holds _write_lock while the disk fails has no folder lock, and this cannot change.
        self._write_lock = threading.Lock()
        self._memory_lock = threading.Lock()
        self._journal: Journal | None = None
        self._state = Memory()
        self._failing = False
        self._logged_failures: set[str] = set()

    @property
    def is_open(self) -> bool:
        return self._journal is not None

    @property
    def is_failing(self) -> bool:
        """Whether the disk failed when it was last tried; it is not used again until
        `retry_writes`."""
        return self._failing

    def get(self, key: str) -> ChatRecord | None:
        with self._memory_lock:
            self._refresh_if_stale()
            return self._state.entries.get(key)

    def copy(self) -> Entries:
        with self._memory_lock:
            self._refresh_if_stale()
            return self._state.entries.copy()

    def owners(self, conversation_id: str) -> list[str]:
        with self._memory_lock:
            self._refresh_if_stale()
            return self._state.owners(conversation_id)

    def change(self, mutation: Callable[[Entries], Patch]) -> Patch:
        """Apply the patch that `mutation` derives from the newest entries; returns the patch.

        No other change comes between. `mutation` must be quick and must not modify the entries.
        """
        with self._write_lock:
            return self._change(mutation)

    def remove(self, condition: Callable[[ChatRecord], bool]) -> list[str]:
        """Remove the entries that satisfy the condition; returns their keys."""
        # Searched outside the locks, and checked again inside.
        matching = [key for key, record in self.copy().items() if condition(record)]

        def mutation(entries: Entries) -> Patch:
            return {key: None for key in matching if key in entries and condition(entries[key])}

        return list(self.change(mutation)) if matching else []

    def position(self) -> tuple[int, int]:
        """The number of the journal that is written to, and its size in bytes."""
        with self._memory_lock:
            self._refresh()
            return self._journal.position if self._journal else (0, 0)

    def count(self) -> int:
        return len(self._state.entries)

    def has_journaled_changes(self) -> bool:
        """Whether the journals contain anything."""
        with self._memory_lock:
            try:
                return self._journal is not None and self._journal.has_entries()
            except OSError:
                return False

    def snapshot_size(self) -> int:
        """Bytes in the snapshot, 0 if there is none."""
        try:
            return self._folder.snapshot.stat().st_size
        except OSError:
            return 0

    def retry_writes(self) -> None:
        """Try the disk again, if it failed."""
        with self._write_lock:
            if not self._failing:
                return
            self._failing = False
            self._change(lambda entries: {})
            if not self._failing:
                self._logged_failures.discard("write")
                log.warning("Conversation mappings are saved in %s again.", self._folder.path)

    def compact(self, timeout: float) -> bool:
        """Write all entries to the snapshot and delete the journals; False if the disk failed.

        If another process compacts for longer than `timeout` seconds, this call leaves it to that
        one.
        """
        if self._failing:
            return False
        try:
            with self._folder.snapshot_lock.acquire(timeout):
                self._compact()
        except TimeoutError:
            return True
        except OSError as error:
            self._log_failure(
                "compact",
                "%s cannot be updated (%s). No mapping is lost, but the journals in "
                "the folder grow until there is space and this user may write there.",
                self._folder.snapshot,
                error,
            )
            return False
        self._logged_failures.discard("compact")
        return True

    def close(self) -> None:
        """Close the files; the next use opens them again."""
        with self._write_lock, self._memory_lock:
            self.close_unlocked()

    def close_unlocked(self) -> None:
        """Close the files without any lock: a forked child could wait for one forever."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _change(self, mutation: Callable[[Entries], Patch]) -> Patch:
        with self._locked(), self._memory_lock:
            self._refresh()
            patch = mutation(self._state.entries)
            self._state.apply_local(patch)
            unsynced = self._flush()
        self._make_durable(unsynced)
        return patch

    def _compact(self) -> None:
        with self._write_lock, self._locked(), self._memory_lock:
            self._refresh()
            journal = self._journal
            if self._failing or journal is None or not journal.has_entries():
                return
            if journal.position[1]:
                journal.rotate()
                self._refresh()
            entries, (number, _) = self._state.entries.copy(), journal.position
        # Outside the locks: with a million entries this takes seconds. What is appended
        # meanwhile goes to the new journal, which is not deleted.
        write_snapshot(self._folder.snapshot, entries)
        delete_journals(self._folder.path, below=number)

    def _locked(self) -> AbstractContextManager[None]:
        """The folder's lock, to hold while the files are changed; nothing while the disk fails."""
        with self._memory_lock:
            self._refresh_if_stale()  # here, so that little remains to be read while others wait
        if not self._failing:
            try:
                return self._folder.journal_lock.acquire(_LOCK_TIMEOUT)
            except OSError as error:
                self._fail(error)
        return nullcontext()

    def _refresh_if_stale(self) -> None:
        """Read the changes of other processes if there may be any."""
        try:
            if self._journal is not None and not self._journal.has_grown():
                return
        except OSError as error:
            self._fail(error)
        self._refresh()

    def _refresh(self) -> None:
        try:
            if self._journal is not None:
                self._read_changes(self._journal)
            if self._journal is None and not self._failing:
                self._journal, entries = load(self._folder, sync=self._sync, now=self._clock())
                self._state.load(entries)
        except OSError as error:
            self._fail(error)

    def _read_changes(self, journal: Journal) -> None:
        try:
            for patch in journal.read_new():
                self._state.apply_remote(patch)
        except JournalCompacted:
            self.close_unlocked()

    def _flush(self) -> int | None:
        """Append what is in no journal yet; returns a descriptor to sync, if `sync` is on."""
        state, journal = self._state, self._journal
        if self._failing or journal is None or not state.unwritten:
            state.trim_unwritten(self._max_unwritten)
            return None
        try:
            while patch := state.first_unwritten(_MAX_KEYS_PER_LINE):
                journal.append(patch)
                state.mark_written(patch)
            return journal.duplicate() if self._sync else None
        except OSError as error:
            self._fail(error)
            return None

    def _make_durable(self, descriptor: int | None) -> None:
        if descriptor is not None:
            try:
                sync_and_close(descriptor)
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._failing = True
        self._log_failure(
            "write",
            "Conversation mappings cannot be saved in %s (%s). New ones are in memory only and are "
            "lost at a restart, until there is space and this user may write there.",
            self._folder.path,
            error,
        )

    def _log_failure(self, subject: str, message: str, *values: object) -> None:
        if subject not in self._logged_failures:
            self._logged_failures.add(subject)
            log.error(message, *values)
