"""What a renderer produces: the deltas of an answer, and what is known at its end. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from opendify.dify.events import Usage
from opendify.files.links import FileLink


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """The next piece of the answer's text, never empty. A Struct, since there is one for each
    token, and a frozen dataclass takes ten times as long to make."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """The next piece of what is shown as reasoning, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class UiEvent:
    """Something that Open WebUI shows beside the answer: its ``status`` and ``source`` events."""

    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reset:
    """All text and reasoning so far is void; ``had_text`` is false when there was no text."""

    had_text: bool


Delta = TextDelta | ReasoningDelta | UiEvent | Reset


@dataclass(frozen=True, slots=True)
class LinkTarget:
    """An address in the model's own markdown that has to lead to this file."""

    link: FileLink


@dataclass(frozen=True, slots=True)
class FileMarkdown:
    """A file that is shown as markdown of its own."""

    link: FileLink


@dataclass(frozen=True, slots=True)
class FileFound:
    """A file whose FileMarkdown may follow: its address at Dify may be dead by then."""

    link: FileLink


# Resolved to text, or to nothing, by a file_links.FileLinkResolver.
Unresolved = LinkTarget | FileMarkdown | FileFound

RenderedText = TextDelta | LinkTarget | FileMarkdown

Rendered = Delta | Unresolved


@dataclass(slots=True)
class Completion:
    """How the answer ended, known after the last event."""

    finish_reason: str = "stop"
    usage: Usage | None = None
    annotations: list[dict[str, Any]] = field(default_factory=list)
    resources: Sequence[Mapping[str, Any]] = ()
    run_status: str = ""


def status(description: str, done: bool) -> UiEvent:
    """A line of progress, or its end."""
    return UiEvent({"type": "status", "data": {"description": description, "done": done}})
