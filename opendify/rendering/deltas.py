"""The deltas that a renderer produces, and the completion that follows the last one. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from opendify.dify.events import Usage
from opendify.files.links import FileLink


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """The next part of the answer's text. Never empty. A Struct because there is one per token, and
    a frozen dataclass takes ten times as long to create."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """The next part of the text shown as reasoning. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class UiEvent:
    """An Open WebUI event of type ``status`` or ``source``, shown outside the answer's text."""

    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reset:
    """Discards all text and reasoning so far. ``had_text`` is false when there was no text."""

    had_text: bool


Delta = TextDelta | ReasoningDelta | UiEvent | Reset


@dataclass(frozen=True, slots=True)
class LinkTarget:
    """An address in the model's own markdown, to be replaced by a link to this file."""

    link: FileLink


@dataclass(frozen=True, slots=True)
class FileMarkdown:
    """A file to be shown as separate markdown."""

    link: FileLink


@dataclass(frozen=True, slots=True)
class FileFound:
    """A file for which a FileMarkdown may follow. Announced early because its Dify address may have
    expired by then."""

    link: FileLink


# A file_links.FileLinkResolver turns these into text, or drops them.
Unresolved = LinkTarget | FileMarkdown | FileFound

RenderedText = TextDelta | LinkTarget | FileMarkdown

Rendered = Delta | Unresolved


@dataclass(slots=True)
class Completion:
    """How the answer ended. Complete after the last event. ``stop_sequence`` is the one of the
    request that ended it; "" for none."""

    finish_reason: str = "stop"
    usage: Usage | None = None
    annotations: list[dict[str, Any]] = field(default_factory=list)
    resources: Sequence[Mapping[str, Any]] = ()
    run_status: str = ""
    stop_sequence: str = ""


def status(description: str, done: bool) -> UiEvent:
    """An Open WebUI status event; ``done`` closes the status line."""
    return UiEvent({"type": "status", "data": {"description": description, "done": done}})
