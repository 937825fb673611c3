"""What one process remembers of the chats while the backend is unreachable. No I/O."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from opendify.conversations.store.mutations import Mutation
from opendify.conversations.store.records import ChatRecord, Entries, Patch


class FallbackCache:
    """The most recently seen records, at most ``max_size``, and as many unwritten ones.

    Thread-safe. Unwritten records have a limit of their own, so that reads do not evict them.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, ChatRecord] = OrderedDict()
        self._unwritten: OrderedDict[str, ChatRecord] = OrderedDict()

    def get(self, key: str) -> ChatRecord | None:
        with self._lock:
            return self._unwritten.get(key) or self._seen.get(key)

    def unwritten(self, key: str) -> ChatRecord | None:
        """The record, if it is not written yet."""
        return self._unwritten.get(key)

    def oldest_unwritten(self, limit: int) -> Entries:
        """The records that have waited longest to be written, at most ``limit``."""
        with self._lock:
            return dict(islice(self._unwritten.items(), limit))

    def all(self) -> Entries:
        with self._lock:
            return {**self._seen, **self._unwritten}

    def remember(self, key: str, record: ChatRecord | None) -> None:
        """Cache the stored record of a chat; None removes it."""
        with self._lock:
            self._set(self._seen, key, record)

    def change(self, keys: Iterable[str], mutation: Mutation) -> Patch:
        """Apply a mutation that could not be written; returns its patch."""
        with self._lock:
            known = {key: self._unwritten.get(key) or self._seen.get(key) for key in keys}
            patch = mutation({key: record for key, record in known.items() if record})
            for key, record in patch.items():
                self._set(self._unwritten, key, record)
                self._seen.pop(key, None)
        return patch

    def mark_written(self, patch: Patch) -> None:
        """A patch was written."""
        with self._lock:
            for key, record in patch.items():
                self._unwritten.pop(key, None)
                self._set(self._seen, key, record)

    def mark_one_written(self, key: str, record: ChatRecord) -> None:
        """This record no longer has to be written, unless a newer one waits by now."""
        with self._lock:
            if self._unwritten.get(key) is record:
                del self._unwritten[key]
                self._set(self._seen, key, record)

    def _set(
        self,
        records: OrderedDict[str, ChatRecord],
        key: str,
        record: ChatRecord | None,
    ) -> None:
        if record is None:
            records.pop(key, None)
        else:
            records[key] = record
            records.move_to_end(key)
        while len(records) > self._max_size:
            records.popitem(last=False)
