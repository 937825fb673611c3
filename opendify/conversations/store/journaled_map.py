"""One process's view of the folder: the entries in memory, kept equal to what the files say."""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from opendify.conversations.store.journal import Journal, JournalCompacted, drop_journals
from opendify.conversations.store.loading import load
from opendify.conversations.store.memory import Memory
from opendify.conversations.store.records import ConversationRecord, Entries, Patch
from opendify.conversations.store.snapshot import write_snapshot
from opendify.storage.data_dir import DataDir, sync_and_close

log = logging.getLogger(__name__)

_PATIENCE = 2.0
_KEYS_A_LINE = (
    500  # so that a disk which is nearly full takes what it can, and not a huge torn line
)


class JournaledMap:
    """Entries shared with other processes through a folder. Thread-safe, opened at first use.

    Never raises OSError. While the disk fails, changes are kept in memory on top of what could
    be read, the log says so once, and `mend` tries again.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float], sync: bool, most_unwritten: int
    ) -> None:
        self._folder = DataDir(path)
        self._clock = clock
        self._sync = sync
        self._most_unwritten = most_unwritten
        # Always taken in this order: _writing, then the folder's lock, then _memory. So who
        # reads waits for other threads' memory only, never for another process. Who holds
        # _writing and finds the disk failing has no lock, and may rely on that staying so.
        self._writing = threading.Lock()
        self._memory = threading.Lock()
        self._journal: Journal | None = None
        self._known = Memory()
        self._failing = False
        self._complained: set[str] = set()

    @property
    def is_open(self) -> bool:
        return self._journal is not None

    @property
    def is_failing(self) -> bool:
        """Whether the disk failed when it was last tried; it is left alone until `mend`."""
        return self._failing

    def get(self, key: str) -> ConversationRecord | None:
        with self._memory:
            self._refresh_if_stale()
            return self._known.entries.get(key)

    def copy(self) -> Entries:
        with self._memory:
            self._refresh_if_stale()
            return self._known.entries.copy()

    def owners(self, conversation_id: str) -> list[str]:
        with self._memory:
            self._refresh_if_stale()
            return self._known.owners(conversation_id)

    def change(self, plan: Callable[[Entries], Patch]) -> Patch:
        """Make the change that `plan` derives from the newest entries; returns it.

        No other change comes between. `plan` must be quick and leave the entries as they are.
        """
        with self._writing:
            return self._change(plan)

    def remove(self, condition: Callable[[ConversationRecord], bool]) -> list[str]:
        """Remove the entries of which the condition is true; returns their keys."""
        # Looked for outside the locks, and looked at again inside.
        found = [key for key, mapping in self.copy().items() if condition(mapping)]

        def plan(entries: Entries) -> Patch:
            return {key: None for key in found if key in entries and condition(entries[key])}

        return list(self.change(plan)) if found else []

    def place(self) -> tuple[int, int]:
        """Which journal is written to, and how many bytes are in it."""
        with self._memory:
            self._refresh()
            return self._journal.place if self._journal else (0, 0)

    def count(self) -> int:
        return len(self._known.entries)

    def holds_more_than_the_snapshot(self) -> bool:
        """Whether there is anything in the journals."""
        with self._memory:
            try:
                return self._journal is not None and self._journal.holds_anything()
            except OSError:
                return False

    def snapshot_size(self) -> int:
        """Bytes in the snapshot, 0 when there is none."""
        try:
            return self._folder.snapshot.stat().st_size
        except OSError:
            return 0

    def retry_writes(self) -> None:
        """Try the disk again, if it failed."""
        with self._writing:
            if not self._failing:
                return
            self._failing = False
            self._change(lambda entries: {})
            if not self._failing:
                self._complained.discard("keep")
                log.warning("Conversation mappings are kept in %s again.", self._folder.path)

    def compact(self, patience: float) -> bool:
        """Write all entries to the snapshot and drop the journals; False if the disk refused.

        If another process is at it for longer than `patience` seconds, it is left to that one.
        """
        if self._failing:
            return False
        try:
            with self._folder.folding.held(patience):
                self._compact()
        except TimeoutError:
            return True
        except OSError as error:
            self._log_failure(
                "fold",
                "%s cannot be brought up to date (%s). No mapping is lost, but the journals in "
                "the folder grow until there is space and this user may write there.",
                self._folder.snapshot,
                error,
            )
            return False
        self._complained.discard("fold")
        return True

    def close(self) -> None:
        """Close the files; the next use opens them again."""
        with self._writing, self._memory:
            self.close_unlocked()

    def close_unlocked(self) -> None:
        """Close the files asking for no lock: a forked child could wait for it forever."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _change(self, plan: Callable[[Entries], Patch]) -> Patch:
        with self._locked(), self._memory:
            self._refresh()
            patch = plan(self._known.entries)
            self._known.apply_local(patch)
            unsynced = self._flush()
        self._make_durable(unsynced)
        return patch

    def _compact(self) -> None:
        with self._writing, self._locked(), self._memory:
            self._refresh()
            journal = self._journal
            if self._failing or journal is None or not journal.holds_anything():
                return
            if journal.place[1]:
                journal.rotate()
                self._refresh()
            entries, (number, _) = self._known.entries.copy(), journal.place
        # Outside the locks: with a million entries this takes seconds. What is appended
        # meanwhile goes to the new journal, which stays.
        write_snapshot(self._folder.snapshot, entries)
        drop_journals(self._folder.path, below=number)

    def _locked(self) -> AbstractContextManager[None]:
        """What to hold while the files are changed: the folder's lock, or nothing while the disk
        fails."""
        with self._memory:
            self._refresh_if_stale()  # here, so that little is left to read while others wait
        if not self._failing:
            try:
                return self._folder.changing.held(_PATIENCE)
            except OSError as error:
                self._fail(error)
        return nullcontext()

    def _refresh_if_stale(self) -> None:
        """Catch up if there may be anything to catch up with."""
        try:
            if self._journal is not None and not self._journal.has_grown():
                return
        except OSError as error:
            self._fail(error)
        self._refresh()

    def _refresh(self) -> None:
        try:
            if self._journal is not None:
                self._read_news(self._journal)
            if self._journal is None and not self._failing:
                self._journal, entries = load(self._folder, sync=self._sync, now=self._clock())
                self._known.begin_with(entries)
        except OSError as error:
            self._fail(error)

    def _read_news(self, journal: Journal) -> None:
        try:
            for patch in journal.read_new():
                self._known.apply_remote(patch)
        except JournalCompacted:
            self.close_unlocked()

    def _flush(self) -> int | None:
        """Append what is in no journal yet; returns a descriptor to sync, if that is wanted."""
        known, journal = self._known, self._journal
        if self._failing or journal is None or not known.unwritten:
            known.give_up_unwritten(self._most_unwritten)
            return None
        try:
            while patch := known.first_unwritten(_KEYS_A_LINE):
                journal.append(patch)
                known.mark_written(patch)
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
            "keep",
            "Conversation mappings cannot be kept in %s (%s). New ones are in memory only and are "
            "lost at a restart, until there is space and this user may write there.",
            self._folder.path,
            error,
        )

    def _log_failure(self, subject: str, message: str, *values: object) -> None:
        if subject not in self._complained:
            self._complained.add(subject)
            log.error(message, *values)
