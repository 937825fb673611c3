"""What can be asked of the conversation mappings."""

import heapq
from collections.abc import Callable, Iterator
from pathlib import Path

from opendify.conversations.store import mutations
from opendify.conversations.store.compactor import DAY, Compactor
from opendify.conversations.store.journaled_map import JournaledMap
from opendify.conversations.store.mutations import Mutation
from opendify.conversations.store.records import (
    ConversationRecord,
    Entries,
    Patch,
    Stats,
)
from opendify.storage.fork import after_fork_in_child

_PATIENCE_AT_CLOSE = 5.0


class JsonFileStore:
    """Chats and their Dify conversations, in `conversation_mappings.json` in a folder.

    Several processes, several instances and many threads may share the folder. Nothing is
    opened before the first use, and a child process opens its own. Keys mean nothing here.
    A mapping is safe against `kill -9` once `put` has returned, and against a power failure
    with `sync`. Trouble with the disk is never raised: mappings are then kept in memory, the
    log says so once, and the disk is tried again every few seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float],
        max_age_days: float | None,
        max_entries: int,
        sync: bool = False,
    ) -> None:
        """`clock` gives epoch seconds. Mappings that were not used for `max_age_days`, and those
        beyond `max_entries` that were not used for longest, go when the file is rewritten."""
        self._folder = folder
        self._clock = clock
        self._max_age_days = max_age_days
        self._max_entries = max_entries
        self._sync = sync
        self._ledger = self._new_ledger()
        self._keeper = self._new_keeper()
        after_fork_in_child(self._begin_in_child)

    @property
    def kind(self) -> str:
        return "file"

    @property
    def available(self) -> bool:
        """Whether the folder could be used when it was last tried."""
        return not self._ledger.is_failing

    def get(self, key: str) -> ConversationRecord | None:
        self._keeper.start()
        return self._ledger.get(key)

    def put(self, key: str, conversation_id: str, heard: str = "") -> None:
        """Map a chat to a conversation, used now."""
        self._change(mutations.put(key, conversation_id, heard, self._clock()))

    def touch(self, key: str) -> None:
        """Note that a chat was used, unless that was noted within the hour."""
        plan = mutations.touch(key, self._clock())
        mapping = self.get(key)
        if mapping is not None and plan({key: mapping}):
            self._change(plan)

    def forget(self, key: str, conversation_id: str) -> None:
        """Remove the mapping, unless the chat is in another conversation by now."""
        self._change(mutations.forget(key, conversation_id))

    def move(self, old_key: str, new_key: str, conversation_id: str, heard: str) -> bool:
        """Hand the conversation over from one chat to another; False when the first has it not."""
        return bool(
            self._change(mutations.move(old_key, new_key, conversation_id, heard, self._clock()))
        )

    def adopt(self, newcomers: Entries, overwrite: bool = False) -> int:
        """Take over mappings as they are, times and all; returns how many.

        What is there and was used later wins over them, unless they are to `overwrite` it.
        """
        return len(self._change(mutations.adopt(newcomers, overwrite)))

    def owner(self, conversation_id: str) -> str | None:
        """The key that has the conversation, the least one where there are several."""
        return next(iter(self.owners(conversation_id)), None)

    def owners(self, conversation_id: str) -> list[str]:
        """All keys that have the conversation, sorted."""
        self._keeper.start()
        return self._ledger.owners(conversation_id)

    def stats(self) -> Stats:
        self._keeper.start()
        created = [mapping.created_at for mapping in self._ledger.copy().values()]
        return Stats(len(created), min(created, default=None), max(created, default=None))

    def keys(self) -> list[str]:
        """All keys, in no order."""
        self._keeper.start()
        return list(self._ledger.copy())

    def entries(self, limit: int | None = None) -> Iterator[tuple[str, ConversationRecord]]:
        """The mappings and their keys as they are now, those used last first."""
        self._keeper.start()
        entries = self._ledger.copy()
        most = len(entries) if limit is None else limit
        return iter(heapq.nlargest(most, entries.items(), key=_last_used))

    def cleanup(self, max_age_days: float) -> int:
        """Remove the mappings that were not used for so many days; returns how many."""
        before = self._clock() - max_age_days * DAY
        return len(self._remove(lambda mapping: mapping.last_used < before))

    def remove_conversation(self, conversation_id: str) -> list[str]:
        """Remove every mapping to the conversation; returns their keys."""
        return self._remove(lambda mapping: mapping.conversation_id == conversation_id)

    def close(self) -> None:
        """Write the file that people read, and close everything; a later use opens it again."""
        self._keeper.stop()
        self._ledger.retry_writes()
        if self._ledger.is_open:
            self._keeper.compact(_PATIENCE_AT_CLOSE)
            self._ledger.close()
        self._keeper = self._new_keeper()

    def _begin_in_child(self) -> None:
        """After a fork: the parent's locks and thread are of no use here."""
        self._ledger.close_unlocked()
        self._ledger = self._new_ledger()
        self._keeper = self._new_keeper()

    def _new_ledger(self) -> JournaledMap:
        return JournaledMap(
            self._folder, clock=self._clock, sync=self._sync, most_unwritten=self._max_entries
        )

    def _new_keeper(self) -> Compactor:
        return Compactor(
            self._ledger,
            clock=self._clock,
            max_age_days=self._max_age_days,
            max_entries=self._max_entries,
        )

    def _change(self, plan: Mutation) -> Patch:
        self._keeper.start()
        return self._ledger.change(plan)

    def _remove(self, condition: Callable[[ConversationRecord], bool]) -> list[str]:
        self._keeper.start()
        return self._ledger.remove(condition)


def _last_used(item: tuple[str, ConversationRecord]) -> int:
    return item[1].last_used
