"""What each use of a chat does to its mapping, in every kind of store. No I/O.

A use is a plan: given the newest entries, it says what to change. It may be made several times,
and only the last counts. ``now`` is in epoch seconds.
"""

from collections.abc import Callable
from typing import TypeAlias

from opendify.conversations.store.records import ConversationRecord, Entries, Patch

Mutation: TypeAlias = Callable[[Entries], Patch]

_NOTED_AGAIN_AFTER = 3600


def put(key: str, conversation_id: str, heard: str, now: float) -> Mutation:
    """Map a chat to a conversation."""

    def plan(entries: Entries) -> Patch:
        old = entries.get(key)
        new = _used(old, conversation_id, heard, now)
        return {key: new} if old is None or _is_worth_noting(old, new) else {}

    return plan


def touch(key: str, now: float) -> Mutation:
    """Note that a chat was used, unless that was noted within the hour."""

    def plan(entries: Entries) -> Patch:
        old = entries.get(key)
        if old is None:
            return {}
        new = _used(old, old.conversation_id, old.heard, now)
        return {key: new} if _is_worth_noting(old, new) else {}

    return plan


def forget(key: str, conversation_id: str) -> Mutation:
    """Remove the mapping, unless the chat is in another conversation by now."""
    return lambda entries: {key: None} if _is_in(entries, key, conversation_id) else {}


def move(old_key: str, new_key: str, conversation_id: str, heard: str, now: float) -> Mutation:
    """Hand the conversation over, if the first chat has it."""

    def plan(entries: Entries) -> Patch:
        if not _is_in(entries, old_key, conversation_id):
            return {}
        return {old_key: None, new_key: _used(entries[old_key], conversation_id, heard, now)}

    return plan


def adopt(newcomers: Entries, overwrite: bool) -> Mutation:
    """Take over mappings as they are; what is there and was used later wins over them, unless
    they are to overwrite it."""

    def plan(entries: Entries) -> Patch:
        def is_wanted(key: str, newcomer: ConversationRecord) -> bool:
            old = entries.get(key)
            if old is None:
                return True
            return old != newcomer and (overwrite or old.last_used <= newcomer.last_used)

        return {key: mapping for key, mapping in newcomers.items() if is_wanted(key, mapping)}

    return plan


def _used(
    old: ConversationRecord | None, conversation_id: str, heard: str, now: float
) -> ConversationRecord:
    seconds = int(now)
    created_at = old.created_at if old and old.conversation_id == conversation_id else seconds
    return ConversationRecord(conversation_id, created_at, seconds, heard)


def _is_worth_noting(old: ConversationRecord, new: ConversationRecord) -> bool:
    return new.last_used - old.last_used >= _NOTED_AGAIN_AFTER or (
        (old.conversation_id, old.heard) != (new.conversation_id, new.heard)
    )


def _is_in(entries: Entries, key: str, conversation_id: str) -> bool:
    mapping = entries.get(key)
    return mapping is not None and mapping.conversation_id == conversation_id
