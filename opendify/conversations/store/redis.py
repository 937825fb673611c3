"""The conversation mappings in a Redis server, for instances that share no folder."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from opendify.conversations.store import mutations
from opendify.conversations.store import redis_schema as shelf
from opendify.conversations.store.compactor import DAY
from opendify.conversations.store.fallback_cache import FallbackCache
from opendify.conversations.store.mutations import Mutation
from opendify.conversations.store.records import (
    ConversationRecord,
    Entries,
    Patch,
    Stats,
)
from opendify.storage.fork import after_fork_in_child
from opendify.storage.redis_connection import Client, RedisConnection, RedisUnavailable

_MOST_REMEMBERED = 5000
_KEPT_AT_ONCE = 50
_KEEP_AGAIN_AFTER = 2.0
_EXPIRE_EVERY = 60.0
# A request waits for this, so what is left over goes a minute later.
_MOST_BATCHES_AT_ONCE = 4


class RedisStore:
    """Chats and their Dify conversations in Redis; the same as `ConversationStore` to who asks.

    Any number of processes on any number of machines may share it. Nothing is opened before the
    first use. While Redis is away, the memory of this process answers: the chats that it has
    seen last, and what it is told meanwhile, which is written when Redis is back unless somebody
    has used the chat since. What is forgotten meanwhile is there again afterwards.
    """

    def __init__(
        self,
        link: RedisConnection,
        *,
        clock: Callable[[], float],
        max_age_days: float | None,
        max_entries: int,
    ) -> None:
        """`clock` gives epoch seconds. Mappings that were not used for `max_age_days`, and those
        beyond `max_entries` that were not used for longest, go about once a minute."""
        self._link = link
        self._clock = clock
        self._max_age_days = max_age_days
        self._max_entries = max_entries
        self._memory = FallbackCache(_MOST_REMEMBERED)
        self._keep_again_at = 0.0
        self._expire_at = 0.0
        self._keeping = threading.Lock()
        after_fork_in_child(self._begin_in_child)

    @property
    def kind(self) -> str:
        return "redis"

    @property
    def available(self) -> bool:
        """Whether Redis could be used when it was last tried."""
        return self._link.available

    def get(self, key: str) -> ConversationRecord | None:
        self._keep_the_unkept(_KEPT_AT_ONCE)
        if unkept := self._memory.unwritten(key):
            return unkept
        try:
            mapping = self._link.ask(lambda client: shelf.read(client, [key])).get(key)
        except RedisUnavailable:
            return self._memory.get(key)
        self._memory.see(key, mapping)
        return mapping

    def put(self, key: str, conversation_id: str, heard: str = "") -> None:
        """Map a chat to a conversation, used now."""
        self._change([key], mutations.put(key, conversation_id, heard, self._clock()))
        self._expire_if_due()

    def touch(self, key: str) -> None:
        """Note that a chat was used, unless that was noted within the hour."""
        plan = mutations.touch(key, self._clock())
        mapping = self.get(key)
        if mapping is not None and plan({key: mapping}):
            self._change([key], plan)

    def forget(self, key: str, conversation_id: str) -> None:
        """Remove the mapping, unless the chat is in another conversation by now."""
        self._change([key], mutations.forget(key, conversation_id))

    def move(self, old_key: str, new_key: str, conversation_id: str, heard: str) -> bool:
        """Hand the conversation over from one chat to another; False when the first has it not."""
        plan = mutations.move(old_key, new_key, conversation_id, heard, self._clock())
        return bool(self._change(list(dict.fromkeys((old_key, new_key))), plan))

    def adopt(self, newcomers: Entries, overwrite: bool = False) -> int:
        """Take over mappings as they are, times and all; returns how many.

        What is there and was used later wins over them, unless they are to `overwrite` it.
        """
        keys = list(newcomers)
        count = 0
        for start in range(0, len(keys), shelf.BATCH):
            some = keys[start : start + shelf.BATCH]
            plan = mutations.adopt({key: newcomers[key] for key in some}, overwrite)
            count += len(self._change(some, plan))
        return count

    def owner(self, conversation_id: str) -> str | None:
        """The key that has the conversation, the least one where there are several."""
        return next(iter(self.owners(conversation_id)), None)

    def owners(self, conversation_id: str) -> list[str]:
        """All keys that have the conversation, sorted; those that this process remembers while
        Redis is away, or has not written yet."""
        self._keep_the_unkept(_KEPT_AT_ONCE)
        try:
            keys = self._link.ask(lambda client: shelf.keys_of(client, conversation_id))
        except RedisUnavailable:
            return sorted(self._remembered_keys(conversation_id))
        return sorted(keys)

    def stats(self) -> Stats:
        """As far as they are known: those of this process's memory while Redis is away."""
        try:
            return self._link.ask(shelf.stats)
        except RedisUnavailable:
            created = [mapping.created_at for mapping in self._memory.all().values()]
            return Stats(len(created), min(created, default=None), max(created, default=None))

    def keys(self) -> list[str]:
        """All keys, in no order."""
        try:
            return self._link.ask(shelf.all_keys)
        except RedisUnavailable:
            return list(self._memory.all())

    def entries(self, limit: int | None = None) -> Iterator[tuple[str, ConversationRecord]]:
        """The mappings and their keys as they are now, those used last first."""
        try:
            return iter(self._link.ask(lambda client: list(shelf.newest(client, limit))))
        except RedisUnavailable:
            known = self._memory.all().items()
            return iter(sorted(known, key=lambda item: item[1].last_used, reverse=True)[:limit])

    def cleanup(self, max_age_days: float) -> int:
        """Remove the mappings that were not used for so many days; returns how many."""
        return self._remove_unused_since(self._clock() - max_age_days * DAY)

    def remove_conversation(self, conversation_id: str) -> list[str]:
        """Remove every mapping to the conversation; returns their keys."""

        def remove(client: Client) -> list[str]:
            keys = shelf.keys_of(client, conversation_id)
            return shelf.remove(client, keys, lambda m: m.conversation_id == conversation_id)

        return self._remove(remove)

    def close(self) -> None:
        """Write what could not be written yet and close the connections; a later use opens them
        again."""
        self._keep_again_at = 0.0
        self._keep_the_unkept(_MOST_REMEMBERED)
        self._link.close()

    def _begin_in_child(self) -> None:
        """After a fork: the parent keeps what it has to keep."""
        self._memory = FallbackCache(_MOST_REMEMBERED)
        self._keeping = threading.Lock()

    def _change(self, keys: list[str], plan: Mutation) -> Patch:
        self._keep_the_unkept(_KEPT_AT_ONCE)
        if any(map(self._memory.unwritten, keys)):  # what Redis says of these is out of date
            return self._memory.change(keys, plan)
        try:
            made = self._link.store(lambda client: shelf.change(client, keys, plan))
        except RedisUnavailable:
            return self._memory.change(keys, plan)
        self._memory.mark_written(made.patch)
        return made.patch

    def _keep_the_unkept(self, most: int) -> None:
        pauses = self._link.refuses and time.monotonic() < self._keep_again_at
        if pauses or not self._memory.some_unwritten(1):
            return
        # One thread at a time: a slower one could put an older mapping over a newer one.
        if not self._keeping.acquire(blocking=False):
            return
        try:
            for key, mapping in self._memory.some_unwritten(most).items():
                plan = mutations.adopt({key: mapping}, overwrite=False)
                self._link.store(partial(shelf.change, keys=[key], plan=plan))
                self._memory.settle(key, mapping)
        except RedisUnavailable:
            self._keep_again_at = time.monotonic() + _KEEP_AGAIN_AFTER
        finally:
            self._keeping.release()

    def _expire_if_due(self) -> None:
        """Remove what is too old, and what is too much: the least recently used first."""
        if time.monotonic() < self._expire_at:
            return
        self._expire_at = time.monotonic() + _EXPIRE_EVERY
        if self._max_age_days is not None:
            before = self._clock() - self._max_age_days * DAY
            self._remove_unused_since(before, _MOST_BATCHES_AT_ONCE)
        for _ in range(_MOST_BATCHES_AT_ONCE):
            if not self._remove(self._remove_surplus):
                return

    def _remove_surplus(self, client: Client) -> list[str]:
        scores = shelf.surplus(client, self._max_entries)
        latest = max(scores.values(), default=0.0)
        return shelf.remove(client, list(scores), lambda mapping: mapping.last_used <= latest)

    def _remove_unused_since(self, before: float, batches: int = sys.maxsize) -> int:
        count = 0
        for _ in range(batches):
            try:
                keys = self._link.ask(lambda client: shelf.least_used(client, before))
            except RedisUnavailable:
                break
            if not keys:
                break
            remove = partial(shelf.remove, keys=keys, condition=lambda m: m.last_used < before)
            count += len(self._remove(remove))
            if not self.available:  # it would find the same again
                break
        return count

    def _remove(self, remove: Callable[[Client], list[str]]) -> list[str]:
        try:
            keys = self._link.ask(remove)
        except RedisUnavailable:
            return []
        self._memory.mark_written(dict.fromkeys(keys))
        return keys

    def _remembered_keys(self, conversation_id: str) -> list[str]:
        known = self._memory.all().items()
        return [key for key, mapping in known if mapping.conversation_id == conversation_id]
