"""What an answer can give its caller, piece by piece, and what is known at its end. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from opendify.dify.events import Usage


class Said(msgspec.Struct, frozen=True, gc=False):
    """The next piece of the answer's text. A Struct for the reason for which a Text is one."""

    text: str


@dataclass(frozen=True, slots=True)
class SaidInTurn:
    """The next pieces of the answer's text, at least one and none of them empty: as many a Said."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Thought:
    """The next piece of what is shown as reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """Something that Open WebUI shows beside the answer: its ``status`` and ``source`` events."""

    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Voided:
    """All that was said and thought is void; ``was`` is false when nothing was said."""

    was: bool


Telling = Said | SaidInTurn | Thought | Shown | Voided


@dataclass(slots=True)
class Ending:
    """How the answer ended, known after the last event."""

    finish_reason: str = "stop"
    usage: Usage | None = None
    annotations: list[dict[str, Any]] = field(default_factory=list)
    resources: Sequence[Mapping[str, Any]] = ()
    run_status: str = ""


def status(description: str, done: bool) -> Shown:
    """A line of progress, or its end."""
    return Shown({"type": "status", "data": {"description": description, "done": done}})
