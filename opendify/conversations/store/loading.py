"""Reading all that a folder holds."""

from opendify.conversations.store.journal import Journal, JournalCompacted
from opendify.conversations.store.records import Entries, apply
from opendify.conversations.store.snapshot import CorruptSnapshot, read_snapshot, set_aside
from opendify.storage.data_dir import DataDir

_ATTEMPTS = 20
_PATIENCE = 2.0


def load(folder: DataDir, *, sync: bool, now: float) -> tuple[Journal, Entries]:
    """The entries, and the journal at the place up to which they are read; raises OSError.

    No lock is held, and none is needed: journals are dropped only when a snapshot holds all
    that is in them, so the snapshot that is read after the oldest journal was opened lacks
    nothing but what that one and its successors say. To hear some of it twice does no harm,
    since the last word on each key is the same.
    """
    folder.prepare()
    for _ in range(_ATTEMPTS):
        try:
            return _load(folder, sync)
        except JournalCompacted:
            continue
        except CorruptSnapshot as corrupt:
            with folder.folding.held(_PATIENCE):
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
