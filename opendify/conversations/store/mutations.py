"""The changes to a chat's record, for every kind of store. No I/O.

A mutation is a function that derives a patch from the newest entries. It may be called several
times, and only the last result counts. ``now`` is in epoch seconds.
"""

from collections.abc import Callable
from typing import TypeAlias

from opendify.conversations.store.records import ConversationRecord, Entries, Patch

Mutation: TypeAlias = Callable[[Entries], Patch]

_MIN_TOUCH_SECONDS = 3600


def put(key: str, conversation_id: str, history_digest: str, now: float) -> Mutation:
    """Map a chat to a conversation."""

    def mutate(entries: Entries) -> Patch:
        old = entries.get(key)
        new = _updated_record(old, conversation_id, history_digest, now)
        return {key: new} if old is None or _needs_write(old, new) else {}

    return mutate


def touch(key: str, now: float) -> Mutation:
    """Record that a chat was used, at most once an hour."""

    def mutate(entries: Entries) -> Patch:
        old = entries.get(key)
        if old is None:
            return {}
        new = _updated_record(old, old.conversation_id, old.history_digest, now)
        return {key: new} if _needs_write(old, new) else {}

    return mutate


def forget(key: str, conversation_id: str) -> Mutation:
    """Remove the mapping, unless the chat is in another conversation by now."""
    return lambda entries: {key: None} if _maps_to(entries, key, conversation_id) else {}


def move(
    old_key: str, new_key: str, conversation_id: str, history_digest: str, now: float
) -> Mutation:
    """Move the conversation, if the first chat has it."""

    def mutate(entries: Entries) -> Patch:
        if not _maps_to(entries, old_key, conversation_id):
            return {}
        return {
            old_key: None,
            new_key: _updated_record(entries[old_key], conversation_id, history_digest, now),
        }

    return mutate


def adopt(newcomers: Entries, overwrite: bool) -> Mutation:
    """Import records unchanged; an existing record that was used later is kept, unless
    ``overwrite``."""

    def mutate(entries: Entries) -> Patch:
        def should_import(key: str, newcomer: ConversationRecord) -> bool:
            old = entries.get(key)
            if old is None:
                return True
            return old != newcomer and (overwrite or old.last_used <= newcomer.last_used)

        return {key: record for key, record in newcomers.items() if should_import(key, record)}

    return mutate


def _updated_record(
    old: ConversationRecord | None, conversation_id: str, history_digest: str, now: float
) -> ConversationRecord:
    seconds = int(now)
    created_at = old.created_at if old and old.conversation_id == conversation_id else seconds
    return ConversationRecord(conversation_id, created_at, seconds, history_digest)


def _needs_write(old: ConversationRecord, new: ConversationRecord) -> bool:
    return new.last_used - old.last_used >= _MIN_TOUCH_SECONDS or (
        (old.conversation_id, old.history_digest) != (new.conversation_id, new.history_digest)
    )


def _maps_to(entries: Entries, key: str, conversation_id: str) -> bool:
    record = entries.get(key)
    return record is not None and record.conversation_id == conversation_id
