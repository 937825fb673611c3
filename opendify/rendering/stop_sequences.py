"""Ends a text at the caller's stop sequences, which Dify knows nothing of. No I/O."""

import re
from collections.abc import Sequence


class StopSequenceFilter:
    """Passes a text on, fed in any pieces, up to the first place where a stop sequence stands.

    The sequence itself is left out, and nothing follows it. ``hit`` tells that it was found. Held
    back is only what may be the start of one. Where a sequence may have begun before another that
    is complete, the earlier place wins, so ``hit`` waits until it is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.hit = False
        self._stops = tuple(stop for stop in stops if stop)
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._max_partial_length = max(map(len, self._stops), default=1) - 1
        self._any_stop = re.compile("|".join(map(re.escape, self._stops)))
        self._pending = ""

    def feed(self, text: str) -> str:
        """Takes the next text; returns what can be shown by now."""
        if self.hit or not self._stops:
            return "" if self.hit else text
        text = self._pending + text
        return self._cut(text, self._partial_match_start(text))

    def close(self) -> str:
        """The text is over: returns what was held back, up to a stop sequence in it."""
        return "" if self.hit else self._cut(self._pending, len(self._pending))

    def _cut(self, text: str, begun_at: int) -> str:
        stop = self._any_stop.search(text) if self._stops else None
        if stop and stop.start() <= begun_at:
            self.hit = True
            self._pending = ""
            return text[: stop.start()]
        self._pending = text[begun_at:]
        return text[:begun_at]

    def _partial_match_start(self, text: str) -> int:
        for start in range(max(0, len(text) - self._max_partial_length), len(text)):
            if text[start] in self._first_characters and self._is_partial_match(text[start:]):
                return start
        return len(text)

    def _is_partial_match(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)
