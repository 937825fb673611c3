"""The inputs of a Dify app, from what the caller, the operator and the app's form say. No I/O.

They are checked here, because Dify 1.13 answers a chatflow that misses one with five minutes of
silence; and they go with every turn, because since Dify 1.0 each turn is checked anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opendify.dify.apps import FormField
from opendify.errors import InvalidRequest

_TEXT_KINDS = ("text-input", "paragraph")
_FILE_KINDS = ("file", "file-list")
_TEXT_NAMES = ("query", "input", "text", "question", "prompt", "message")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the caller; MODEL_CONFIG may use it in inputs as ``{user}`` and so on."""

    user: str = ""
    role: str = ""
    chat_id: str = ""
    system: str = ""


def fill(configured: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """The operator's inputs, with the facts in the place of their names."""
    return {name: _filled(value, facts) for name, value in configured.items()}


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


def text_field(form: Sequence[FormField] | None, configured: str, usual: str = "") -> str:
    """The name of the input that takes the person's text: the configured one, else ``usual`` or
    one of the names that people give it, else the only text input. Raises InvalidRequest."""
    if configured:
        return configured
    if form is None:
        return usual or _TEXT_NAMES[0]
    texts = [one.name for one in form if one.kind in _TEXT_KINDS]
    for name in (usual, *_TEXT_NAMES):
        if name in texts:
            return name
    required = [one.name for one in form if one.kind in _TEXT_KINDS and one.required]
    if len(texts) == 1 or len(required) == 1:
        return (required or texts)[0]
    names = ", ".join(texts) or "none"
    raise InvalidRequest(
        f"The Dify app does not tell which input takes the text (its text inputs: {names}). "
        "Its operator should name one as 'text_input' in MODEL_CONFIG.",
        param="model",
    )


def file_field(form: Sequence[FormField] | None) -> FormField | None:
    """The input of a workflow that takes files, or None where it takes them beside the inputs."""
    return next((one for one in form or () if one.kind in _FILE_KINDS), None)


def _filled(value: Any, facts: Facts) -> Any:
    if not isinstance(value, str):
        return value
    for name in ("user", "role", "chat_id", "system"):
        value = value.replace(f"{{{name}}}", getattr(facts, name))
    return value


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value == []


def _check(value: Any, one: FormField) -> None:
    if one.kind in _TEXT_KINDS and not isinstance(value, str):
        _refuse(one, "must be text")
    if one.kind in _TEXT_KINDS and one.max_length and len(value) > one.max_length:
        _refuse(one, f"may have {one.max_length} characters at most")
    if one.kind == "select" and one.options and value not in one.options:
        _refuse(one, f"must be one of {', '.join(one.options)}")
    if one.kind == "number" and not _is_number(value):
        _refuse(one, "must be a number")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _refuse(one: FormField, reason: str) -> None:
    raise InvalidRequest(
        f"The input '{one.name}' of the Dify app {reason}.", param=f"inputs.{one.name}"
    )
