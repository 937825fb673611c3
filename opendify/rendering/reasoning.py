"""Separates the reasoning from the answer in a text while it arrives. No I/O.

Dify passes on what its model plugins write in front of the answer: ``<think>\\n...\\n</think>``
since 1.0.0 (langgenius/dify#13392), a ``<details>`` block with the summary *Thinking...* in 0.15.
Rules:

* A tag counts only at the very start of a section, or right after another block of reasoning,
  with optional white space before it, which is removed too. Anywhere else, a tag is ordinary text.
* Tags match in any case and with attributes, as in Dify's own LLM node
  (``<think[^>]*>(.*?)</think>``, IGNORECASE); ``<thinking>`` as well. As there, a block ends at
  the first closing tag: nested ``<think>`` tags are not counted.
* A block without a closing tag (a stopped or failed run) extends to the end of its section.
* Removed with the tags: the line end right after the opening tag, the one right before the
  closing tag, and blank lines between the closing tag and the answer.
* Added: an empty line between two blocks, whose texts would otherwise run together.
"""

import re
from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple

# Limits on what is held back for a tag that may still be completed. Longer white space and longer
# tags are text.
_MARGIN = r"\s{0,64}"
_GAP = r"\s{0,16}"
_ATTRIBUTES = r"(?:[ \t][^<>\n]{0,200})?"

# Tags as sequences of patterns; input may end after any of them.
_THINK = (*"<think", _ATTRIBUTES, ">")
_THINKING = (*"<thinking", _ATTRIBUTES, ">")
_SUMMARY = (*"<summary", _ATTRIBUTES, ">", _GAP, *"Thinking", r"[\s.…]{0,16}", *"</summary>")
_DETAILS = (*"<details", _ATTRIBUTES, ">", _GAP, *_SUMMARY)

_BETWEEN_BLOCKS = "\n\n"


class Piece(NamedTuple):
    """A part of the text. Never empty."""

    text: str
    is_reasoning: bool


class ReasoningParser:
    """Splits one answer, fed in chunks of any size. The result does not depend on the chunks.

    Each method returns the pieces that are now final, in order, with neighbours of one kind merged.
    Only text that may be part of a tag, or of the white space that belongs to one, is held back.
    """

    def __init__(self) -> None:
        self._state = _State.START
        self._closing_tag = _THINK_CLOSING
        self._pending = ""
        self._has_reasoning = False
        self._separator = ""

    def feed(self, text: str) -> list[Piece]:
        """Adds text of the answer."""
        if self._state is _State.ANSWER:
            return [Piece(text, False)] if text else []
        self._pending += text
        pieces: list[Piece] = []
        while self._pending and self._advance(pieces):
            pass
        return pieces

    def start_section(self, *, is_after_reasoning: bool = False) -> list[Piece]:
        """Starts a new section (another node or another round), in which tags may occur again.

        Blank lines at its start are removed if it ``is_after_reasoning`` that was sent apart from
        it. Returns what was held back of the previous section.
        """
        pieces: list[Piece] = []
        if self._state in (_State.OPENED, _State.INSIDE):
            self._add_reasoning(pieces, self._pending)
        else:
            _add(pieces, self._pending, False)
        self._pending = ""
        self._state = _State.CLOSED if is_after_reasoning else _State.START
        return pieces

    def pause(self) -> list[Piece]:
        """Another node writes text. An open block or an incomplete tag is continued afterwards;
        otherwise a new section starts then."""
        is_inside = self._state in (_State.OPENED, _State.INSIDE)
        return [] if is_inside or self._pending.strip() else self.start_section()

    def close(self) -> list[Piece]:
        """Ends the answer; returns what was held back."""
        return self.start_section()

    def _advance(self, pieces: list[Piece]) -> bool:
        """Parses one step of the pending text. False if it needs more text or none is left."""
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
        length = self._closing_tag.safe_length(self._pending)
        self._add_reasoning(pieces, self._pending[:length])
        self._pending = self._pending[length:]
        return False

    def _add_reasoning(self, pieces: list[Piece], text: str) -> None:
        if text:
            _add(pieces, self._separator + text, True)
            self._separator = ""
            self._has_reasoning = True


def split(text: str) -> tuple[str, str]:
    """Splits a complete text of one section into answer and reasoning."""
    parser = ReasoningParser()
    pieces = parser.feed(text) + parser.close()
    return _joined(pieces, is_reasoning=False), _joined(pieces, is_reasoning=True)


class _State(Enum):
    START = auto()
    OPENED = auto()
    INSIDE = auto()
    CLOSED = auto()
    ANSWER = auto()


class _ClosingTag:
    """Matches the end of a block of reasoning, with an optional line end before the tag."""

    def __init__(self, *tags: str) -> None:
        sequences = [(*line_end, *tag) for tag in tags for line_end in ("\r\n", "\n", "")]
        self.pattern = re.compile(_any_of("".join(each) for each in sequences), re.IGNORECASE)
        self._partial = re.compile(_prefix_pattern(*sequences) + r"\Z", re.IGNORECASE)
        self._max_length = max(map(len, sequences)) - 1

    def safe_length(self, text: str) -> int:
        """The length of ``text`` without a closing tag that may be incomplete at its end."""
        partial = self._partial.search(text, max(0, len(text) - self._max_length))
        return partial.start() if partial else len(text)


def _any_of(patterns: Iterable[str]) -> str:
    return f"(?:{'|'.join(patterns)})"


def _prefix_pattern(*sequences: tuple[str, ...]) -> str:
    """A pattern that matches every prefix of the sequences, including the empty one."""
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
