"""Which kind of store the conversations are kept in."""

from collections.abc import Callable
from pathlib import Path

from opendify.config.redis_url import without_secrets
from opendify.conversations.locks.files import FileTurnLocks, TurnLocks
from opendify.conversations.locks.redis import RedisTurnLocks
from opendify.conversations.store.base import ConversationStore
from opendify.conversations.store.json_file import JsonFileStore
from opendify.conversations.store.redis import RedisStore
from opendify.storage.redis_connection import RedisConnection


def new_link(address: str) -> RedisConnection | None:
    """The way to the Redis at this address, or None where that is empty: a file will do."""
    return RedisConnection(address, without_secrets(address)) if address else None


def new_conversations(
    link: RedisConnection | None,
    folder: Path,
    *,
    clock: Callable[[], float],
    max_age_days: float | None,
    max_entries: int,
) -> tuple[ConversationStore, TurnLocks]:
    """The store in the Redis at the end of the link, or in the folder where there is none, and its
    locks.

    Nothing is opened before the first use.
    """
    store: ConversationStore
    if link is None:
        store = JsonFileStore(
            folder, clock=clock, max_age_days=max_age_days, max_entries=max_entries
        )
        return store, FileTurnLocks(folder)
    store = RedisStore(link, clock=clock, max_age_days=max_age_days, max_entries=max_entries)
    return store, RedisTurnLocks(link)
