"""The inputs of a Dify app, from the request, the operator's settings and the app's form. No I/O.

They are validated here because Dify 1.13 hangs for five minutes where a chatflow misses one. They
are sent with every turn because Dify validates them on every turn since 1.0.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opendify.dify.apps import FormField
from opendify.errors import InvalidRequest

_TEXT_KINDS = ("text-input", "paragraph")
_VARIABLE = re.compile(r"\{(user|role|chat_id|system)\}")
# A request must not override these variables through its own inputs.
_IDENTITY_VARIABLE = re.compile(r"\{(user|role|chat_id)\}")
_TEXT_NAMES = ("query", "input", "text", "question", "prompt", "message")


@dataclass(frozen=True, slots=True)
class TemplateVars:
    """The variables that inputs in MODEL_CONFIG can contain, as ``{user}`` and so on."""

    user: str = ""
    role: str = ""
    chat_id: str = ""
    system: str = ""


def fill(configured: Mapping[str, Any], variables: TemplateVars) -> dict[str, Any]:
    """The operator's inputs with the variables substituted, at any depth."""
    return {name: _substituted(value, variables) for name, value in configured.items()}


def reserved(configured: Mapping[str, Any]) -> frozenset[str]:
    """The names of the operator's inputs that contain ``{user}``, ``{role}`` or ``{chat_id}`` at
    any depth. A request must not override them."""
    return frozenset(name for name, value in configured.items() if _holds_identity(value))


def complete(inputs: Mapping[str, Any], form: Sequence[FormField]) -> dict[str, Any]:
    """``inputs`` with the defaults of the form. Raises InvalidRequest, which names missing and
    invalid inputs."""
    completed = dict(inputs)
    for field in form:
        if _is_empty(completed.get(field.name)) and not _is_empty(field.default):
            completed[field.name] = field.default
    missing = [f.name for f in form if f.required and _is_empty(completed.get(f.name))]
    if missing:
        names = ", ".join(missing)
        raise InvalidRequest(
            f"The Dify app needs these inputs: {names}. Send them as "
            f'"inputs": {{"{missing[0]}": ...}} in the request (extra_body in the OpenAI SDKs), '
            "or let the operator set them in MODEL_CONFIG.",
            param="inputs",
        )
    for field in form:
        if not _is_empty(completed.get(field.name)):
            _check(completed[field.name], field)
    return completed


def text_field(
    form: Sequence[FormField] | None,
    configured: str,
    values: Mapping[str, Any],
    default_name: str = "",
) -> str:
    """The name of the input for the user's text: ``configured``, else ``default_name`` or another
    common name, else the only text input without a value in ``values``. "" where ``values`` has all
    of them. Raises InvalidRequest."""
    if configured:
        return configured
    if form is None:
        return default_name or _TEXT_NAMES[0]
    texts = [field for field in form if field.kind in _TEXT_KINDS]
    unset = {field.name: field.required for field in texts if _is_empty(values.get(field.name))}
    for name in (default_name, *_TEXT_NAMES):
        if name in unset:
            return name
    required = [name for name, is_required in unset.items() if is_required]
    if len(unset) == 1 or len(required) == 1:
        return (required or list(unset))[0]
    if values and not unset:
        return ""
    if default_name:  # a completion app has a query besides its inputs
        return next(iter([*required, *unset]), default_name)
    names = ", ".join(field.name for field in texts) or "none"
    raise InvalidRequest(
        f"The Dify app does not tell which input takes the text (its text inputs: {names}). "
        "Its operator should name one as 'text_input' in MODEL_CONFIG.",
        param="model",
    )


def _substituted(value: Any, variables: TemplateVars) -> Any:
    if isinstance(value, dict):
        return {name: _substituted(item, variables) for name, item in value.items()}
    if isinstance(value, list):
        return [_substituted(item, variables) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: str(getattr(variables, match[1])), value)
    return value


def _holds_identity(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_identity, value.values()))
    if isinstance(value, list):
        return any(map(_holds_identity, value))
    return isinstance(value, str) and _IDENTITY_VARIABLE.search(value) is not None


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value == []


def _check(value: Any, field: FormField) -> None:
    problem = _PROBLEMS[field.kind](value, field) if field.kind in _PROBLEMS else ""
    if problem:
        raise InvalidRequest(
            f"The input '{field.name}' of the Dify app {problem}.", param=f"inputs.{field.name}"
        )


def _text_problem(value: Any, field: FormField) -> str:
    if not isinstance(value, str):
        return "must be text"
    too_long = field.max_length and len(value) > field.max_length
    return f"may have {field.max_length} characters at most" if too_long else ""


def _select_problem(value: Any, field: FormField) -> str:
    is_wrong = field.options and value not in field.options
    return f"must be one of {', '.join(field.options)}" if is_wrong else ""


def _number_problem(value: Any, field: FormField) -> str:
    return "" if _is_number(value) else "must be a number"


def _object_problem(value: Any, field: FormField) -> str:
    return "" if isinstance(value, dict) else "must be an object"


def _file_problem(value: Any, field: FormField) -> str:
    return "" if isinstance(value, dict) else "must be one of Dify's file objects"


def _files_problem(value: Any, field: FormField) -> str:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return "must be an array of Dify's file objects"
    too_many = field.max_length and len(value) > field.max_length
    return f"may have {field.max_length} files at most" if too_many else ""


# A checkbox accepts any value: Dify converts it to a boolean.
_PROBLEMS: dict[str, Callable[[Any, FormField], str]] = {
    "text-input": _text_problem,
    "paragraph": _text_problem,
    "select": _select_problem,
    "number": _number_problem,
    "json_object": _object_problem,
    "file": _file_problem,
    "file-list": _files_problem,
}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
