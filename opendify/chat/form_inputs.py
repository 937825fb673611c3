"""The inputs of a Dify app, from what the caller, the operator and the app's form say. No I/O.

They are checked here, because Dify 1.13 answers a chatflow that misses one with five minutes of
silence; and they go with every turn, because since Dify 1.0 each turn is checked anew.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opendify.dify.apps import FormField
from opendify.errors import InvalidRequest

_TEXT_KINDS = ("text-input", "paragraph")
_FACT = re.compile(r"\{(user|role|chat_id|system)\}")
# A request must not set these facts through its own inputs.
_IDENTITY = re.compile(r"\{(user|role|chat_id)\}")
_TEXT_NAMES = ("query", "input", "text", "question", "prompt", "message")


@dataclass(frozen=True, slots=True)
class TemplateVars:
    """What is known of the caller; MODEL_CONFIG may use it in inputs as ``{user}`` and so on."""

    user: str = ""
    role: str = ""
    chat_id: str = ""
    system: str = ""


def fill(configured: Mapping[str, Any], facts: TemplateVars) -> dict[str, Any]:
    """The operator's inputs, with the facts in the place of their names, at any depth."""
    return {name: _filled(value, facts) for name, value in configured.items()}


def reserved(configured: Mapping[str, Any]) -> frozenset[str]:
    """The names of the operator's inputs whose values hold ``{user}``, ``{role}`` or
    ``{chat_id}``, at any depth. A request must not replace them."""
    return frozenset(name for name, value in configured.items() if _holds_identity(value))


def complete(inputs: Mapping[str, Any], form: Sequence[FormField]) -> dict[str, Any]:
    """``inputs`` with the form's own defaults. Raises InvalidRequest, which names what is missing
    or does not fit."""
    completed = dict(inputs)
    for one in form:
        if _is_empty(completed.get(one.name)) and not _is_empty(one.default):
            completed[one.name] = one.default
    missing = [f.name for f in form if f.required and _is_empty(completed.get(f.name))]
    if missing:
        names = ", ".join(missing)
        raise InvalidRequest(
            f"The Dify app needs these inputs: {names}. Send them as "
            f'"inputs": {{"{missing[0]}": ...}} in the request (extra_body in the OpenAI SDKs), '
            "or let the operator set them in MODEL_CONFIG.",
            param="inputs",
        )
    for one in form:
        if not _is_empty(completed.get(one.name)):
            _check(completed[one.name], one)
    return completed


def text_field(
    form: Sequence[FormField] | None, configured: str, given: Mapping[str, Any], usual: str = ""
) -> str:
    """The name of the input that takes the person's text: the configured one, else ``usual`` or
    one of the names that people give it, else the only text input that ``given`` has no value
    for. "" where ``given`` says everything. Raises InvalidRequest."""
    if configured:
        return configured
    if form is None:
        return usual or _TEXT_NAMES[0]
    texts = [one for one in form if one.kind in _TEXT_KINDS]
    open_ = {one.name: one.required for one in texts if _is_empty(given.get(one.name))}
    for name in (usual, *_TEXT_NAMES):
        if name in open_:
            return name
    required = [name for name, is_required in open_.items() if is_required]
    if len(open_) == 1 or len(required) == 1:
        return (required or list(open_))[0]
    if given and not open_:
        return ""
    if usual:  # a text generator has a query beside its inputs
        return next(iter([*required, *open_]), usual)
    names = ", ".join(one.name for one in texts) or "none"
    raise InvalidRequest(
        f"The Dify app does not tell which input takes the text (its text inputs: {names}). "
        "Its operator should name one as 'text_input' in MODEL_CONFIG.",
        param="model",
    )


def _filled(value: Any, facts: TemplateVars) -> Any:
    if isinstance(value, dict):
        return {name: _filled(item, facts) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, facts) for item in value]
    if isinstance(value, str):
        return _FACT.sub(lambda match: str(getattr(facts, match[1])), value)
    return value


def _holds_identity(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_identity, value.values()))
    if isinstance(value, list):
        return any(map(_holds_identity, value))
    return isinstance(value, str) and _IDENTITY.search(value) is not None


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value == []


def _check(value: Any, one: FormField) -> None:
    problem = _PROBLEMS[one.kind](value, one) if one.kind in _PROBLEMS else ""
    if problem:
        raise InvalidRequest(
            f"The input '{one.name}' of the Dify app {problem}.", param=f"inputs.{one.name}"
        )


def _text_problem(value: Any, one: FormField) -> str:
    if not isinstance(value, str):
        return "must be text"
    too_long = one.max_length and len(value) > one.max_length
    return f"may have {one.max_length} characters at most" if too_long else ""


def _select_problem(value: Any, one: FormField) -> str:
    is_wrong = one.options and value not in one.options
    return f"must be one of {', '.join(one.options)}" if is_wrong else ""


def _number_problem(value: Any, one: FormField) -> str:
    return "" if _is_number(value) else "must be a number"


def _object_problem(value: Any, one: FormField) -> str:
    return "" if isinstance(value, dict) else "must be an object"


def _file_problem(value: Any, one: FormField) -> str:
    return "" if isinstance(value, dict) else "must be one of Dify's file objects"


def _files_problem(value: Any, one: FormField) -> str:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return "must be an array of Dify's file objects"
    too_many = one.max_length and len(value) > one.max_length
    return f"may have {one.max_length} files at most" if too_many else ""


# A checkbox takes anything: Dify makes true or false of it.
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
