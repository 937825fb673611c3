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


def new_conversations(
    address: str,
    folder: Path,
    *,
    clock: Callable[[], float],
    max_age_days: float | None,
    max_entries: int,
) -> tuple[Conversations, TurnLocks]:
    """The store at an address of Redis, or in the folder where that is empty, and its locks.

    Nothing is opened before the first use.
    """
    store: Conversations
    if not address:
        store = ConversationStore(
            folder, clock=clock, max_age_days=max_age_days, max_entries=max_entries
        )
        return store, FileTurnLocks(folder)
    link = RedisLink(address, without_secrets(address))
    store = RedisStore(link, clock=clock, max_age_days=max_age_days, max_entries=max_entries)
    return store, RedisTurnLocks(link)
