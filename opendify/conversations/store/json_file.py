"""The conversation store in a JSON file with journals."""

import heapq
from collections.abc import Callable, Iterator
from pathlib import Path

from opendify.conversations.store import mutations
from opendify.conversations.store.compactor import DAY, Compactor
from opendify.conversations.store.journaled_map import JournaledMap
from opendify.conversations.store.mutations import Mutation, Update
from opendify.conversations.store.records import (
    ChatRecord,
    Entries,
    Patch,
    Stats,
)
from opendify.storage.fork import after_fork_in_child

_CLOSE_TIMEOUT = 5.0


class JsonFileStore:
    """Chats and their Dify conversations, in `conversation_mappings.json` in a folder; see
    `ConversationStore`.

    Several processes, several instances and many threads may share the folder. Nothing is opened
    before the first use, and a forked child opens its own files. Keys are opaque here. A mapping
    survives `kill -9` once `put` has returned, and a power failure with `sync`. Disk errors are
    never raised: mappings are then held in memory, which is logged once, and the disk is retried
    every few seconds.
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
        """`clock` returns epoch seconds. Mappings not used for `max_age_days`, and the least
        recently used ones beyond `max_entries`, are removed when the file is rewritten."""
        self._folder = folder
        self._clock = clock
        self._max_age_days = max_age_days
        self._max_entries = max_entries
        self._sync = sync
        self._map = self._new_map()
        self._compactor = self._new_compactor()
        after_fork_in_child(self._reset_in_child)

    @property
    def kind(self) -> str:
        return "file"

    @property
    def available(self) -> bool:
        """Whether the folder was usable when it was last tried."""
        return not self._map.is_failing

    def get(self, key: str) -> ChatRecord | None:
        self._compactor.start()
        return self._map.get(key)

    def put(self, key: str, conversation_id: str, update: Update) -> None:
        self._change(mutations.put(key, conversation_id, update, self._clock()))

    def update_if(
        self, key: str, conversation_id: str, expected_digest: str, update: Update
    ) -> bool:
        now = self._clock()
        mutation = mutations.update_if(key, conversation_id, expected_digest, update, now)
        return bool(self._change(mutation))

    def forget(self, key: str, conversation_id: str) -> None:
        self._change(mutations.forget([key], conversation_id))

    def move(self, old_key: str, new_key: str, conversation_id: str, update: Update) -> bool:
        mutation = mutations.move(old_key, new_key, conversation_id, update, self._clock())
        return bool(self._change(mutation))

    def adopt(self, newcomers: Entries, overwrite: bool = False) -> int:
        return len(self._change(mutations.adopt(newcomers, overwrite)))

    def owners(self, conversation_id: str) -> list[str]:
        self._compactor.start()
        return self._map.owners(conversation_id)

    def stats(self) -> Stats:
        self._compactor.start()
        created = [record.created_at for record in self._map.copy().values()]
        return Stats(len(created), min(created, default=None), max(created, default=None))

    def keys(self) -> list[str]:
        self._compactor.start()
        return list(self._map.copy())

    def entries(self, limit: int | None = None) -> Iterator[tuple[str, ChatRecord]]:
        self._compactor.start()
        entries = self._map.copy()
        count = len(entries) if limit is None else limit
        return iter(heapq.nlargest(count, entries.items(), key=_last_used))

    def cleanup(self, max_age_days: float) -> int:
        before = self._clock() - max_age_days * DAY
        self._compactor.start()
        return len(self._map.remove(lambda record: record.last_used < before))

    def remove_conversation(self, conversation_id: str) -> list[str]:
        keys = self.owners(conversation_id)
        return list(self._change(mutations.forget(keys, conversation_id))) if keys else []

    def close(self) -> None:
        """Write the snapshot and close everything; a later use opens it again."""
        self._compactor.stop()
        self._map.retry_writes()
        if self._map.is_open:
            self._compactor.compact(_CLOSE_TIMEOUT)
            self._map.close()
        self._compactor = self._new_compactor()

    def _reset_in_child(self) -> None:
        """After a fork: the locks and the thread of the parent are unusable here."""
        self._map.close_unlocked()
        self._map = self._new_map()
        self._compactor = self._new_compactor()

    def _new_map(self) -> JournaledMap:
        return JournaledMap(
            self._folder, clock=self._clock, sync=self._sync, max_unwritten=self._max_entries
        )

    def _new_compactor(self) -> Compactor:
        return Compactor(
            self._map,
            clock=self._clock,
            max_age_days=self._max_age_days,
            max_entries=self._max_entries,
        )

    def _change(self, mutation: Mutation) -> Patch:
        self._compactor.start()
        return self._map.change(mutation)


def _last_used(item: tuple[str, ChatRecord]) -> int:
    return item[1].last_used
