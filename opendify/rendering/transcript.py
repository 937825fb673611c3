<<<<<<< HEAD
"""What was heard of an answer's text by now, thoughts included; and what comes again. No I/O."""
=======
"""The text of an answer received so far, reasoning included; detects repeated text. No I/O."""
>>>>>>> bd4b791 (Keep the docstring of the transcript on one line)

from collections.abc import Sequence

# So much of the end of a text shows that another one repeats it.
_REPEAT_SUFFIX_CHARS = 40


class Transcript:
    """The texts of each node of an answer."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}

    def add(self, node: str, text: str) -> None:
        """This node has said something more."""
        self._texts.setdefault(node, []).append(text)

    def __contains__(self, node: str) -> bool:
        """Whether this node has said anything."""
        return node in self._texts

    def node_texts(self) -> Sequence[str]:
        """What each of the nodes has said that have said anything."""
        return ["".join(texts) for texts in self._texts.values()]

    def full_text(self) -> str:
        """All that was said, node after node."""
        return "".join(self.node_texts())

    def new_text(self, text: str) -> str | None:
        """What a text adds that may be a repetition of all or of some of what was heard, blanks
        aside; None where it is none."""
        heard = self.full_text()
        if text.startswith(heard):
            return text.removeprefix(heard)
        text, heard = ("".join(words.split()) for words in (text, heard))
        repeats = text in heard or (heard != "" and heard[-_REPEAT_SUFFIX_CHARS:] in text)
        return "" if repeats else None
