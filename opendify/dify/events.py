"""The closed set of Dify's events that we act on. No I/O.

What is not listed here is a sign of life and nothing more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Text(msgspec.Struct, frozen=True, gc=False):
    """The next piece of the answer. ``node`` is the node of the graph that speaks, empty where
    Dify does not tell; ``event`` is Dify's name for the piece. A Struct, since there is one for
    each token, and a frozen dataclass takes ten times as long to make."""

    text: str
    node: str = ""
    event: str = "message"


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next piece of what the model of a ``node`` thinks (``reasoning_chunk``, Dify 1.15 and
    later)."""

    text: str
    node: str = ""


@dataclass(frozen=True, slots=True)
class Replaced:
    """All text so far is void; this stands instead (output moderation)."""

    text: str


@dataclass(frozen=True, slots=True)
class AgentStep:
    """A step of an agent. It is told two or three times under one ``id``, with more in it each
    time; ``thought`` repeats text that was sent as the answer."""

    id: str
    thought: str
    tool: str
    tool_input: str
    observation: str


@dataclass(frozen=True, slots=True)
class FileGenerated:
    """A file that the app made; ``kind`` is ``image``, ``document`` ... ``was_uploaded`` is whether
    somebody gave it to Dify."""

    id: str
    kind: str
    url: str
    name: str = ""
    was_uploaded: bool = False


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A node of the graph has begun; ``kind`` is Dify's word (``llm``, ``tool`` ...)."""

    title: str
    kind: str


@dataclass(frozen=True, slots=True)
class NodeFinished:
    """A node of the graph has ended; ``usage``, ``finish_reason`` and ``reasoning`` (where Dify
    keeps it apart from the text, 1.9 and later) of the model it called."""

    usage: Usage | None
    finish_reason: str
    node: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class HumanInputNeeded:
    """The run waits for a person to fill a form in Dify."""

    form: str
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Paused:
    """The run has stopped for now, and so has its stream."""


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The graph of a chatflow or workflow ended without failing; ``status`` is Dify's word, and
    ``reason`` is why it was stopped, where Dify tells.

    Dify 1.11 sends ``message_end`` after it, 1.13.1 and later before it, 1.13.0 not at all.
    """

    status: str
    total_tokens: int = 0
    outputs: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MessageEnded:
    """The answer is complete. ``usage`` is None where Dify sent none; ``resources`` are the
    passages of knowledge bases that it rests on, in Dify's form."""

    usage: Usage | None = None
    resources: tuple[Mapping[str, Any], ...] = ()
    files: tuple[FileGenerated, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer will not be completed. ``status`` is the HTTP status that Dify gives it."""

    status: int
    code: str
    message: str


Event = (
    Text
    | Reasoning
    | Replaced
    | AgentStep
    | FileGenerated
    | NodeStarted
    | NodeFinished
    | HumanInputNeeded
    | Paused
    | RunFinished
    | MessageEnded
    | Failed
)


@dataclass(frozen=True, slots=True)
class Ids:
    """What Dify calls this answer; a name is empty until an event has told it."""

    conversation_id: str = ""
    message_id: str = ""
    task_id: str = ""
    workflow_run_id: str = ""
    created_at: int = 0
