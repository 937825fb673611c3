"""The changes to a chat's record, for every kind of store. No I/O.

A mutation is a function that derives a patch from the newest entries. It may be called several
times, and only the last result counts. ``now`` is in epoch seconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from opendify.conversations.store.records import (
    ChatRecord,
    ConversationRecord,
    Entries,
    Patch,
    merge,
)

Mutation: TypeAlias = Callable[[Entries], Patch]


@dataclass(frozen=True, slots=True)
class Update:
    """What changes in a branch. ``reason`` and ``system_digest`` stay as they are where None."""

    history_digest: str
    reason: str | None = None
    system_digest: str | None = None


def put(key: str, conversation_id: str, update: Update, now: float) -> Mutation:
    """Make the conversation the branch of the chat that was used last."""

    def mutate(entries: Entries) -> Patch:
        chat = entries.get(key)
        old = chat.branch(conversation_id) if chat else None
        return {key: _with_branch(chat, _updated(old, conversation_id, update, now))}

    return mutate


def update_if(
    key: str, conversation_id: str, expected_digest: str, update: Update, now: float
) -> Mutation:
    """Update a branch, if it has the expected history digest."""

    def mutate(entries: Entries) -> Patch:
        chat = entries.get(key)
        old = chat.branch(conversation_id) if chat else None
        if chat is None or old is None or old.history_digest != expected_digest:
            return {}
        return {key: chat.with_branch(_updated(old, conversation_id, update, now))}

    return mutate


def forget(keys: Sequence[str], conversation_id: str) -> Mutation:
    """Remove the conversation from these chats."""

    def mutate(entries: Entries) -> Patch:
        chats = ((key, entries.get(key)) for key in keys)
        return {
            key: chat.without(conversation_id)
            for key, chat in chats
            if chat and chat.branch(conversation_id)
        }

    return mutate


def move(old_key: str, new_key: str, conversation_id: str, update: Update, now: float) -> Mutation:
    """Move a branch to another chat, or update it where both are the same."""

    def mutate(entries: Entries) -> Patch:
        chat = entries.get(old_key)
        old = chat.branch(conversation_id) if chat else None
        if chat is None or old is None:
            return {}
        branch = _updated(old, conversation_id, update, now)
        if old_key == new_key:
            return {old_key: chat.with_branch(branch)}
        return {
            old_key: chat.without(conversation_id),
            new_key: _with_branch(entries.get(new_key), branch),
        }

    return mutate


def adopt(newcomers: Entries, overwrite: bool) -> Mutation:
    """Import records unchanged. The branches of a chat that exists already are merged with them;
    with ``overwrite``, the newcomer replaces it."""

    def mutate(entries: Entries) -> Patch:
        def adopted(key: str, newcomer: ChatRecord) -> ChatRecord:
            old = entries.get(key)
            return newcomer if old is None or overwrite else merge(old, newcomer)

        merged = {key: adopted(key, newcomer) for key, newcomer in newcomers.items()}
        return {key: record for key, record in merged.items() if record != entries.get(key)}

    return mutate


def _with_branch(chat: ChatRecord | None, branch: ConversationRecord) -> ChatRecord:
    return chat.with_branch(branch) if chat else ChatRecord((branch,))


def _updated(
    old: ConversationRecord | None, conversation_id: str, update: Update, now: float
) -> ConversationRecord:
    def chosen(new: str | None, previous: str) -> str:
        return previous if new is None else new

    seconds = int(now)
    return ConversationRecord(
        conversation_id,
        old.created_at if old else seconds,
        seconds,
        update.history_digest,
        chosen(update.reason, old.reason if old else ""),
        chosen(update.system_digest, old.system_digest if old else ""),
    )
