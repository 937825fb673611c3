"""Chooses the store of the conversations."""

from collections.abc import Callable
from pathlib import Path

from opendify.config.redis_url import redact_url
from opendify.conversations.locks.files import FileLocks, Locks
from opendify.conversations.locks.redis import RedisLocks
from opendify.conversations.store.base import ConversationStore
from opendify.conversations.store.json_file import JsonFileStore
from opendify.conversations.store.redis import RedisStore
from opendify.storage.redis_connection import RedisConnection


def new_redis_connection(address: str) -> RedisConnection | None:
    """The connection to the Redis at this address; None for an empty one, which means the JSON
    file."""
    return RedisConnection(address, redact_url(address)) if address else None


def new_store_and_locks(
    redis: RedisConnection | None,
    folder: Path,
    *,
    clock: Callable[[], float],
    max_age_days: float | None,
    max_entries: int,
) -> tuple[ConversationStore, Locks]:
    """The store and its locks, in Redis, or in the folder where ``redis`` is None.

    Nothing is opened before the first use.
    """
    store: ConversationStore
    if redis is None:
        store = JsonFileStore(
            folder, clock=clock, max_age_days=max_age_days, max_entries=max_entries
        )
        return store, FileLocks(folder)
    store = RedisStore(redis, clock=clock, max_age_days=max_age_days, max_entries=max_entries)
    return store, RedisLocks(redis)
