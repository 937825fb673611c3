"""Answers that are worth keeping for a while, each asked for once. No I/O."""

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
    """Strings by key, bounded in number and age; who asks for one that is being made waits for it.

    ``clock`` gives seconds; the least recently used go first.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float]) -> None:
        self._max_entries = most
        self._max_age = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def get(
        self, key: Hashable, make: Callable[[], str], look: Callable[[], None] = lambda: None
    ) -> str:
        """What is kept for ``key``, else what ``make`` returns. What it raises is not kept.

        ``look`` is called now and then while another makes it, and may raise to end the wait.
        """
        entry, is_new = self._entry(key)
        if is_new:
            return self._make(key, entry, make)
        return make() if _has_failed(entry, look) else entry.value.result()

    def forget(self, unwanted: Callable[[Hashable, str], bool]) -> None:
        """Drops what ``unwanted`` says yes to, given key and value."""
        with self._lock:
            for key, entry in list(self._entries.items()):
                if _is_ready(entry) and unwanted(key, entry.value.result()):
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


def _has_failed(entry: _Entry, look: Callable[[], None]) -> bool:
    while True:
        try:
            return entry.value.exception(_POLL_SECONDS) is not None
        except TimeoutError:
            look()


def _is_ready(entry: _Entry) -> bool:
    return entry.value.done() and entry.value.exception() is None
