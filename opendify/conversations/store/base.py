"""The interface of the conversation stores. No I/O."""

from collections.abc import Iterator
from typing import Protocol

from opendify.conversations.store.mutations import Update
from opendify.conversations.store.records import ChatRecord, Entries, Stats


class ConversationStore(Protocol):
    """Maps chats to their Dify conversations. Keys are opaque here.

    Several threads, processes and instances may share the stored mappings. No method raises because
    the backend fails: that is logged, and responses still go out.
    """

    @property
    def kind(self) -> str:
        """The name of the kind for operators: `file` or `redis`."""
        ...

    @property
    def available(self) -> bool:
        """False while only the memory of this process answers."""
        ...

    def get(self, key: str) -> ChatRecord | None: ...

    def put(self, key: str, conversation_id: str, update: Update) -> None:
        """Make the conversation the branch of the chat that was used last. Where a chat has too
        many branches, the least recently used is dropped."""

    def update_if(
        self, key: str, conversation_id: str, expected_digest: str, update: Update
    ) -> bool:
        """Update a branch, used now; False if it has another history digest, or does not exist."""
        ...

    def forget(self, key: str, conversation_id: str) -> None:
        """Remove a branch; a chat without branches is removed."""

    def move(self, old_key: str, new_key: str, conversation_id: str, update: Update) -> bool:
        """Move a branch to another chat, used now; False if the first chat does not have it. With
        the same key twice it is only updated."""
        ...

    def adopt(self, newcomers: Entries, overwrite: bool = False) -> int:
        """Import records unchanged, including their times; returns how many changed something.

        The branches of a chat that exists already are merged: of the same conversation, the record
        that was used later counts. With `overwrite`, the imported chat replaces it.
        """
        ...

    def owners(self, conversation_id: str) -> list[str]:
        """All keys that have the conversation, sorted."""
        ...

    def stats(self) -> Stats: ...

    def keys(self) -> list[str]:
        """All keys, unordered."""
        ...

    def entries(self, limit: int | None = None) -> Iterator[tuple[str, ChatRecord]]:
        """The current keys and records, most recently used first."""
        ...

    def cleanup(self, max_age_days: float) -> int:
        """Remove the chats not used for `max_age_days`; returns how many."""
        ...

    def remove_conversation(self, conversation_id: str) -> list[str]:
        """Remove the conversation from every chat; returns their keys."""
        ...

    def close(self) -> None:
        """Write pending changes and close everything; a later use opens it again."""
