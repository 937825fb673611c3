"""What one process knows: the entries, with what is in no file yet on top of them. No I/O."""

from itertools import islice

from opendify.conversations.store.owners import Owners
from opendify.conversations.store.records import Entries, Patch, apply


class Memory:
    """Entries as the files give them and as this process changed them. Not thread-safe."""

    def __init__(self) -> None:
        self.entries: Entries = {}
        self.unwritten: Patch = {}
        self._owners: Owners | None = None

    def begin_with(self, entries: Entries) -> None:
        """Take over all that the files hold."""
        self.entries, self._owners = entries, None
        self._apply(self.unwritten)

    def apply_remote(self, patch: Patch) -> None:
        """Take over a change that was read from a file."""
        self._apply(patch)
        if self.unwritten:
            self._apply({key: self.unwritten[key] for key in patch if key in self.unwritten})

    def apply_local(self, patch: Patch) -> None:
        """Make a change that is still to be written."""
        self._apply(patch)
        self.unwritten.update(patch)

    def first_unwritten(self, most: int) -> Patch:
        """So many of the changes still to be written, those made first."""
        return dict(islice(self.unwritten.items(), most))

    def mark_written(self, patch: Patch) -> None:
        """Strike these from what is still to be written."""
        for key in patch:
            del self.unwritten[key]

    def give_up_unwritten(self, most: int) -> None:
        """Leave at most so many changes still to be written; the others are known here alone."""
        if len(self.unwritten) > most:
            self.mark_written(self.first_unwritten(len(self.unwritten) - most))

    def owners(self, conversation_id: str) -> list[str]:
        """The keys that have the conversation, sorted."""
        if self._owners is None:  # made when first asked for: most processes never are
            self._owners = Owners(self.entries)
        return self._owners.of(conversation_id)

    def _apply(self, patch: Patch) -> None:
        if self._owners is not None:
            self._owners.follow(patch, self.entries)
        apply(patch, self.entries)
