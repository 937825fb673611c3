"""A cache of strings, each computed by one thread at a time. No I/O."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field

_POLL_SECONDS = 0.25


@dataclass(slots=True)
class _Entry:
    expires: float
    value: "Future[str]" = field(default_factory=Future)


class SingleFlightCache:
    """Strings by key, limited in number and age. Threads that need a value that is being computed
    wait for it.

    ``clock`` returns seconds; the least recently used entries are evicted first.
    """

    def __init__(self, max_entries: int, max_age: float, clock: Callable[[], float]) -> None:
        self._max_entries = max_entries
        self._max_age = max_age
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def get(
        self,
        key: Hashable,
        make: Callable[[], str],
        check_cancelled: Callable[[], None] = lambda: None,
    ) -> str:
        """The cached value of ``key``, else the result of ``make``. Exceptions are not cached.

        ``check_cancelled`` is called regularly while another thread computes the value, and may
        raise to end the wait.
        """
        entry, is_new = self._entry(key)
        if is_new:
            return self._make(key, entry, make)
        return make() if _has_failed(entry, check_cancelled) else entry.value.result()

    def invalidate(self, predicate: Callable[[Hashable, str], bool]) -> None:
        """Removes the entries whose key and value satisfy ``predicate``."""
        with self._lock:
            for key, entry in list(self._entries.items()):
                if _is_ready(entry) and predicate(key, entry.value.result()):
                    del self._entries[key]

    def _entry(self, key: Hashable) -> tuple[_Entry, bool]:
        now = self._clock()
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.expires > now:
                self._entries.move_to_end(key)
                return entry, False
            entry = self._entries[key] = _Entry(now + self._max_age)
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
            return entry, True

    def _make(self, key: Hashable, entry: _Entry, make: Callable[[], str]) -> str:
        try:
            value = make()
        except BaseException as exc:
            with self._lock:
                if self._entries.get(key) is entry:
                    del self._entries[key]
            entry.value.set_exception(exc)
            raise
        entry.value.set_result(value)
        return value


def _has_failed(entry: _Entry, check_cancelled: Callable[[], None]) -> bool:
    while True:
        try:
            return entry.value.exception(_POLL_SECONDS) is not None
        except TimeoutError:
            check_cancelled()


def _is_ready(entry: _Entry) -> bool:
    return entry.value.done() and entry.value.exception() is None
