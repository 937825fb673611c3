"""The text of an answer received so far, reasoning included; detects repeated text. No I/O."""

from collections.abc import Collection
from itertools import groupby
from operator import itemgetter

Source = tuple[str, str]
"""The node that wrote a text, and the output of the node that the text is a part of."""

# A text that contains this much of the end of another counts as a repetition of it.
_REPEAT_SUFFIX_CHARS = 40


class Transcript:
    """The received text, with its sources."""

    def __init__(self) -> None:
        self._pieces: list[tuple[Source, str]] = []
        self._nodes: set[str] = set()
        self._round_start = 0

    def add(self, source: Source, text: str) -> None:
        """Appends text of this source."""
        self._pieces.append((source, text))
        self._nodes.add(source[0])

    def begin_round(self) -> None:
        """An agent has called a tool: what follows is its next round."""
        self._round_start = len(self._pieces)

    def __contains__(self, node: str) -> bool:
        """Whether this node has produced any text."""
        return node in self._nodes

    def texts(self) -> Collection[str]:
        """The text of each source that has produced any, and its passages between texts of other
        sources: an output that is told twice has two."""
        texts: dict[Source, list[str]] = {}
        passages = [
            (source, "".join(text for _, text in pieces))
            for source, pieces in groupby(self._pieces, itemgetter(0))
        ]
        for source, passage in passages:
            texts.setdefault(source, []).append(passage)
        return {passage for _, passage in passages} | set(map("".join, texts.values()))

    def full_text(self) -> str:
        """All text, in the order in which it was received."""
        return self._text_since(0)

    def new_text(self, text: str) -> str | None:
        """The part of ``text`` that is new, if ``text`` repeats all or part of what was received,
        or of the last round of it (ignoring white space); None if it is not a repetition."""
        whole, last_round = self.full_text(), self._text_since(self._round_start)
        for received in (whole, last_round):
            if text.startswith(received) and (received or not whole):
                return text.removeprefix(received)
        text, whole, last_round = map(_without_white_space, (text, whole, last_round))
        repeats = (
            text == whole
            or text in last_round
            or (last_round != "" and last_round[-_REPEAT_SUFFIX_CHARS:] in text)
        )
        return "" if repeats else None

    def _text_since(self, start: int) -> str:
        return "".join(text for _, text in self._pieces[start:])


def _without_white_space(text: str) -> str:
    return "".join(text.split())
