"""What is told, as the chunks of an event stream. No I/O."""

from collections.abc import Iterable
from functools import cached_property

from opendify import sse
from opendify.openai import answers
from opendify.telling.tellings import Said, SaidInTurn, Shown, Telling, Thought, Voided


class ChunkWriter:
    """Writes the chunks of one answer; those that only add text differ in that text alone."""

    def __init__(self, head: answers.Head) -> None:
        self._head = head
        self._said: list[str] = []

    def write(self, tellings: Iterable[Telling]) -> bytes:
        """One event for each of the tellings."""
        return b"".join(map(self._event, tellings))

    def said(self) -> str:
        """All text that was written as the answer's content."""
        return "".join(self._said)

    def _event(self, telling: Telling) -> bytes:
        match telling:
            case Said(text):
                return self._say(text)
            case SaidInTurn(texts):
                self._said += texts
                return self._content.fill_each(texts)
            case Thought(text):
                return self._reasoning.fill(text)
            case Shown(event):
                return sse.encode(answers.chunk(self._head, {"content": ""}) | {"event": event})
            case Voided(was):  # what was sent cannot be unsent, only be followed
                return self._say("\n\n" if was else "")

    def _say(self, text: str) -> bytes:
        self._said.append(text)
        return self._content.fill(text)

    @cached_property
    def _content(self) -> sse.Template:
        return sse.Template(answers.chunk(self._head, {"content": sse.PLACE}))

    @cached_property
    def _reasoning(self) -> sse.Template:
        return sse.Template(answers.chunk(self._head, {"reasoning_content": sse.PLACE}))
