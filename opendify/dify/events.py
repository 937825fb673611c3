"""The closed set of Dify's events that we act on. No I/O.

Seen on the wire of Dify 1.11.4 and 1.13.2; names and fields of the other releases from Dify's
source. Whatever is not listed here is a sign of life and nothing more.
"""

import json
from dataclasses import dataclass
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
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Replaced:
    """All text so far is void; this stands instead (output moderation)."""

    text: str


@dataclass(frozen=True, slots=True)
class MessageEnded:
    """The answer of a chat is complete. ``usage`` is None where Dify sent none."""

    usage: Usage | None


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The graph of a chatflow or workflow ended without failing; ``status`` is Dify's word.

    Dify 1.11 sends ``message_end`` after it, 1.13.1 and later before it, 1.13.0 not at all.
    """

    status: str
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer will not be completed. ``status`` is the HTTP status that Dify gives it."""

    status: int
    code: str
    message: str


Event = Text | Replaced | MessageEnded | RunFinished | Failed


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
        return Text(answer) if isinstance(answer, str) else None
    parse = _PARSERS.get(name)
    return parse(payload) if parse else None


def collect_ids(known: Ids, payload: Payload) -> Ids:
    """``known`` with what this event adds; the first name told stays."""
    created_at = payload.get("created_at")
    return Ids(
        conversation_id=known.conversation_id or _string(payload.get("conversation_id")),
        message_id=known.message_id or _string(payload.get("message_id")),
        task_id=known.task_id or _string(payload.get("task_id")),
        workflow_run_id=known.workflow_run_id or _string(payload.get("workflow_run_id")),
        created_at=known.created_at or (created_at if isinstance(created_at, int) else 0),
    )


def _of_whole_characters(payload: Payload) -> Payload:
    """Up to 1.8 Dify escapes its JSON, and a model's token may be half of a surrogate pair, which
    no answer can carry."""
    text = json.dumps(payload, ensure_ascii=False)
    whole: Payload = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return whole


def _message_replace(payload: Payload) -> Event:
    return Replaced(_string(payload.get("answer")))


def _message_end(payload: Payload) -> Event:
    return MessageEnded(_usage(_object(payload.get("metadata")).get("usage")))


def _workflow_finished(payload: Payload) -> Event:
    data = _object(payload.get("data"))
    status = _string(data.get("status"))
    if status in ("failed", "exception"):
        return Failed(400, "run_failed", _string(data.get("error")) or "the run failed")
    total = _count(data.get("total_tokens"))
    return RunFinished(status, Usage(0, total, total) if total else None)


def _error(payload: Payload) -> Event:
    status = payload.get("status")
    return Failed(
        status if isinstance(status, int) else 500,
        _string(payload.get("code")),
        _string(payload.get("message")) or "Dify gave no reason",
    )


_PARSERS = {
    "message_replace": _message_replace,
    "message_end": _message_end,
    "workflow_finished": _workflow_finished,
    "error": _error,
}


def _usage(raw: Any) -> Usage | None:
    if not isinstance(raw, dict):
        return None
    prompt, completion = _count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens"))
    return Usage(prompt, completion, _count(raw.get("total_tokens")) or prompt + completion)


def _count(raw: Any) -> int:
    return raw if isinstance(raw, int) and raw > 0 else 0


def _string(raw: Any) -> str:
    return raw if isinstance(raw, str) else ""


def _object(raw: Any) -> dict[str, Any]:
    return raw if isinstance(raw, dict) else {}
