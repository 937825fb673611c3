"""Loads all entries of a folder."""

from opendify.conversations.store.journal import Journal, JournalCompacted
from opendify.conversations.store.records import Entries, apply
from opendify.conversations.store.snapshot import CorruptSnapshot, read_snapshot, set_aside
from opendify.storage.data_dir import DataDir

_ATTEMPTS = 20
_LOCK_TIMEOUT = 2.0


def load(folder: DataDir, *, sync: bool, now: float) -> tuple[Journal, Entries]:
    """The entries, and the journal at the position up to which it was read; raises OSError.

    No lock is needed: journals are deleted only when a snapshot contains them, so the snapshot that
    is read after the oldest journal was opened lacks only what that journal and its successors
    contain. Reading some of it twice does no harm, since the last value of each key is the same.
    """
    folder.prepare()
    for _ in range(_ATTEMPTS):
        try:
            return _load(folder, sync)
        except JournalCompacted:
            continue
        except CorruptSnapshot as corrupt:
            with folder.snapshot_lock.acquire(_LOCK_TIMEOUT):
                set_aside(folder.snapshot, corrupt.inode, f"corrupt-{int(now)}")
    raise OSError(f"the files in {folder.path} change faster than they can be read")


def _load(folder: DataDir, sync: bool) -> tuple[Journal, Entries]:
    journal = Journal(folder.path, sync=sync)
    try:
        entries = read_snapshot(folder.snapshot)
        for patch in journal.read_new():
            apply(patch, entries)
    except BaseException:
        journal.close()
        raise
    return journal, entries
