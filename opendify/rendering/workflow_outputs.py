"""What the outputs of a run add to the text that it streamed. No I/O.

A workflow streams only those outputs that a model writes; all others come with its end. Their
names are the workflow's, and Dify does not say which of them was streamed.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from opendify.dify.events import FileGenerated
from opendify.dify.parser import file_from


def output_text(outputs: Mapping[str, Any], streamed: Collection[str], wanted: str) -> str:
    """The text of the outputs that are neither files nor in ``streamed`` already: one as it is,
    several as JSON. ``wanted`` is the name of the one to use, where it is there."""
    if wanted in outputs:
        outputs = {wanted: outputs[wanted]}
    known = {text.strip() for text in streamed}
    told = {
        name: value
        for name, value in outputs.items()
        if not (_is_empty(value) or _is_file(value) or _as_text(value).strip() in known)
    }
    if len(told) == 1:
        return _as_text(next(iter(told.values())))
    return f"```json\n{_as_text(told)}\n```" if told else ""


def output_files(outputs: Mapping[str, Any]) -> list[FileGenerated]:
    """The files among the outputs, alone or in lists."""
    items = [
        item
        for value in outputs.values()
        for item in (value if isinstance(value, list) else [value])
    ]
    return [file for item in items if (file := file_from(item))]


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {})


def _is_file(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(file_from(item) for item in value)
    return file_from(value) is not None


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
