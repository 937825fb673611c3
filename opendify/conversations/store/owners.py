"""The reverse index of the mappings: the chats of each conversation. No I/O."""

from opendify.conversations.store.records import Entries, Patch


class Owners:
    """The keys of each conversation, kept in sync with the entries."""

    def __init__(self, entries: Entries) -> None:
        # Nearly all conversations have one key. A set for each would take 200 bytes more.
        self._keys: dict[str, str | set[str]] = {}
        for key, record in entries.items():
            for branch in record.branches:
                self._add(branch.conversation_id, key)

    def keys_of(self, conversation_id: str) -> list[str]:
        """The keys that have the conversation, sorted."""
        keys = self._keys.get(conversation_id)
        if keys is None:
            return []
        return sorted(keys) if isinstance(keys, set) else [keys]

    def update(self, patch: Patch, entries: Entries) -> None:
        """Update the index for a patch that is about to be applied to the entries."""
        for key, new in patch.items():
            old = entries.get(key)
            for branch in old.branches if old else ():
                self._drop(branch.conversation_id, key)
            for branch in new.branches if new else ():
                self._add(branch.conversation_id, key)

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
