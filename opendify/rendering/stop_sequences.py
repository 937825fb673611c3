"""Cuts a text at the stop sequences of the request, which Dify does not support. No I/O."""

import re
from collections.abc import Sequence


class StopSequenceFilter:
    """Passes on text, fed in chunks of any size, up to the first stop sequence.

    The stop sequence and everything after it are dropped, ``hit`` becomes true, and ``found`` is
    the sequence. Only text that may be the start of a stop sequence is held back. If one sequence
    may have started before another that is already complete, the earlier start wins, so ``hit`` is
    not set until that is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.hit = False
        self.found = ""
        self._stops = tuple(stop for stop in stops if stop)
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._max_partial_length = max(map(len, self._stops), default=1) - 1
        self._any_stop = re.compile("|".join(map(re.escape, self._stops)))
        self._pending = ""

    def feed(self, text: str) -> str:
        """Adds text; returns what can be shown now."""
        if self.hit or not self._stops:
            return "" if self.hit else text
        text = self._pending + text
        return self._cut(text, self._partial_match_start(text))

    def close(self) -> str:
        """Ends the text: returns what was held back, up to a stop sequence in it."""
        return "" if self.hit else self._cut(self._pending, len(self._pending))

    def _cut(self, text: str, end: int) -> str:
        stop = self._any_stop.search(text) if self._stops else None
        if stop and stop.start() <= end:
            self.hit, self.found = True, stop[0]
            self._pending = ""
            return text[: stop.start()]
        self._pending = text[end:]
        return text[:end]

    def _partial_match_start(self, text: str) -> int:
        for start in range(max(0, len(text) - self._max_partial_length), len(text)):
            if text[start] in self._first_characters and self._is_partial_match(text[start:]):
                return start
        return len(text)

    def _is_partial_match(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)
