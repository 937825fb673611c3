"""What every kind of store of the conversations can be asked. No I/O."""

from collections.abc import Iterator
from typing import Protocol

from opendify.conversations.store.records import ConversationRecord, Entries, Stats


class ConversationStore(Protocol):
    """Chats and their Dify conversations. Keys mean nothing here.

    Several threads, processes and instances may share what is kept. No method raises for trouble
    with the place where it is kept: the log tells it, and the answers still go out.
    """

    @property
    def kind(self) -> str:
        """What operators are told: `file` or `redis`."""
        ...

    @property
    def available(self) -> bool:
        """False while only the memory of this process answers."""
        ...

    def get(self, key: str) -> ConversationRecord | None: ...

    def put(self, key: str, conversation_id: str, heard: str = "") -> None:
        """Map a chat to a conversation, used now."""

    def touch(self, key: str) -> None:
        """Note that a chat was used, unless that was noted within the hour."""

    def forget(self, key: str, conversation_id: str) -> None:
        """Remove the mapping, unless the chat is in another conversation by now."""

    def move(self, old_key: str, new_key: str, conversation_id: str, heard: str) -> bool:
        """Hand the conversation over from one chat to another; False when the first has it not."""
        ...

    def adopt(self, newcomers: Entries, overwrite: bool = False) -> int:
        """Take over mappings as they are, times and all; returns how many.

        What is there and was used later wins over them, unless they are to `overwrite` it.
        """
        ...

    def owner(self, conversation_id: str) -> str | None:
        """The key that has the conversation, the least one where there are several."""
        ...

    def owners(self, conversation_id: str) -> list[str]:
        """All keys that have the conversation, sorted."""
        ...

    def stats(self) -> Stats: ...

    def keys(self) -> list[str]:
        """All keys, in no order."""
        ...

    def entries(self, limit: int | None = None) -> Iterator[tuple[str, ConversationRecord]]:
        """The mappings and their keys as they are now, those used last first."""
        ...

    def cleanup(self, max_age_days: float) -> int:
        """Remove the mappings that were not used for so many days; returns how many."""
        ...

    def remove_conversation(self, conversation_id: str) -> list[str]:
        """Remove every mapping to the conversation; returns their keys."""
        ...

    def close(self) -> None:
        """Write what is not written yet and close everything; a later use opens it again."""
