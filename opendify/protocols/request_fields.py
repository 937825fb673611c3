"""The fields of a request body that mean the same in the APIs of all clients: how they are checked,
and which of them are named as ignored. No I/O."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import islice
from typing import Any

from opendify.errors import InvalidRequest
from opendify.protocols.base import DifyOptions
from opendify.protocols.json_object import JsonObject, parse_nested

# Limits of the header that names ignored fields, because callers can invent names.
MAX_IGNORED_NAMES = 20
_NAMEABLE = re.compile(r"[A-Za-z0-9_.-]{1,40}")

# A longer value cannot be a default, so it is not decoded for the comparison.
_MAX_DEFAULT_BYTES = 256

_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,128}")

# To look for more would hold up everybody else; OpenAI takes four.
MAX_STOPS = 16
MAX_STOP_LENGTH = 256

# The fields of Dify's own that a body may hold, whichever API it is for.
OPTIONS = frozenset(one.name for one in fields(DifyOptions))
_NO_OPTIONS = DifyOptions()


class FieldTable:
    """The fields of one endpoint. ``obeyed`` are those that it reads. ``ignored`` are the API's
    fields that have no effect, in the order in which the response's header names them; ``defaults``
    are values of them that equal the API's default."""

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
        """The names of the fields of ``body`` that have no effect, the API's own first; fits into
        a header."""
        return nameable((*self._named_by_the_api(body), *self._unknown(body)))

    def _named_by_the_api(self, body: JsonObject) -> Iterable[str]:
        if self._ignored.isdisjoint(body):
            return ()
        return (name for name in self._in_order if self._differs(body, name))

    def _unknown(self, body: JsonObject) -> Iterable[str]:
        names = (name for name in body if name not in self._known and _NAMEABLE.fullmatch(name))
        return (name for name in names if self._differs(body, name))

    def _differs(self, body: JsonObject, name: str) -> bool:
        """Whether the field has a value other than null and the API's default."""
        return is_given(body, name, *self._defaults.get(name, ()))


def nameable(names: Iterable[str]) -> tuple[str, ...]:
    """The first MAX_IGNORED_NAMES of the names that are safe in a header."""
    return tuple(islice(filter(_NAMEABLE.fullmatch, names), MAX_IGNORED_NAMES))


def is_given(body: JsonObject, name: str, *defaults: Any) -> bool:
    """Whether the field has a value other than null and these defaults."""
    if body.size(name) > _MAX_DEFAULT_BYTES:
        return True
    value = body.get(name)
    return value is not None and value not in defaults


def parse_model(body: Mapping[str, Any]) -> str:
    """The name of the model. Raises InvalidRequest."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("'model' must name a model; GET /v1/models lists them.", param="model")
    return model


def parse_options(body: Mapping[str, Any], metadata: Mapping[str, Any]) -> DifyOptions:
    """Dify's own fields; clients send them with ``extra_body``. Raises InvalidRequest."""
    if not metadata and OPTIONS.isdisjoint(body):
        return _NO_OPTIONS
    return DifyOptions(
        conversation_id=_identifier(body, "conversation_id")
        or _identifier(metadata, "conversation_id", "metadata."),
        inputs={**_metadata_inputs(metadata), **parse_mapping(body, "inputs")},
        files=_parse_files(body.get("files")),
        auto_generate_name=parse_boolean(body, "auto_generate_name"),
        workflow_id=_identifier(body, "workflow_id"),
        trace_id=_identifier(body, "trace_id"),
    )


def metadata_user(metadata: Mapping[str, Any]) -> str:
    """``user_id``. A number of a database names a person too: none may share the default user's
    chats."""
    user = metadata.get("user_id")
    is_name = isinstance(user, str | int | float) and not isinstance(user, bool)
    return str(user).strip() if is_name else ""


def metadata_task(metadata: Mapping[str, Any]) -> str:
    """``task``, the background task."""
    task = metadata.get("task")
    return task.strip() if isinstance(task, str) else ""


def parse_stops(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Stop sequences: a string, or an array of strings. Raises InvalidRequest."""
    raw = body.get(name)
    stops = [raw] if isinstance(raw, str) else raw
    if stops is None:
        return ()
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise InvalidRequest(f"'{name}' must be a string or an array of strings.", param=name)
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in stops):
        raise InvalidRequest(
            f"'{name}' may hold up to {MAX_STOPS} strings of up to {MAX_STOP_LENGTH} characters.",
            param=name,
        )
    return tuple(stop for stop in stops if stop)


def parse_boolean(holder: Mapping[str, Any], name: str, path: str = "") -> bool:
    """True or false; false for an absent field. Raises InvalidRequest."""
    value = holder.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidRequest(f"'{path}{name}' must be true or false.", param=path + name)
    return value


def parse_mapping(holder: Mapping[str, Any], name: str, path: str = "") -> Mapping[str, Any]:
    """A JSON object; an empty one for an absent field. Raises InvalidRequest."""
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{path}{name}' must be an object.", param=path + name)
    return value


def parse_name(holder: Mapping[str, Any], name: str, path: str = "") -> str:
    """A text or a number as text; "" for an absent field. Raises InvalidRequest."""
    value = holder.get(name)
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InvalidRequest(f"'{path}{name}' must be a string.", param=path + name)
    return value.replace("\0", "").strip()


def _metadata_inputs(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """``inputs`` and ``inputs.<name>``: the values of OpenAI's metadata are text, and so the object
    may be JSON in a text."""
    raw = metadata.get("inputs")
    if isinstance(raw, str):
        raw = parse_nested(raw, "metadata.inputs")
    whole = parse_mapping({"inputs": raw}, "inputs", "metadata.")
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


def _identifier(holder: Mapping[str, Any], name: str, path: str = "") -> str:
    """A name that Dify gave, which may become a part of an address."""
    value = parse_name(holder, name, path)
    if value and not _IDENTIFIER.fullmatch(value):
        raise InvalidRequest(
            f"'{path}{name}' must be an id of Dify's: letters, digits, '-' and '_'.",
            param=path + name,
        )
    return value
