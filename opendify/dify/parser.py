"""Parses the events of a response from Dify's JSON. No I/O.

Recorded from Dify 1.11.4, 1.13.2 and 1.16.1; names and fields of other releases are from Dify's
source.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from opendify.dify.decoding import decode, replace_lone_surrogates
from opendify.dify.events import (
    AgentStep,
    AgentThought,
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
_TEXT_EVENTS = ("message", "agent_message", "message_file")

# An id of Dify's: safe to put into headers and URLs.
_ID = re.compile(r"[!-~]{1,255}")


class NotAnEvent(ValueError):
    """The payload is not a JSON object with an event name."""


def parse_payload(raw: bytes) -> Payload:
    """The JSON object of one event. Raises NotAnEvent."""
    try:
        payload = decode(raw, _replace_lone_surrogates)
    except ValueError as exc:
        raise NotAnEvent("not JSON") from exc
    if not isinstance(payload, dict) or not isinstance(payload.get("event"), str):
        raise NotAnEvent("no event name")
    return payload


def parse_event(payload: Payload) -> Event | None:
    """The event, or None where it only shows that Dify is alive.

    Fields take precedence over event names: Dify 1.11.2 to 1.12.1 send answer text as
    ``message_file`` when the query had a file, and 1.13 still does after the assistant sent one.
    """
    name = payload["event"]
    if name in _TEXT_EVENTS:
        answer = payload.get("answer")
        if isinstance(answer, str):
            node, variable = _source(payload)
            return Text(answer, node, name, variable)
    parse = _PARSERS.get(name)
    return parse(payload) if parse else None


def collect_ids(known: Ids, payload: Payload) -> Ids:
    """``known`` with the ids that this event adds; the first value of each is kept."""
    created_at = payload.get("created_at") or as_object(payload.get("data")).get("created_at")
    return Ids(
        conversation_id=known.conversation_id or _id(payload.get("conversation_id")),
        message_id=known.message_id or _id(payload.get("message_id")),
        task_id=known.task_id or _id(payload.get("task_id")),
        workflow_run_id=known.workflow_run_id or _id(payload.get("workflow_run_id")),
        created_at=known.created_at or as_count(created_at),
    )


def file_from(raw: Any) -> FileGenerated | None:
    """The file, if ``raw`` is a file object as in ``message_end.files`` and in the outputs of runs;
    other objects that contain a URL have no ``transfer_method``."""
    file = as_object(raw)
    return _file(file) if as_string(file.get("transfer_method")) else None


def _id(raw: Any) -> str:
    return raw if isinstance(raw, str) and _ID.fullmatch(raw) else ""


def _message_file(payload: Payload) -> Event | None:
    return None if payload.get("belongs_to") == "user" else _file(payload)


def _file(raw: Mapping[str, Any]) -> FileGenerated | None:
    url = as_string(raw.get("url")) or as_string(raw.get("remote_url"))
    kind = as_string(raw.get("type"))
    if not url or not kind:
        return None
    return FileGenerated(
        id=as_string(raw.get("related_id")) or as_string(raw.get("id")),
        kind=kind,
        url=url,
        name=as_string(raw.get("filename")) or as_string(raw.get("name")),
        was_uploaded=_was_uploaded(raw),
    )


def _was_uploaded(raw: Mapping[str, Any]) -> bool:
    """Whether the user sent this file, by upload or by URL.

    Chat, agent and completion apps (1.13) list all files of the message, including those of the
    query, as objects with ``upload_file_id``; among these, a generated file is always a
    ``tool_file``. In the files of a graph, a ``remote_url`` may come from any node.
    """
    method = raw.get("transfer_method")
    return (
        raw.get("belongs_to") == "user"
        or method == "local_file"
        or (method == "remote_url" and "upload_file_id" in raw)
    )


def _replace_lone_surrogates(payload: Any) -> Any:
    """Up to 1.8 Dify escapes non-ASCII characters, and a token may be half of a surrogate pair,
    which UTF-8 cannot encode. Only pieces of text keep lone surrogates: the next piece may hold the
    other half."""
    cleaned = replace_lone_surrogates(payload)
    if not isinstance(cleaned, dict):
        return cleaned
    if cleaned.get("event") in _TEXT_EVENTS and isinstance(payload.get("answer"), str):
        cleaned["answer"] = payload["answer"]
    chunk = as_object(payload.get("data")).get("text")
    if cleaned.get("event") == "text_chunk" and isinstance(chunk, str):
        cleaned["data"]["text"] = chunk
    return cleaned


def _message_replace(payload: Payload) -> Event:
    return Replaced(as_string(payload.get("answer")))


def _message_end(payload: Payload) -> Event:
    metadata = as_object(payload.get("metadata"))
    resources = as_list(metadata.get("retriever_resources"))
    # Dify 1.13 lists the files of the query among those of the answer.
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
    """A tool call or a thought of an agent node. Its log has no fixed format: labels and data are
    those of the strategies "function calling" and "ReAct" of Dify's official plugin."""
    data = as_object(payload.get("data"))
    label, content = as_string(data.get("label")), as_object(data.get("data"))
    if label.startswith("CALL "):
        return _logged_call(data, label.removeprefix("CALL "), content)
    return _logged_thought(content) if label.endswith(" Thought") else None


def _logged_call(data: Mapping[str, Any], tool: str, content: Mapping[str, Any]) -> Event:
    output = content.get("output")
    call = output if isinstance(output, dict) else content
    result = call.get("tool_response") if call is output else output
    return AgentStep(
        as_string(data.get("id")),
        "",
        tool,
        _as_text(call.get("tool_call_input") or call.get("tool_call_args")),
        _as_text(result) or as_string(data.get("error")),
    )


def _logged_thought(content: Mapping[str, Any]) -> Event | None:
    """The thought before a tool call. What the model says without one is the answer."""
    if content.get("tool_name"):
        thought = as_string(content.get("output"))
    else:
        thought = as_string(content.get("thought")) if "action_input" in content else ""
    return AgentThought(thought) if thought.strip() else None


def _as_text(value: Any) -> str:
    if not value or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _text_chunk(payload: Payload) -> Event:
    data = as_object(payload.get("data"))
    node, variable = _source(data)
    return Text(as_string(data.get("text")), node, "text_chunk", variable)


def _text_replace(payload: Payload) -> Event:
    return Replaced(as_string(as_object(payload.get("data")).get("text")))


def _reasoning_chunk(payload: Payload) -> Event:
    data = as_object(payload.get("data"))
    return Reasoning(
        as_string(data.get("reasoning")),
        as_string(data.get("node_id")),
        data.get("is_final") is True,
    )


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
        reason = as_string(data.get("error")) or "the run failed"
        return (
            Failed(400, "invalid_param", reason, was_refused=True)
            if _was_refused(data)
            else Failed(400, "run_failed", reason)
        )
    return RunFinished(
        status,
        as_count(data.get("total_tokens")),
        as_object(data.get("outputs")),
        as_string(data.get("error")),
    )


def _was_refused(data: Mapping[str, Any]) -> bool:
    """Whether Dify's worker refused the request of a chatflow or workflow: a missing input, an
    unknown file (1.16). A graph that has begun has steps, a caller and an object of outputs."""
    facts = tuple(data.get(name, ...) for name in ("outputs", "total_steps", "created_by"))
    return facts == (None, 0, {})


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


def _source(holder: Mapping[str, Any]) -> tuple[str, str]:
    """The node and the variable that a piece of text is from."""
    match holder.get("from_variable_selector"):
        case [str(node), str(variable)]:
            return node, variable
        case [str(node), *path]:
            return node, ".".join(map(as_string, path))
    return "", ""


def _usage(raw: Any) -> Usage | None:
    if not isinstance(raw, dict):
        return None
    prompt, completion = as_count(raw.get("prompt_tokens")), as_count(raw.get("completion_tokens"))
    # An agent node counts only the total.
    completion = max(completion, as_count(raw.get("total_tokens")) - prompt)
    return Usage(prompt, completion, prompt + completion)
