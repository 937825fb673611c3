"""The events of an answer, from the JSON in which Dify sends them. No I/O.

Seen on the wire of Dify 1.11.4 and 1.13.2; names and fields of the other releases from Dify's
source.
"""

import re
from collections.abc import Mapping
from typing import Any

from opendify.dify.decoding import decode, may_have_halves, with_whole_characters
from opendify.dify.events import (
    AgentStep,
    Event,
    Failed,
    FileGenerated,
    HumanInputNeeded,
    Ids,
    MessageEnded,
    NodeFinished,
    NodeStarted,
    Paused,
    Reasoning,
    Replaced,
    RunFinished,
    Text,
    Usage,
)
from opendify.dify.fields import (
    as_count,
    as_list,
    as_object,
    as_string,
)

Payload = dict[str, Any]

# Events whose ``answer`` is a piece of text.
_TEXTS = ("message", "agent_message", "message_file")

# A name of Dify's, which goes on in headers and addresses.
_NAME = re.compile(r"[!-~]{1,255}")


class NotAnEvent(ValueError):
    """A payload is no JSON object with an event name."""


def parse_payload(raw: bytes) -> Payload:
    """The JSON object of one event. Raises NotAnEvent."""
    try:
        payload = decode(raw)
    except ValueError as exc:
        raise NotAnEvent("not JSON") from exc
    if not isinstance(payload, dict) or not isinstance(payload.get("event"), str):
        raise NotAnEvent("no event name")
    if may_have_halves(raw):
        return _of_whole_characters(payload)
    return payload


def parse_event(payload: Payload) -> Event | None:
    """What the event asks of us, or None where it only shows that Dify is alive.

    Dispatches on fields before names: Dify 1.11.2 to 1.12.1 send answer text as ``message_file``
    when the question had a file, and 1.13 still does so after the assistant sent one.
    """
    name = payload["event"]
    if name in _TEXTS:
        answer = payload.get("answer")
        if isinstance(answer, str):
            return Text(answer, _node(payload), name)
    parse = _PARSERS.get(name)
    return parse(payload) if parse else None


def collect_ids(known: Ids, payload: Payload) -> Ids:
    """``known`` with what this event adds; the first name told stays."""
    created_at = payload.get("created_at") or as_object(payload.get("data")).get("created_at")
    return Ids(
        conversation_id=known.conversation_id or _name(payload.get("conversation_id")),
        message_id=known.message_id or _name(payload.get("message_id")),
        task_id=known.task_id or _name(payload.get("task_id")),
        workflow_run_id=known.workflow_run_id or _name(payload.get("workflow_run_id")),
        created_at=known.created_at or as_count(created_at),
    )


def file_from(raw: Any) -> FileGenerated | None:
    """A file object of Dify's, as it stands in ``message_end.files`` and in outputs of runs; other
    objects with an address in them have no ``transfer_method``."""
    told = as_object(raw)
    return _file(told) if as_string(told.get("transfer_method")) else None


def _name(raw: Any) -> str:
    return raw if isinstance(raw, str) and _NAME.fullmatch(raw) else ""


def _message_file(payload: Payload) -> Event | None:
    return None if payload.get("belongs_to") == "user" else _file(payload)


def _file(told: Mapping[str, Any]) -> FileGenerated | None:
    url = as_string(told.get("url")) or as_string(told.get("remote_url"))
    kind = as_string(told.get("type"))
    if not url or not kind:
        return None
    return FileGenerated(
        id=as_string(told.get("related_id")) or as_string(told.get("id")),
        kind=kind,
        url=url,
        name=as_string(told.get("filename")) or as_string(told.get("name")),
        was_uploaded=_is_of_the_user(told),
    )


def _is_of_the_user(told: Mapping[str, Any]) -> bool:
    """Whether the user gave this file to Dify, by upload or by its address.

    Chat, agent and completion apps (1.13) list the files of the whole message, those of the
    question too, in a form of its own, which has ``upload_file_id``: in it, what the app made is
    always a ``tool_file``. In the files of a graph, an address may be any node's.
    """
    method = told.get("transfer_method")
    return (
        told.get("belongs_to") == "user"
        or method == "local_file"
        or (method == "remote_url" and "upload_file_id" in told)
    )


def _of_whole_characters(payload: Payload) -> Payload:
    """Up to 1.8 Dify escapes its JSON, and a model's token may be half of a surrogate pair, which
    nothing that we write can carry. Only a piece of text keeps its halves: the next piece may hold
    the other one."""
    whole: Payload = with_whole_characters(payload)
    if whole["event"] in _TEXTS and isinstance(payload.get("answer"), str):
        whole["answer"] = payload["answer"]
    chunk = as_object(payload.get("data")).get("text")
    if whole["event"] == "text_chunk" and isinstance(chunk, str):
        whole["data"]["text"] = chunk
    return whole


def _message_replace(payload: Payload) -> Event:
    return Replaced(as_string(payload.get("answer")))


def _message_end(payload: Payload) -> Event:
    metadata = as_object(payload.get("metadata"))
    resources = as_list(metadata.get("retriever_resources"))
    # Dify 1.13 lists the files of the question among those of the answer.
    files = filter(None, map(file_from, as_list(payload.get("files"))))
    return MessageEnded(
        _usage(metadata.get("usage")),
        tuple(item for item in resources if isinstance(item, dict)),
        tuple(file for file in files if not file.was_uploaded),
    )


def _agent_thought(payload: Payload) -> Event:
    names = ("id", "thought", "tool", "tool_input", "observation")
    return AgentStep(*(as_string(payload.get(name)) for name in names))


def _agent_log(payload: Payload) -> Event | None:
    """What an agent node of a graph does; only its calls of tools have a label of a fixed form."""
    data = as_object(payload.get("data"))
    kind, _, tool = as_string(data.get("label")).partition(" ")
    if kind != "CALL" or not tool:
        return None
    return AgentStep(as_string(data.get("id")), "", tool, "", as_string(data.get("error")))


def _text_chunk(payload: Payload) -> Event:
    data = as_object(payload.get("data"))
    return Text(as_string(data.get("text")), _node(data), "text_chunk")


def _text_replace(payload: Payload) -> Event:
    return Replaced(as_string(as_object(payload.get("data")).get("text")))


def _reasoning_chunk(payload: Payload) -> Event:
    data = as_object(payload.get("data"))
    return Reasoning(as_string(data.get("reasoning")), as_string(data.get("node_id")))


def _node_started(payload: Payload) -> Event:
    data = as_object(payload.get("data"))
    return NodeStarted(as_string(data.get("title")), as_string(data.get("node_type")))


def _node_finished(payload: Payload) -> Event:
    data = as_object(payload.get("data"))
    outputs, process = as_object(data.get("outputs")), as_object(data.get("process_data"))
    usage = _usage(outputs.get("usage")) or _usage(process.get("usage"))
    return NodeFinished(
        usage,
        as_string(outputs.get("finish_reason")),
        as_string(data.get("node_id")),
        as_string(outputs.get("reasoning_content")),
    )


def _human_input_required(payload: Payload) -> Event:
    data = as_object(payload.get("data"))
    actions = (as_string(as_object(action).get("title")) for action in as_list(data.get("actions")))
    return HumanInputNeeded(as_string(data.get("form_content")), tuple(filter(None, actions)))


def _workflow_finished(payload: Payload) -> Event:
    data = as_object(payload.get("data"))
    status = as_string(data.get("status"))
    if status in ("failed", "exception"):
        return Failed(400, "run_failed", as_string(data.get("error")) or "the run failed")
    return RunFinished(
        status,
        as_count(data.get("total_tokens")),
        as_object(data.get("outputs")),
        as_string(data.get("error")),
    )


def _error(payload: Payload) -> Event:
    return Failed(
        as_count(payload.get("status")) or 500,
        as_string(payload.get("code")),
        as_string(payload.get("message")) or "Dify gave no reason",
    )


_PARSERS = {
    "message_file": _message_file,
    "message_replace": _message_replace,
    "message_end": _message_end,
    "agent_thought": _agent_thought,
    "agent_log": _agent_log,
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
    selector = as_list(holder.get("from_variable_selector"))
    return as_string(selector[0]) if selector else ""


def _usage(raw: Any) -> Usage | None:
    if not isinstance(raw, dict):
        return None
    prompt, completion = as_count(raw.get("prompt_tokens")), as_count(raw.get("completion_tokens"))
    return Usage(prompt, completion, as_count(raw.get("total_tokens")) or prompt + completion)
