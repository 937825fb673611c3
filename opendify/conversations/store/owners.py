"""Which chats each conversation is kept for: the mappings read the other way round. No I/O."""

from opendify.conversations.store.records import Entries, Patch


class Owners:
    """The keys of each conversation, kept equal to the entries by following every change."""

    def __init__(self, entries: Entries) -> None:
        # Nearly all conversations have one key. A set for each would take 200 bytes more.
        self._keys: dict[str, str | set[str]] = {}
        for key, mapping in entries.items():
            self._add(mapping.conversation_id, key)

    def of(self, conversation_id: str) -> list[str]:
        """The keys that have the conversation, sorted."""
        keys = self._keys.get(conversation_id)
        if keys is None:
            return []
        return sorted(keys) if isinstance(keys, set) else [keys]

    def follow(self, patch: Patch, entries: Entries) -> None:
        """Take note of a change that is about to be made to the entries."""
        for key, new in patch.items():
            old = entries.get(key)
            if old is not None:
                self._drop(old.conversation_id, key)
            if new is not None:
                self._add(new.conversation_id, key)

    def _add(self, conversation_id: str, key: str) -> None:
        keys = self._keys.setdefault(conversation_id, key)
        if isinstance(keys, set):
            keys.add(key)
        elif keys != key:
            self._keys[conversation_id] = {keys, key}

    def _drop(self, conversation_id: str, key: str) -> None:
        keys = self._keys[conversation_id]
        if isinstance(keys, set) and len(keys) > 1:
            keys.discard(key)
        else:
            del self._keys[conversation_id]
