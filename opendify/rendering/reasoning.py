"""Tells the reasoning in an answer's text from the answer, while it arrives. No I/O.

Dify passes on what its model plugins write in front of the answer: ``<think>\\n...\\n</think>``
since 1.0.0 (langgenius/dify#13392), a ``<details>`` block with the summary *Thinking...* in 0.15.
What counts as such a tag, and what is done about it:

* Only at the very start of a section, or right after another block of reasoning. White space may
  stand before it and goes with it. Anywhere else a tag is text that somebody wrote about tags.
* Letters in any case, and attributes, as Dify's own LLM node reads them
  (``<think[^>]*>(.*?)</think>``, IGNORECASE); ``<thinking>`` too. As there, a block ends at the
  first closing tag: what an inner ``<think>`` opens is not counted.
* A block without an end (a stopped or failed run) is reasoning to the end of its section.
* Taken out besides the tags: the line end right after the opening tag, the one right before the
  closing tag, and the blank lines between the closing tag and the answer.
* Put in: an empty line between two blocks, whose texts would run into each other.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

# Bounds of what is held back for a tag that may still come. Longer white space, and a longer tag,
# are text.
_MARGIN = r"\s{0,64}"
_GAP = r"\s{0,16}"
_ATTRIBUTES = r"(?:[ \t][^<>\n]{0,200})?"

# Tags as sequences of patterns, of which each may be the last that has arrived.
_THINK = (*"<think", _ATTRIBUTES, ">")
_THINKING = (*"<thinking", _ATTRIBUTES, ">")
_SUMMARY = (*"<summary", _ATTRIBUTES, ">", _GAP, *"Thinking", r"[\s.…]{0,16}", *"</summary>")
_DETAILS = (*"<details", _ATTRIBUTES, ">", _GAP, *_SUMMARY)

_BETWEEN_BLOCKS = "\n\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the text, never empty."""

    text: str
    is_reasoning: bool


class ReasoningParser:
    """Splits one answer, fed in any pieces; how it was cut does not show in what comes out.

    Every method returns what is certain by then, in order, with neighbours of one kind joined.
    Held back is only what may be part of a tag or of the white space that goes with one.
    """

    def __init__(self) -> None:
        self._state = _State.START
        self._closing_tag = _THINK_CLOSING
        self._pending = ""
        self._has_reasoning = False
        self._separator = ""

    def feed(self, text: str) -> list[Piece]:
        """Takes the next text of the answer."""
        if self._state is _State.ANSWER:
            return [Piece(text, False)] if text else []
        self._pending += text
        pieces: list[Piece] = []
        while self._pending and self._advance(pieces):
            pass
        return pieces

    def start_section(self) -> list[Piece]:
        """A new part of the answer begins, of another node or another round: tags may come again.

        Returns what was held back of the part before.
        """
        pieces: list[Piece] = []
        if self._state in (_State.OPENED, _State.INSIDE):
            self._add_reasoning(pieces, self._pending)
        else:
            _add(pieces, self._pending, False)
        self._pending = ""
        self._state = _State.START
        return pieces

    def pause(self) -> list[Piece]:
        """Another speaks meanwhile. A block that is open, or a tag that has begun, goes on later;
        else a new section begins then."""
        is_inside = self._state in (_State.OPENED, _State.INSIDE)
        return [] if is_inside or self._pending.strip() else self.start_section()

    def close(self) -> list[Piece]:
        """The answer is over: returns what was held back."""
        return self.start_section()

    def _advance(self, pieces: list[Piece]) -> bool:
        """Goes one step through what is held; False if that needs more text, or the rest is out."""
        match self._state:
            case _State.OPENED:
                return self._skip_line_end()
            case _State.INSIDE:
                return self._read_block(pieces)
            case _State.CLOSED:
                self._pending = _BLANK_LINES.sub("", self._pending)
        return self._read_opening(pieces)

    def _read_opening(self, pieces: list[Piece]) -> bool:
        if opening := _OPENING.match(self._pending):
            self._pending = self._pending[opening.end() :]
            self._closing_tag = _DETAILS_CLOSING if opening["details"] else _THINK_CLOSING
            self._separator = _BETWEEN_BLOCKS if self._has_reasoning else ""
            self._state = _State.OPENED
            return True
        if not _OPENING_PREFIX.fullmatch(self._pending):
            self._state = _State.ANSWER
            _add(pieces, self._pending, False)
            self._pending = ""
        return False

    def _skip_line_end(self) -> bool:
        if self._pending == "\r":
            return False
        line_end = "\r\n" if self._pending.startswith("\r\n") else "\n"
        self._pending = self._pending.removeprefix(line_end)
        self._state = _State.INSIDE
        return True

    def _read_block(self, pieces: list[Piece]) -> bool:
        if closing := self._closing_tag.pattern.search(self._pending):
            self._add_reasoning(pieces, self._pending[: closing.start()])
            self._pending = self._pending[closing.end() :]
            self._state = _State.CLOSED
            return True
        certain = self._closing_tag.safe_length(self._pending)
        self._add_reasoning(pieces, self._pending[:certain])
        self._pending = self._pending[certain:]
        return False

    def _add_reasoning(self, pieces: list[Piece], text: str) -> None:
        if text:
            _add(pieces, self._separator + text, True)
            self._separator = ""
            self._has_reasoning = True


def split(text: str) -> tuple[str, str]:
    """The answer and the reasoning in a whole text of one section."""
    splitter = ReasoningParser()
    pieces = splitter.feed(text) + splitter.close()
    return _joined(pieces, is_reasoning=False), _joined(pieces, is_reasoning=True)


class _State(Enum):
    START = auto()
    OPENED = auto()
    INSIDE = auto()
    CLOSED = auto()
    ANSWER = auto()


class _ClosingTag:
    """How a block of reasoning ends; a line end may stand before its closing tags."""

    def __init__(self, *tags: str) -> None:
        sequences = [(*line_end, *tag) for tag in tags for line_end in ("\r\n", "\n", "")]
        self.pattern = re.compile(_any_of("".join(each) for each in sequences), re.IGNORECASE)
        self._partial = re.compile(_prefix_pattern(*sequences) + r"\Z", re.IGNORECASE)
        self._max_length = max(map(len, sequences)) - 1

    def safe_length(self, text: str) -> int:
        """The length of ``text`` without the ending that may have begun at its end."""
        begun = self._partial.search(text, max(0, len(text) - self._max_length))
        return begun.start() if begun else len(text)


def _any_of(patterns: Iterable[str]) -> str:
    return f"(?:{'|'.join(patterns)})"


def _prefix_pattern(*sequences: tuple[str, ...]) -> str:
    """A pattern for everything, down to nothing, that one of the sequences can begin with."""
    nested = []
    for sequence in sequences:
        pattern = ""
        for part in reversed(sequence):
            pattern = f"(?:{part}{pattern})?"
        nested.append(pattern)
    return _any_of(nested)


def _add(pieces: list[Piece], text: str, is_reasoning: bool) -> None:
    if not text:
        return
    if pieces and pieces[-1].is_reasoning is is_reasoning:
        text = pieces.pop().text + text
    pieces.append(Piece(text, is_reasoning))


def _joined(pieces: Iterable[Piece], *, is_reasoning: bool) -> str:
    return "".join(piece.text for piece in pieces if piece.is_reasoning is is_reasoning)


_THINK_CLOSING = _ClosingTag("</think>", "</thinking>")
_DETAILS_CLOSING = _ClosingTag("</details>")
_OPENING = re.compile(
    f"{_MARGIN}(?:{''.join(_THINK)}|{''.join(_THINKING)}|(?P<details>{''.join(_DETAILS)}))",
    re.IGNORECASE,
)
_OPENING_PREFIX = re.compile(_MARGIN + _prefix_pattern(_THINK, _THINKING, _DETAILS), re.IGNORECASE)
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]{0,64}\n)+")
