"""The interface of the conversation stores. No I/O."""

from collections.abc import Iterator
from typing import Protocol

from opendify.conversations.store.records import ConversationRecord, Entries, Stats


class ConversationStore(Protocol):
    """Maps chats to Dify conversations. Keys are opaque here.

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

    def get(self, key: str) -> ConversationRecord | None: ...

    def put(self, key: str, conversation_id: str, history_digest: str = "") -> None:
        """Map a chat to a conversation, used now."""

    def touch(self, key: str) -> None:
        """Record that a chat was used, at most once an hour."""

    def forget(self, key: str, conversation_id: str) -> None:
        """Remove the mapping, unless the chat is in another conversation by now."""

    def move(self, old_key: str, new_key: str, conversation_id: str, history_digest: str) -> bool:
        """Move the conversation to another chat; False if the first one does not have it."""
        ...

    def adopt(self, newcomers: Entries, overwrite: bool = False) -> int:
        """Import records unchanged, including their times; returns how many.

        An existing record that was used later is kept, unless `overwrite`.
        """
        ...

    def owner(self, conversation_id: str) -> str | None:
        """The key that has the conversation; the smallest if there are several."""
        ...

    def owners(self, conversation_id: str) -> list[str]:
        """All keys that have the conversation, sorted."""
        ...

    def stats(self) -> Stats: ...

    def keys(self) -> list[str]:
        """All keys, unordered."""
        ...

    def entries(self, limit: int | None = None) -> Iterator[tuple[str, ConversationRecord]]:
        """The current keys and records, most recently used first."""
        ...

    def cleanup(self, max_age_days: float) -> int:
        """Remove the mappings not used for `max_age_days`; returns how many."""
        ...

    def remove_conversation(self, conversation_id: str) -> list[str]:
        """Remove every mapping to the conversation; returns their keys."""
        ...

    def close(self) -> None:
        """Write pending changes and close everything; a later use opens it again."""
