"""The entries as one process knows them, with its unwritten changes on top. No I/O."""

from itertools import islice

from opendify.conversations.store.owners import Owners
from opendify.conversations.store.records import Entries, Patch, apply, merge_changes


class Memory:
    """The entries from the files plus the changes of this process. Not thread-safe."""

    def __init__(self) -> None:
        self.entries: Entries = {}
        self.unwritten: Patch = {}
        self._written: Patch = {}  # what the files hold of the keys in ``unwritten``
        self._owners: Owners | None = None

    def load(self, entries: Entries) -> None:
        """Replace the entries with those from the files."""
        self.entries, self._owners = entries, None
        self._reapply_unwritten(list(self.unwritten))

    def apply_remote(self, patch: Patch) -> None:
        """Apply a change that was read from a file."""
        self._apply(patch)
        if self.unwritten:
            self._reapply_unwritten([key for key in patch if key in self.unwritten])

    def apply_local(self, patch: Patch) -> None:
        """Apply a change that is still to be written."""
        for key in patch:
            if key not in self.unwritten:
                self._written[key] = self.entries.get(key)
        self._apply(patch)
        self.unwritten.update(patch)

    def first_unwritten(self, limit: int) -> Patch:
        """The oldest unwritten changes, at most ``limit``."""
        return dict(islice(self.unwritten.items(), limit))

    def mark_written(self, patch: Patch) -> None:
        """These changes are written."""
        for key in patch:
            del self.unwritten[key], self._written[key]

    def trim_unwritten(self, limit: int) -> None:
        """Give up writing the oldest changes beyond ``limit``; they remain in memory only."""
        if len(self.unwritten) > limit:
            self.mark_written(self.first_unwritten(len(self.unwritten) - limit))

    def owners(self, conversation_id: str) -> list[str]:
        """The keys that have the conversation, sorted."""
        if self._owners is None:  # built on first use: most processes never need it
            self._owners = Owners(self.entries)
        return self._owners.keys_of(conversation_id)

    def _reapply_unwritten(self, keys: list[str]) -> None:
        """Merge unwritten changes of these keys with what others have written meanwhile."""
        for key in keys:
            remote = self.entries.get(key)
            self.unwritten[key] = merge_changes(self._written[key], remote, self.unwritten[key])
            self._written[key] = remote
        self._apply({key: self.unwritten[key] for key in keys})

    def _apply(self, patch: Patch) -> None:
        if self._owners is not None:
            self._owners.update(patch, self.entries)
        apply(patch, self.entries)
