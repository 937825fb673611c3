"""The text of an answer received so far, reasoning included; detects repeated text. No I/O."""

from collections.abc import Sequence

# A text that contains this much of the end of another counts as a repetition of it.
_REPEAT_SUFFIX_CHARS = 40


class Transcript:
    """The received text of each node."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}

    def add(self, node: str, text: str) -> None:
        """Appends text that this node has produced."""
        self._texts.setdefault(node, []).append(text)

    def __contains__(self, node: str) -> bool:
        """Whether this node has produced any text."""
        return node in self._texts

    def node_texts(self) -> Sequence[str]:
        """The text of each node that has produced any."""
        return ["".join(texts) for texts in self._texts.values()]

    def full_text(self) -> str:
        """The texts of all nodes, concatenated."""
        return "".join(self.node_texts())

    def new_text(self, text: str) -> str | None:
        """The part of ``text`` that is new, if ``text`` repeats all or part of what was received
        (ignoring white space); None if it is not a repetition."""
        received = self.full_text()
        if text.startswith(received):
            return text.removeprefix(received)
        text, received = ("".join(words.split()) for words in (text, received))
        repeats = text in received or (received != "" and received[-_REPEAT_SUFFIX_CHARS:] in text)
        return "" if repeats else None
