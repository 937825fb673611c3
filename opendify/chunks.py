"""Deltas as the chunks of an OpenAI event stream. No I/O."""

from collections.abc import Iterable
from functools import cached_property

from opendify import sse
from opendify.openai import answers
from opendify.telling.tellings import Delta, ReasoningDelta, Reset, TextDelta, UiEvent


class ChatStreamWriter:
    """Writes the chunks of one answer; those that only add text differ in that text alone."""

    def __init__(self, head: answers.Head) -> None:
        self._head = head
        self._texts: list[str] = []

    def write(self, deltas: Iterable[Delta]) -> bytes:
        """One event for each of the deltas."""
        return b"".join(map(self._event, deltas))

    def text(self) -> str:
        """All text that was written as the answer's content."""
        return "".join(self._texts)

    def _event(self, delta: Delta) -> bytes:
        match delta:
            case TextDelta(text):
                return self._write_text(text)
            case ReasoningDelta(text):
                return self._reasoning.fill(text)
            case UiEvent(event):
                return sse.encode(answers.chunk(self._head, {"content": ""}) | {"event": event})
            case Reset(had_text):  # what was sent cannot be unsent, only be followed
                return self._write_text("\n\n" if had_text else "")

    def _write_text(self, text: str) -> bytes:
        self._texts.append(text)
        return self._content.fill(text)

    @cached_property
    def _content(self) -> sse.Template:
        return sse.Template(answers.chunk(self._head, {"content": sse.PLACE}))

    @cached_property
    def _reasoning(self) -> sse.Template:
        return sse.Template(answers.chunk(self._head, {"reasoning_content": sse.PLACE}))
