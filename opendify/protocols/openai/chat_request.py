"""A chat completion request, checked once at the door. No I/O.

Which fields are obeyed, which are accepted and named as ignored, and which are refused because
ignoring them would make the answer wrong, is decided here and nowhere else.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from opendify.errors import InvalidRequest
from opendify.protocols.base import ChatPrompt, DifyOptions, Message
from opendify.protocols.client_ids import OTHER_CHAT_FIELDS, other_chat_id
from opendify.protocols.openai import chat_response
from opendify.protocols.openai.chat_stream import ChatStreamWriter
from opendify.protocols.openai.json_object import JsonObject, parse_nested
from opendify.protocols.openai.messages import parse_messages
from opendify.protocols.responses import WholeResponse

# Fields that Dify has no counterpart for: they are set in the Dify app. In the order in which the
# answer's header names them.
IGNORED_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "max_tokens",
    "max_completion_tokens",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "response_format",
    "modalities",
    "audio",
    "reasoning_effort",
    "verbosity",
    "service_tier",
    "store",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "moderation",
    "web_search_options",
)
_IGNORED = frozenset(IGNORED_FIELDS)
# Values that equal OpenAI's default, or that change nothing for an app without client tools.
_AUTO: tuple[Any, ...] = ("auto", "none", {"type": "auto"}, {"type": "none"})
_DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": _AUTO,
    "parallel_tool_calls": (True,),
    "functions": ([],),
    "function_call": _AUTO,
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("medium",),
    "verbosity": ("medium",),
    "service_tier": ("auto",),
    "store": (False,),
}
# A longer value cannot be a default, so it is not decoded for the comparison.
_MAX_DEFAULT_BYTES = 256

# Limits of the header that names ignored fields, because callers can invent names.
MAX_IGNORED_NAMES = 20
_NAMEABLE = re.compile(r"[A-Za-z0-9_.-]{1,40}")

_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,128}")

# To look for more would hold up everybody else; OpenAI takes four.
MAX_STOPS = 16
MAX_STOP_LENGTH = 256


_OPTIONS = frozenset(one.name for one in fields(DifyOptions))
_NO_OPTIONS = DifyOptions()
_OBEYED = _OPTIONS | {
    "model",
    "messages",
    "stream",
    "stream_options",
    "n",
    "user",
    "safety_identifier",
    "metadata",
    "chat_id",
    "stop",
    *OTHER_CHAT_FIELDS,
}
_KNOWN = _OBEYED | _IGNORED


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion request: the prompt, and what concerns this dialect alone. ``ignored``
    names the fields that have no effect here, OpenAI's first; it fits into a header."""

    prompt: ChatPrompt
    include_usage: bool
    ignored: tuple[str, ...]

    def new_writer(self) -> ChatStreamWriter:
        """For a streamed response."""
        return ChatStreamWriter(self.include_usage)

    def to_json(self, response: WholeResponse) -> dict[str, Any]:
        """For a whole one."""
        return chat_response.completion(response)


def parse_chat_request(body: JsonObject) -> ChatRequest:
    """Checks a body. Raises InvalidRequest and RequestTooLarge, which name the field."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("'model' must name a model; GET /v1/models lists them.", param="model")
    _refuse_what_would_answer_wrongly(body)
    metadata = _object(body, "metadata")
    prompt = ChatPrompt(
        model=model,
        messages=_parse_messages(body),
        stream=_boolean(body, "stream"),
        stop=_parse_stop(body.get("stop")),
        user=_name(body, "user"),
        fallback_user=_metadata_user(metadata) or _name(body, "safety_identifier"),
        chat_id=_name(metadata, "chat_id", "metadata.")
        or _name(body, "chat_id")
        or other_chat_id(body),
        task=_task(metadata),
        has_tools=_is_given(body, "tools"),
        options=_parse_options(body, metadata),
    )
    return ChatRequest(
        prompt,
        include_usage=_boolean(_object(body, "stream_options"), "include_usage", "stream_options."),
        ignored=nameable((*_ignored(body), *_unknown(body))),
    )


def nameable(names: Iterable[str]) -> tuple[str, ...]:
    """The first MAX_IGNORED_NAMES of the names that are safe in a header."""
    return tuple(islice(filter(_NAMEABLE.fullmatch, names), MAX_IGNORED_NAMES))


def _parse_messages(body: JsonObject) -> tuple[Message, ...]:
    messages = parse_messages(body.with_files("messages"))
    body.check_text("messages", sum(len(message.text) for message in messages))
    return messages


def _ignored(body: JsonObject) -> Iterable[str]:
    if _IGNORED.isdisjoint(body):
        return ()
    return (name for name in IGNORED_FIELDS if _differs(body, name))


def _unknown(body: JsonObject) -> Iterable[str]:
    names = (name for name in body if name not in _KNOWN and _NAMEABLE.fullmatch(name))
    return (name for name in names if _differs(body, name))


def _differs(body: JsonObject, name: str) -> bool:
    """Whether the field has a value other than null and OpenAI's default."""
    return _is_given(body, name, *_DEFAULTS.get(name, ()))


def _is_given(body: JsonObject, name: str, *defaults: Any) -> bool:
    if body.size(name) > _MAX_DEFAULT_BYTES:
        return True
    value = body.get(name)
    return value is not None and value not in defaults


def _refuse_what_would_answer_wrongly(body: Mapping[str, Any]) -> None:
    count = body.get("n")
    if count is not None and (isinstance(count, bool) or count != 1):
        raise InvalidRequest("'n' must be 1: Dify gives one answer to a question.", param="n")
    for name in ("tool_choice", "function_call"):
        if _forces_a_tool(body.get(name)):
            raise InvalidRequest(
                f"'{name}' cannot force a tool: the tools of a Dify app are set in Dify. "
                "Leave it out, or say 'auto' or 'none'.",
                param=name,
            )
    modalities = body.get("modalities")
    if isinstance(modalities, list) and "audio" in modalities:
        raise InvalidRequest(
            "'modalities' may hold only 'text': audio answers are not available.",
            param="modalities",
        )


def _forces_a_tool(choice: Any) -> bool:
    if isinstance(choice, dict):
        allowed, kind = choice.get("allowed_tools"), choice.get("type")
        mode = allowed.get("mode") if isinstance(allowed, dict) else choice.get("mode")
        return kind not in ("auto", "none") and not (kind == "allowed_tools" and mode == "auto")
    return choice is not None and choice not in ("auto", "none")


def _parse_options(body: Mapping[str, Any], metadata: Mapping[str, Any]) -> DifyOptions:
    """Dify's own fields; clients send them with ``extra_body``."""
    if not metadata and _OPTIONS.isdisjoint(body):
        return _NO_OPTIONS
    return DifyOptions(
        conversation_id=_identifier(body, "conversation_id")
        or _identifier(metadata, "conversation_id", "metadata."),
        inputs={**_metadata_inputs(metadata), **_object(body, "inputs")},
        files=_parse_files(body.get("files")),
        auto_generate_name=_boolean(body, "auto_generate_name"),
        workflow_id=_identifier(body, "workflow_id"),
        trace_id=_identifier(body, "trace_id"),
    )


def _metadata_user(metadata: Mapping[str, Any]) -> str:
    """A number of a database names a person too: none may share the default user's chats."""
    user = metadata.get("user_id")
    is_name = isinstance(user, str | int | float) and not isinstance(user, bool)
    return str(user).strip() if is_name else ""


def _task(metadata: Mapping[str, Any]) -> str:
    task = metadata.get("task")
    return task.strip() if isinstance(task, str) else ""


def _metadata_inputs(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """``inputs`` and ``inputs.<name>``: the values of OpenAI's metadata are text, and so the object
    may be JSON in a text."""
    raw = metadata.get("inputs")
    if isinstance(raw, str):
        raw = parse_nested(raw, "metadata.inputs")
    whole = _object({"inputs": raw}, "inputs", "metadata.")
    start = "inputs."
    single = {k.removeprefix(start): v for k, v in metadata.items() if k.startswith(start)}
    return {**whole, **single}


def _parse_files(raw: Any) -> tuple[Mapping[str, Any], ...]:
    """Dify's own file objects. It would drop one without its method without a word."""
    files = raw if raw is not None else []
    if not isinstance(files, list) or not all(
        isinstance(file, dict) and isinstance(file.get("transfer_method"), str) for file in files
    ):
        raise InvalidRequest(
            "'files' must be an array of Dify's file objects, like "
            '{"type": "image", "transfer_method": "remote_url", "url": "https://..."}.',
            param="files",
        )
    return tuple(files)


def _parse_stop(raw: Any) -> tuple[str, ...]:
    stops = [raw] if isinstance(raw, str) else raw
    if stops is None:
        return ()
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise InvalidRequest("'stop' must be a string or an array of strings.", param="stop")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in stops):
        raise InvalidRequest(
            f"'stop' may hold up to {MAX_STOPS} strings of up to {MAX_STOP_LENGTH} characters.",
            param="stop",
        )
    return tuple(stop for stop in stops if stop)


def _boolean(holder: Mapping[str, Any], name: str, path: str = "") -> bool:
    value = holder.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidRequest(f"'{path}{name}' must be true or false.", param=path + name)
    return value


def _object(holder: Mapping[str, Any], name: str, path: str = "") -> Mapping[str, Any]:
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{path}{name}' must be an object.", param=path + name)
    return value


def _identifier(holder: Mapping[str, Any], name: str, path: str = "") -> str:
    """A name that Dify gave, which may become a part of an address."""
    value = _name(holder, name, path)
    if value and not _IDENTIFIER.fullmatch(value):
        raise InvalidRequest(
            f"'{path}{name}' must be an id of Dify's: letters, digits, '-' and '_'.",
            param=path + name,
        )
    return value


def _name(holder: Mapping[str, Any], name: str, path: str = "") -> str:
    value = holder.get(name)
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InvalidRequest(f"'{path}{name}' must be a string.", param=path + name)
    return value.replace("\0", "").strip()
