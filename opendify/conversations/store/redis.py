"""The conversation store in a Redis server, for instances that share no folder."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from opendify.conversations.store import mutations
from opendify.conversations.store import redis_schema as schema
from opendify.conversations.store.compactor import DAY
from opendify.conversations.store.fallback_cache import FallbackCache
from opendify.conversations.store.mutations import Mutation, Update
from opendify.conversations.store.records import (
    ChatRecord,
    Entries,
    Patch,
    Stats,
)
from opendify.storage.fork import after_fork_in_child
from opendify.storage.redis_connection import Client, RedisConnection, RedisUnavailable

_MAX_CACHED = 5000
_WRITE_BACK_BATCH = 50
_WRITE_BACK_RETRY_SECONDS = 2.0
_EXPIRE_SECONDS = 60.0
# A request waits for this, so the rest is removed a minute later.
_MAX_EXPIRE_BATCHES = 4


class RedisStore:
    """Chats and their Dify conversations in Redis; see `ConversationStore`.

    Any number of processes on any number of machines may share it. Nothing is opened before the
    first use. While Redis is unreachable, the memory of this process answers: the most recently
    seen chats, and the changes made meanwhile, which are written when Redis is back unless the chat
    was used elsewhere since. Removals made meanwhile are lost.
    """

    def __init__(
        self,
        redis: RedisConnection,
        *,
        clock: Callable[[], float],
        max_age_days: float | None,
        max_entries: int,
        write_back_retry_seconds: float = _WRITE_BACK_RETRY_SECONDS,
    ) -> None:
        """`clock` returns epoch seconds. Mappings not used for `max_age_days`, and the least
        recently used ones beyond `max_entries`, are removed about once a minute. When writing what
        is new meanwhile fails, it is tried again after `write_back_retry_seconds`."""
        self._redis = redis
        self._clock = clock
        self._max_age_days = max_age_days
        self._max_entries = max_entries
        self._write_back_retry_seconds = write_back_retry_seconds
        self._cache = FallbackCache(_MAX_CACHED)
        self._write_back_at = 0.0
        self._expire_at = 0.0
        self._write_back_lock = threading.Lock()
        after_fork_in_child(self._reset_in_child)

    @property
    def kind(self) -> str:
        return "redis"

    @property
    def available(self) -> bool:
        """Whether Redis was usable when it was last tried."""
        return self._redis.available

    def get(self, key: str) -> ChatRecord | None:
        self._write_back(_WRITE_BACK_BATCH)
        if unwritten := self._cache.unwritten(key):
            return unwritten
        try:
            record = self._redis.execute(lambda client: schema.read(client, [key])).get(key)
        except RedisUnavailable:
            return self._cache.get(key)
        self._cache.remember(key, record)
        return record

    def put(self, key: str, conversation_id: str, update: Update) -> None:
        self._change([key], mutations.put(key, conversation_id, update, self._clock()))
        self._expire_if_due()

    def update_if(
        self, key: str, conversation_id: str, expected_digest: str, update: Update
    ) -> bool:
        now = self._clock()
        mutation = mutations.update_if(key, conversation_id, expected_digest, update, now)
        return bool(self._change([key], mutation))

    def forget(self, key: str, conversation_id: str) -> None:
        self._change([key], mutations.forget([key], conversation_id))

    def move(self, old_key: str, new_key: str, conversation_id: str, update: Update) -> bool:
        mutation = mutations.move(old_key, new_key, conversation_id, update, self._clock())
        return bool(self._change(list(dict.fromkeys((old_key, new_key))), mutation))

    def adopt(self, newcomers: Entries, overwrite: bool = False) -> int:
        keys = list(newcomers)
        count = 0
        for start in range(0, len(keys), schema.BATCH):
            batch = keys[start : start + schema.BATCH]
            mutation = mutations.adopt({key: newcomers[key] for key in batch}, overwrite)
            count += len(self._change(batch, mutation))
        return count

    def owners(self, conversation_id: str) -> list[str]:
        """All keys that have the conversation, sorted; while Redis is unreachable, those in the
        memory of this process."""
        self._write_back(_WRITE_BACK_BATCH)
        try:
            keys = self._redis.execute(lambda client: schema.keys_of(client, conversation_id))
        except RedisUnavailable:
            return sorted(self._cached_keys(conversation_id))
        return sorted(keys)

    def stats(self) -> Stats:
        """While Redis is unreachable, of this process's memory."""
        try:
            return self._redis.execute(schema.stats)
        except RedisUnavailable:
            created = [record.created_at for record in self._cache.all().values()]
            return Stats(len(created), min(created, default=None), max(created, default=None))

    def keys(self) -> list[str]:
        try:
            return self._redis.execute(schema.all_keys)
        except RedisUnavailable:
            return list(self._cache.all())

    def entries(self, limit: int | None = None) -> Iterator[tuple[str, ChatRecord]]:
        try:
            return iter(self._redis.execute(lambda client: list(schema.newest(client, limit))))
        except RedisUnavailable:
            cached = self._cache.all().items()
            return iter(sorted(cached, key=lambda item: item[1].last_used, reverse=True)[:limit])

    def cleanup(self, max_age_days: float) -> int:
        return self._remove_unused_since(self._clock() - max_age_days * DAY)

    def remove_conversation(self, conversation_id: str) -> list[str]:
        try:
            keys = self._redis.execute(lambda client: schema.keys_of(client, conversation_id))
        except RedisUnavailable:
            return []
        return list(self._change(keys, mutations.forget(keys, conversation_id))) if keys else []

    def close(self) -> None:
        """Write pending changes and close the connections; a later use opens them again."""
        self._write_back_at = 0.0
        self._write_back(_MAX_CACHED)
        self._redis.close()

    def _reset_in_child(self) -> None:
        """After a fork: the parent writes its own pending changes."""
        self._cache = FallbackCache(_MAX_CACHED)
        self._write_back_lock = threading.Lock()

    def _change(self, keys: list[str], mutation: Mutation) -> Patch:
        self._write_back(_WRITE_BACK_BATCH)
        if any(map(self._cache.unwritten, keys)):  # the copy in Redis is out of date
            return self._cache.change(keys, mutation)
        try:
            change = self._redis.execute_write(lambda client: schema.change(client, keys, mutation))
        except RedisUnavailable:
            return self._cache.change(keys, mutation)
        self._cache.mark_written(change.patch)
        return change.patch

    def _write_back(self, limit: int) -> None:
        is_paused = self._redis.rejects_writes and time.monotonic() < self._write_back_at
        if is_paused or not self._cache.oldest_unwritten(1):
            return
        # One thread at a time: a slower one could overwrite a newer record with an older one.
        if not self._write_back_lock.acquire(blocking=False):
            return
        try:
            for key, record in self._cache.oldest_unwritten(limit).items():
                mutation = mutations.adopt({key: record}, overwrite=False)
                self._redis.execute_write(partial(schema.change, keys=[key], mutation=mutation))
                self._cache.mark_one_written(key, record)
        except RedisUnavailable:
            self._write_back_at = time.monotonic() + self._write_back_retry_seconds
        finally:
            self._write_back_lock.release()

    def _expire_if_due(self) -> None:
        """Remove what is too old, and the least recently used of what is too many."""
        if time.monotonic() < self._expire_at:
            return
        self._expire_at = time.monotonic() + _EXPIRE_SECONDS
        if self._max_age_days is not None:
            before = self._clock() - self._max_age_days * DAY
            self._remove_unused_since(before, _MAX_EXPIRE_BATCHES)
        for _ in range(_MAX_EXPIRE_BATCHES):
            if not self._remove(self._remove_surplus):
                return

    def _remove_surplus(self, client: Client) -> list[str]:
        scores = schema.surplus(client, self._max_entries)
        latest = max(scores.values(), default=0.0)
        return schema.remove(client, list(scores), lambda record: record.last_used <= latest)

    def _remove_unused_since(self, before: float, batches: int = sys.maxsize) -> int:
        count = 0
        for _ in range(batches):
            try:
                keys = self._redis.execute(lambda client: schema.last_used_before(client, before))
            except RedisUnavailable:
                break
            if not keys:
                break
            remove = partial(schema.remove, keys=keys, condition=lambda m: m.last_used < before)
            count += len(self._remove(remove))
            if not self.available:  # it would find the same keys again
                break
        return count

    def _remove(self, remove: Callable[[Client], list[str]]) -> list[str]:
        try:
            keys = self._redis.execute(remove)
        except RedisUnavailable:
            return []
        self._cache.mark_written(dict.fromkeys(keys))
        return keys

    def _cached_keys(self, conversation_id: str) -> list[str]:
        cached = self._cache.all().items()
        return [key for key, record in cached if record.branch(conversation_id)]
