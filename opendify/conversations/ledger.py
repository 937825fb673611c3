"""One process's view of the folder: the entries in memory, kept equal to what the files say."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

from opendify.conversations.folder import prepare_folder
from opendify.conversations.journal import FoldedAway, Journal, drop_journals
from opendify.conversations.locks import FileLock
from opendify.conversations.mapping import Entries, Mapping, Patch
from opendify.conversations.snapshot import (
    CorruptSnapshot,
    read_snapshot,
    set_aside,
    write_snapshot,
)

log = logging.getLogger(__name__)

_LOCK_PATIENCE = 2.0
_LOAD_ATTEMPTS = 20


class Ledger:
    """Entries shared with other processes through a folder. Thread-safe, opened at first use.

    Nothing here raises OSError. While the disk fails, changes are kept in memory on top of what
    could be read, the log says so once, and `mend` tries again.
    """

    def __init__(
        self, folder: Path, *, clock: Callable[[], float], sync: bool, most_unwritten: int
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._sync = sync
        self._most_unwritten = most_unwritten
        self._snapshot = folder / "conversation_mappings.json"
        self._lock = FileLock(folder / "conversation_mappings.lock")
        self._fold_lock = FileLock(folder / "conversation_mappings.fold.lock")
        # Always taken in this order: _writing, then the lock file, then _memory. So a reader
        # waits for other threads' memory only, never for another process or the disk.
        self._writing = threading.Lock()
        self._memory = threading.Lock()
        self._journal: Journal | None = None
        self._entries: Entries = {}
        self._unwritten: Patch = {}
        self._failing = False
        self._complained_of_writing = False
        self._complained_of_folding = False

    @property
    def is_open(self) -> bool:
        return self._journal is not None

    def get(self, key: str) -> Mapping | None:
        with self._memory:
            self._catch_up()
            return self._entries.get(key)

    def copy(self) -> Entries:
        with self._memory:
            self._catch_up()
            return self._entries.copy()

    def change(self, plan: Callable[[Entries], Patch]) -> Patch:
        """Make the change that `plan` derives from the newest entries; returns it.

        Nobody else's change comes between. `plan` must be quick and must not touch the entries.
        """
        with self._writing:
            with self._locked(), self._memory:
                self._catch_up()
                patch = plan(self._entries)
                if patch:
                    _apply(patch, self._entries)
                    self._unwritten.update(patch)
                written_to = self._flush()
            self._make_durable(written_to)
        return patch

    def remove(self, condition: Callable[[Mapping], bool]) -> list[str]:
        """Remove the entries of which the condition is true; returns their keys."""
        # Looked for outside the locks, and looked at again within.
        found = [key for key, mapping in self.copy().items() if condition(mapping)]

        def plan(entries: Entries) -> Patch:
            return {key: None for key in found if key in entries and condition(entries[key])}

        return list(self.change(plan)) if found else []

    def count(self) -> int:
        return len(self._entries)

    def place(self) -> tuple[int, int]:
        """How far this process has read the journals; (0, 0) when there are none."""
        with self._memory:
            self._catch_up()
            return self._journal.place if self._journal else (0, 0)

    def snapshot_size(self) -> int:
        """Bytes in the snapshot."""
        try:
            return self._snapshot.stat().st_size
        except OSError:
            return 0

    def holds_more_than_the_snapshot(self) -> bool:
        """Whether there is anything in the journals."""
        with self._memory:
            return self._journal is not None and self._journal.holds_anything()

    def mend(self) -> None:
        """Try the disk again if it failed."""
        if self._failing:
            self._failing = False
            self.place()
            self.change(lambda entries: {})
            if not self._failing:
                self._complained_of_writing = False
                log.warning("Conversation mappings are written to %s again.", self._folder)

    def fold(self, patience: float = 0.0) -> bool:
        """Write the snapshot and drop the journals that are in it; whether the disk let us.

        Left to whoever is doing it already, if that takes longer than `patience` seconds.
        """
        try:
            with self._fold_lock.held(patience):
                self._fold()
            self._complained_of_folding = False
        except TimeoutError:
            return True
        except OSError as error:
            if not self._complained_of_folding:
                self._complained_of_folding = True
                log.error(
                    "%s cannot be brought up to date (%s). Nothing is lost, but the journals "
                    "beside it grow until there is space and this user may write there.",
                    self._snapshot,
                    error,
                )
            return False
        return True

    def close(self) -> None:
        """Close the files; the next use opens them again."""
        with self._writing, self._memory:
            self.abandon()

    def abandon(self) -> None:
        """Close the files asking for no lock: a forked child could wait for it forever."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _fold(self) -> None:
        with self._writing, self._locked(), self._memory:
            self._catch_up()
            self._flush()
            journal = self._journal
            if self._failing or journal is None or not journal.holds_anything():
                return
            if journal.place[1]:
                journal.rotate()
            number, entries = journal.number, self._entries.copy()
        # Outside the locks: this takes seconds when there are a million entries. What is
        # appended meanwhile goes to the new journal, which stays.
        write_snapshot(self._snapshot, entries)
        drop_journals(self._folder, below=number)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock, or nothing while the disk fails."""
        with ExitStack() as held:
            if self._journal is None:
                with self._memory:
                    self._catch_up()  # makes the folder
            if not self._failing:
                try:
                    held.enter_context(self._lock.held(_LOCK_PATIENCE))
                except OSError as error:
                    self._fail(error)
            yield

    def _catch_up(self) -> None:
        try:
            if self._journal is None and not self._failing:
                self._load()
            elif self._journal is not None:
                self._read_news(self._journal)
        except OSError as error:
            self._fail(error)
        if self._unwritten:
            _apply(self._unwritten, self._entries)

    def _read_news(self, journal: Journal) -> None:
        try:
            for patch in journal.news():
                _apply(patch, self._entries)
        except FoldedAway:
            self._load()

    def _load(self) -> None:
        prepare_folder(self._folder)
        for _ in range(_LOAD_ATTEMPTS):
            try:
                journal, entries = self._read_all()
            except FoldedAway:
                continue
            except CorruptSnapshot as corrupt:
                with self._fold_lock.held(_LOCK_PATIENCE):
                    set_aside(self._snapshot, corrupt.inode, f"corrupt-{int(self._clock())}")
                continue
            if self._journal is not None:
                self._journal.close()
            self._journal, self._entries = journal, entries
            return
        raise OSError(f"the files in {self._folder} change faster than they can be read")

    def _read_all(self) -> tuple[Journal, Entries]:
        journal = Journal(self._folder)
        try:
            entries = read_snapshot(self._snapshot)
            for patch in journal.news():
                _apply(patch, entries)
        except BaseException:
            journal.close()
            raise
        return journal, entries

    def _flush(self) -> int | None:
        """Append what is not in the journal yet; a descriptor to sync, where that is wanted."""
        if self._failing or self._journal is None or not self._unwritten:
            return None
        try:
            self._journal.append(self._unwritten)
            self._unwritten.clear()
            return self._journal.duplicate() if self._sync else None
        except OSError as error:
            self._fail(error)
            return None

    def _make_durable(self, descriptor: int | None) -> None:
        if descriptor is None:
            return
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            self._fail(error)
        finally:
            os.close(descriptor)

    def _fail(self, error: OSError) -> None:
        self._failing = True
        surplus = len(self._unwritten) - self._most_unwritten
        for key in list(islice(self._unwritten, max(surplus, 0))):
            del self._unwritten[key]
        if not self._complained_of_writing:
            self._complained_of_writing = True
            log.error(
                "Conversation mappings cannot be kept in %s (%s). New ones are in memory only and "
                "are lost at a restart, until there is space and this user may write there.",
                self._folder,
                error,
            )


def _apply(patch: Patch, entries: Entries) -> None:
    for key, mapping in patch.items():
        if mapping is None:
            entries.pop(key, None)
        else:
            entries[key] = mapping
