"""What one process remembers of the chats while the place where they are kept is away. No I/O."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from opendify.conversations.store.mutations import Mutation
from opendify.conversations.store.records import ConversationRecord, Entries, Patch


class FallbackCache:
    """The mappings seen last, a bounded number of them; some of them were not kept yet.

    Thread-safe. Those that were not kept are the last to be forgotten.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, ConversationRecord] = OrderedDict()
        self._unkept: OrderedDict[str, ConversationRecord] = OrderedDict()

    def get(self, key: str) -> ConversationRecord | None:
        with self._lock:
            return self._unkept.get(key) or self._seen.get(key)

    def unwritten(self, key: str) -> ConversationRecord | None:
        """The mapping, if it was not kept yet."""
        return self._unkept.get(key)

    def some_unwritten(self, number: int) -> Entries:
        """Those that wait longest to be kept."""
        with self._lock:
            return dict(islice(self._unkept.items(), number))

    def all(self) -> Entries:
        with self._lock:
            return {**self._seen, **self._unkept}

    def see(self, key: str, mapping: ConversationRecord | None) -> None:
        """Remember what is kept of a chat."""
        with self._lock:
            self._note(self._seen, key, mapping)

    def change(self, keys: Iterable[str], plan: Mutation) -> Patch:
        """Make a change to what is remembered, which could not be kept; returns it."""
        with self._lock:
            known = {key: self._unkept.get(key) or self._seen.get(key) for key in keys}
            patch = plan({key: mapping for key, mapping in known.items() if mapping})
            for key, mapping in patch.items():
                self._note(self._unkept, key, mapping)
                self._seen.pop(key, None)
        return patch

    def mark_written(self, patch: Patch) -> None:
        """Take note that a change was kept."""
        with self._lock:
            for key, mapping in patch.items():
                self._unkept.pop(key, None)
                self._note(self._seen, key, mapping)

    def settle(self, key: str, mapping: ConversationRecord) -> None:
        """Take note that this mapping waits no longer, unless a newer one waits by now."""
        with self._lock:
            if self._unkept.get(key) is mapping:
                del self._unkept[key]
                self._note(self._seen, key, mapping)

    def _note(
        self,
        place: OrderedDict[str, ConversationRecord],
        key: str,
        mapping: ConversationRecord | None,
    ) -> None:
        if mapping is None:
            place.pop(key, None)
        else:
            place[key] = mapping
            place.move_to_end(key)
        while len(place) > self._most:
            place.popitem(last=False)
