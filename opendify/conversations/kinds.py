"""Which kind of store the conversations are kept in."""

from collections.abc import Callable
from pathlib import Path

from opendify.config.store_address import without_secrets
from opendify.conversations.contract import Conversations
from opendify.conversations.redis_link import RedisLink
from opendify.conversations.redis_locks import RedisTurnLocks
from opendify.conversations.redis_store import RedisStore
from opendify.conversations.store import ConversationStore
from opendify.conversations.turn_locks import FileTurnLocks, TurnLocks


def new_link(address: str) -> RedisLink | None:
    """The way to the Redis at this address, or None where that is empty: a file will do."""
    return RedisLink(address, without_secrets(address)) if address else None


def new_conversations(
    link: RedisLink | None,
    folder: Path,
    *,
    clock: Callable[[], float],
    max_age_days: float | None,
    max_entries: int,
) -> tuple[Conversations, TurnLocks]:
    """The store in the Redis at the end of the link, or in the folder where there is none, and its
    locks.

    Nothing is opened before the first use.
    """
    store: Conversations
    if link is None:
        store = ConversationStore(
            folder, clock=clock, max_age_days=max_age_days, max_entries=max_entries
        )
        return store, FileTurnLocks(folder)
    store = RedisStore(link, clock=clock, max_age_days=max_age_days, max_entries=max_entries)
    return store, RedisTurnLocks(link)
