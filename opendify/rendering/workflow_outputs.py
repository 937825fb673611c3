"""The text and files that the outputs of a run add to its streamed text. No I/O.

Dify 1.13 streams only outputs that a model writes, 1.16 all of them, with a line end in between.
The workflow names its outputs freely, and Dify does not say which of them were streamed.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from opendify.dify.events import FileGenerated
from opendify.dify.parser import file_from


def output_text(outputs: Mapping[str, Any], streamed: Collection[str], output_name: str) -> str:
    """The outputs that are neither files nor already in ``streamed``: a single one as text, several
    as JSON. If there is an output named ``output_name``, only that one is used."""
    if output_name in outputs:
        outputs = {output_name: outputs[output_name]}
    known = {text.strip() for text in streamed}
    new_outputs = {
        name: value
        for name, value in outputs.items()
        if not (_is_empty(value) or _is_file(value) or not known.isdisjoint(_streamed_forms(value)))
    }
    if len(new_outputs) == 1:
        return _as_text(next(iter(new_outputs.values())))
    return f"```json\n{_as_text(new_outputs)}\n```" if new_outputs else ""


def output_files(outputs: Mapping[str, Any]) -> list[FileGenerated]:
    """The files among the outputs, single or in lists."""
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


def _streamed_forms(value: Any) -> set[str]:
    """The texts as which Dify may have streamed a value: 1.16 writes an object as indented JSON, a
    list as a list of Markdown, and all else as Python does."""
    forms = {_as_text(value).strip(), str(value).strip()}
    if isinstance(value, list):
        forms.add("\n".join(f"- {item}" for item in value).strip())
    return forms


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
