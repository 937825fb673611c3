"""The closed set of Dify's events that we act on. No I/O.

Seen on the wire of Dify 1.11.4 and 1.13.2; names and fields of the other releases from Dify's
source. Whatever is not listed here is a sign of life and nothing more.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Payload = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the answer. ``node`` is the node of the graph that speaks, empty where
    Dify does not tell; ``event`` is Dify's name for the piece."""

    text: str
    node: str = ""
    event: str = "message"


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next piece of what the model thinks (``reasoning_chunk``, Dify 1.15 and later)."""

    text: str


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
class FileMade:
    """A file that the app made; ``kind`` is ``image``, ``document`` ..."""

    id: str
    kind: str
    url: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A node of the graph has begun; ``kind`` is Dify's word (``llm``, ``tool`` ...)."""

    title: str
    kind: str


@dataclass(frozen=True, slots=True)
class NodeFinished:
    """A node of the graph has ended; ``usage`` and ``finish_reason`` of the model it called."""

    usage: Usage | None
    finish_reason: str


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
    """The graph of a chatflow or workflow ended without failing; ``status`` is Dify's word.

    Dify 1.11 sends ``message_end`` after it, 1.13.1 and later before it, 1.13.0 not at all.
    """

    status: str
    total_tokens: int = 0
    outputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MessageEnded:
    """The answer is complete. ``usage`` is None where Dify sent none; ``resources`` are the
    passages of knowledge bases that it rests on, in Dify's form."""

    usage: Usage | None = None
    resources: tuple[Mapping[str, Any], ...] = ()
    files: tuple[FileMade, ...] = ()


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
    | FileMade
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


class NotAnEvent(ValueError):
    """A payload is no JSON object with an event name."""


def parse_payload(raw: bytes) -> Payload:
    """The JSON object of one event. Raises NotAnEvent."""
    try:
        payload = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise NotAnEvent("not JSON") from exc
    if not isinstance(payload, dict) or not isinstance(payload.get("event"), str):
        raise NotAnEvent("no event name")
    if b"\\ud" in raw or b"\\uD" in raw:
        return _of_whole_characters(payload)
    return payload


def parse_event(payload: Payload) -> Event | None:
    """What the event asks of us, or None where it only shows that Dify is alive.

    Dispatches on fields before names: Dify 1.11.2 to 1.12.1 send answer text as ``message_file``
    when the question had a file, and 1.13 still does so after the assistant sent one.
    """
    name = payload["event"]
    if name in ("message", "agent_message", "message_file"):
        answer = payload.get("answer")
        if isinstance(answer, str):
            return Text(answer, _node(payload), name)
    parse = _PARSERS.get(name)
    return parse(payload) if parse else None


def collect_ids(known: Ids, payload: Payload) -> Ids:
    """``known`` with what this event adds; the first name told stays."""
    created_at = payload.get("created_at") or _object(payload.get("data")).get("created_at")
    return Ids(
        conversation_id=known.conversation_id or _string(payload.get("conversation_id")),
        message_id=known.message_id or _string(payload.get("message_id")),
        task_id=known.task_id or _string(payload.get("task_id")),
        workflow_run_id=known.workflow_run_id or _string(payload.get("workflow_run_id")),
        created_at=known.created_at or _count(created_at),
    )


def file_from(raw: Any) -> FileMade | None:
    """A file object of Dify's, as it stands in ``message_end.files`` and in outputs of runs."""
    told = _object(raw)
    url = _string(told.get("url")) or _string(told.get("remote_url"))
    if not url or "type" not in told:
        return None
    name = _string(told.get("filename")) or _string(told.get("name"))
    return FileMade(
        _string(told.get("related_id")) or _string(told.get("id")), _string(told["type"]), url, name
    )


def _message_file(payload: Payload) -> Event | None:
    return None if payload.get("belongs_to") == "user" else file_from(payload)


def _of_whole_characters(payload: Payload) -> Payload:
    """Up to 1.8 Dify escapes its JSON, and a model's token may be half of a surrogate pair, which
    no answer can carry."""
    text = json.dumps(payload, ensure_ascii=False)
    whole: Payload = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return whole


def _message_replace(payload: Payload) -> Event:
    return Replaced(_string(payload.get("answer")))


def _message_end(payload: Payload) -> Event:
    metadata = _object(payload.get("metadata"))
    resources = _list(metadata.get("retriever_resources"))
    files = (file_from(item) for item in _list(payload.get("files")) if not _was_uploaded(item))
    return MessageEnded(
        _usage(metadata.get("usage")),
        tuple(item for item in resources if isinstance(item, dict)),
        tuple(file for file in files if file),
    )


def _was_uploaded(raw: Any) -> bool:
    """Dify 1.13 lists the files of the question among those of the answer."""
    return _object(raw).get("transfer_method") == "local_file"


def _agent_thought(payload: Payload) -> Event:
    names = ("id", "thought", "tool", "tool_input", "observation")
    return AgentStep(*(_string(payload.get(name)) for name in names))


def _text_chunk(payload: Payload) -> Event:
    data = _object(payload.get("data"))
    return Text(_string(data.get("text")), _node(data), "text_chunk")


def _text_replace(payload: Payload) -> Event:
    return Replaced(_string(_object(payload.get("data")).get("text")))


def _reasoning_chunk(payload: Payload) -> Event:
    return Reasoning(_string(_object(payload.get("data")).get("reasoning")))


def _node_started(payload: Payload) -> Event:
    data = _object(payload.get("data"))
    return NodeStarted(_string(data.get("title")), _string(data.get("node_type")))


def _node_finished(payload: Payload) -> Event:
    data = _object(payload.get("data"))
    outputs, process = _object(data.get("outputs")), _object(data.get("process_data"))
    usage = _usage(outputs.get("usage")) or _usage(process.get("usage"))
    return NodeFinished(usage, _string(outputs.get("finish_reason")))


def _human_input_required(payload: Payload) -> Event:
    data = _object(payload.get("data"))
    actions = (_string(_object(action).get("title")) for action in _list(data.get("actions")))
    return HumanInputNeeded(_string(data.get("form_content")), tuple(filter(None, actions)))


def _workflow_finished(payload: Payload) -> Event:
    data = _object(payload.get("data"))
    status = _string(data.get("status"))
    if status in ("failed", "exception"):
        return Failed(400, "run_failed", _string(data.get("error")) or "the run failed")
    return RunFinished(status, _count(data.get("total_tokens")), _object(data.get("outputs")))


def _error(payload: Payload) -> Event:
    return Failed(
        _count(payload.get("status")) or 500,
        _string(payload.get("code")),
        _string(payload.get("message")) or "Dify gave no reason",
    )


_PARSERS = {
    "message_file": _message_file,
    "message_replace": _message_replace,
    "message_end": _message_end,
    "agent_thought": _agent_thought,
    "text_chunk": _text_chunk,
    "text_replace": _text_replace,
    "reasoning_chunk": _reasoning_chunk,
    "node_started": _node_started,
    "node_finished": _node_finished,
    "human_input_required": _human_input_required,
    "workflow_paused": lambda payload: Paused(),
    "workflow_finished": _workflow_finished,
    "error": _error,
}


def _node(holder: Mapping[str, Any]) -> str:
    selector = _list(holder.get("from_variable_selector"))
    return _string(selector[0]) if selector else ""


def _usage(raw: Any) -> Usage | None:
    if not isinstance(raw, dict):
        return None
    prompt, completion = _count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens"))
    return Usage(prompt, completion, _count(raw.get("total_tokens")) or prompt + completion)


def _count(raw: Any) -> int:
    return raw if isinstance(raw, int) and raw > 0 else 0


def _string(raw: Any) -> str:
    return raw if isinstance(raw, str) else ""


def _list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else []


def _object(raw: Any) -> dict[str, Any]:
    return raw if isinstance(raw, dict) else {}
