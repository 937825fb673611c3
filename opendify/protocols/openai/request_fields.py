"""What the requests of all endpoints of OpenAI's dialect have in common. No I/O."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import islice
from typing import Any

from opendify.errors import InvalidRequest
from opendify.protocols.base import ChatPrompt, DifyOptions, Message
from opendify.protocols.client_ids import OTHER_CHAT_FIELDS, other_chat_id
from opendify.protocols.openai.json_object import JsonObject, parse_nested

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

# The fields that ``parse_prompt`` and the functions beside it read.
COMMON_FIELDS = _OPTIONS | {
    "model",
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


class FieldTable:
    """The fields of one endpoint. ``obeyed`` are those that it reads. ``ignored`` are OpenAI's
    fields that have no effect, in the order in which the response's header names them; ``defaults``
    are values of them that equal OpenAI's default."""

    def __init__(
        self,
        obeyed: frozenset[str],
        ignored: tuple[str, ...],
        defaults: Mapping[str, tuple[Any, ...]],
    ) -> None:
        self._in_order = ignored
        self._ignored = frozenset(ignored)
        self._known = obeyed | self._ignored
        self._defaults = defaults

    def without_effect(self, body: JsonObject) -> tuple[str, ...]:
        """The names of the fields of ``body`` that have no effect, OpenAI's first; fits into a
        header."""
        return nameable((*self._named_by_openai(body), *self._unknown(body)))

    def _named_by_openai(self, body: JsonObject) -> Iterable[str]:
        if self._ignored.isdisjoint(body):
            return ()
        return (name for name in self._in_order if self._differs(body, name))

    def _unknown(self, body: JsonObject) -> Iterable[str]:
        names = (name for name in body if name not in self._known and _NAMEABLE.fullmatch(name))
        return (name for name in names if self._differs(body, name))

    def _differs(self, body: JsonObject, name: str) -> bool:
        """Whether the field has a value other than null and OpenAI's default."""
        return is_given(body, name, *self._defaults.get(name, ()))


def parse_model(body: Mapping[str, Any]) -> str:
    """The name of the model. Raises InvalidRequest."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("'model' must name a model; GET /v1/models lists them.", param="model")
    return model


def check_count(body: Mapping[str, Any]) -> None:
    """Raises InvalidRequest if more than one answer is asked for."""
    count = body.get("n")
    if count is not None and (isinstance(count, bool) or count != 1):
        raise InvalidRequest("'n' must be 1: Dify gives one answer to a question.", param="n")


def parse_prompt(body: JsonObject, model: str, messages: tuple[Message, ...]) -> ChatPrompt:
    """The prompt of a body whose model and messages are parsed. Raises InvalidRequest."""
    metadata = _object(body, "metadata")
    return ChatPrompt(
        model=model,
        messages=messages,
        stream=boolean(body, "stream"),
        stop=_parse_stop(body.get("stop")),
        user=_name(body, "user"),
        fallback_user=_metadata_user(metadata) or _name(body, "safety_identifier"),
        chat_id=_name(metadata, "chat_id", "metadata.")
        or _name(body, "chat_id")
        or other_chat_id(body),
        task=_task(metadata),
        has_tools=is_given(body, "tools"),
        options=_parse_options(body, metadata),
    )


def parse_include_usage(body: Mapping[str, Any]) -> bool:
    """Whether a stream is to end with the usage. Raises InvalidRequest."""
    return boolean(_object(body, "stream_options"), "include_usage", "stream_options.")


def boolean(holder: Mapping[str, Any], name: str, path: str = "") -> bool:
    """The value of a switch; false where it is absent or null. Raises InvalidRequest."""
    value = holder.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidRequest(f"'{path}{name}' must be true or false.", param=path + name)
    return value


def is_given(body: JsonObject, name: str, *defaults: Any) -> bool:
    """Whether the field has a value other than null and ``defaults``."""
    if body.size(name) > _MAX_DEFAULT_BYTES:
        return True
    value = body.get(name)
    return value is not None and value not in defaults


def nameable(names: Iterable[str]) -> tuple[str, ...]:
    """The first MAX_IGNORED_NAMES of the names that are safe in a header."""
    return tuple(islice(filter(_NAMEABLE.fullmatch, names), MAX_IGNORED_NAMES))


def _parse_options(body: Mapping[str, Any], metadata: Mapping[str, Any]) -> DifyOptions:
    """Dify's own fields; clients send them with ``extra_body``."""
    if not metadata and _OPTIONS.isdisjoint(body):
        return _NO_OPTIONS
    return DifyOptions(
        conversation_id=_identifier(body, "conversation_id")
        or _identifier(metadata, "conversation_id", "metadata."),
        inputs={**_metadata_inputs(metadata), **_object(body, "inputs")},
        files=_parse_files(body.get("files")),
        auto_generate_name=boolean(body, "auto_generate_name"),
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
