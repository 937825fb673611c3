"""The closed set of Dify's events that OpenDify handles. No I/O.

All other events only show that Dify is alive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one response."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Text(msgspec.Struct, frozen=True, gc=False):
    """The next piece of the answer. ``node`` and ``variable`` are the graph node that wrote it and
    the output of the node that it is a piece of, empty where Dify does not send them; ``event`` is
    the name of Dify's event. A Struct because there is one per token, and a frozen dataclass takes
    ten times as long to create."""

    text: str
    node: str = ""
    event: str = "message"
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next piece of the reasoning of a ``node``'s model (``reasoning_chunk``, Dify 1.15 and
    later). The last piece (``is_final``) is empty and follows the first piece of the text."""

    text: str
    node: str = ""
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Replaced:
    """Replaces all text so far (output moderation)."""

    text: str


@dataclass(frozen=True, slots=True)
class AgentStep:
    """A step of an agent. Sent repeatedly with the same ``id``, each time with more content.

    In the mode ``agent-chat``, ``thought`` repeats text that was sent as the answer; in the mode
    ``agent`` it is the reasoning of the model, which is sent nowhere else.
    """

    id: str
    thought: str
    tool: str
    tool_input: str
    observation: str

    @property
    def waits_for_person(self) -> bool:
        """Whether this is a question to a person that has no answer (the tool ``ask_human`` of the
        mode ``agent``)."""
        return self.tool == "ask_human" and not self.observation


@dataclass(frozen=True, slots=True)
class AgentThought:
    """A whole thought of an agent node (``agent_log``); it may repeat text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class FileGenerated:
    """A file in the response; ``kind`` is ``image``, ``document`` ... ``was_uploaded`` is true for
    a file of the user's, false for one that the app generated."""

    id: str
    kind: str
    url: str
    name: str = ""
    was_uploaded: bool = False


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A graph node has started; ``kind`` is Dify's node type (``llm``, ``tool`` ...)."""

    title: str
    kind: str


@dataclass(frozen=True, slots=True)
class NodeFinished:
    """A graph node has finished; ``usage``, ``finish_reason`` and ``reasoning`` (where Dify
    separates it from the text, 1.9 and later) are those of the model that it called."""

    usage: Usage | None
    finish_reason: str
    node: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class HumanInputNeeded:
    """The run waits until a person submits a form in Dify."""

    form: str
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Paused:
    """The run is paused, and its stream has ended."""


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The graph of a chatflow or workflow ended without failing; ``status`` is Dify's value, and
    ``reason`` says why it was stopped, where Dify sends that.

    Dify 1.11 sends ``message_end`` after it, 1.13.1 and later before it, 1.13.0 not at all.
    """

    status: str
    total_tokens: int = 0
    outputs: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MessageEnded:
    """The response is complete. ``usage`` is None where Dify sent none; ``resources`` are the
    knowledge base passages that it cites, as Dify's JSON objects."""

    usage: Usage | None = None
    resources: tuple[Mapping[str, Any], ...] = ()
    files: tuple[FileGenerated, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The response failed. ``status`` is the HTTP status that Dify assigns to the error;
    ``was_refused`` is true where nothing has run, because Dify refused the request."""

    status: int
    code: str
    message: str
    was_refused: bool = False


Event = (
    Text
    | Reasoning
    | Replaced
    | AgentStep
    | AgentThought
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
    """Dify's ids of this response; each is empty until an event has contained it. ``created_at``
    is in epoch seconds, 0 while unknown."""

    conversation_id: str = ""
    message_id: str = ""
    task_id: str = ""
    workflow_run_id: str = ""
    created_at: int = 0
