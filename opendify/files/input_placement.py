"""Assigns the files of a message to inputs of the app's form, or to the message itself. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Any

from opendify.dify.apps import FileRules, FormField

_File = Mapping[str, Any]


def place_files(
    files: Sequence[_File],
    form: Sequence[FormField],
    values: Mapping[str, Any],
    message_rules: FileRules | None,
) -> tuple[dict[str, Any], list[_File]]:
    """The inputs that receive files (as Dify file objects), and the files sent with the message.

    Required inputs are filled first, then the files that the app accepts outside its inputs
    (``message_rules``) are set aside, then optional inputs are filled. The remaining files are sent
    with the message. ``values`` are the inputs that have a value already.
    """
    rest = list(files)
    placed: dict[str, Any] = {}
    file_inputs = [entry for entry in form if entry.files and not values.get(entry.name)]
    for entry in sorted(file_inputs, key=lambda entry: not entry.required):
        reserved = [] if entry.required or message_rules is None else _accepted(rest, message_rules)
        free = [file for file in rest if file not in reserved]
        selected = _accepted(free, entry.files)[: (entry.files and entry.files.max_count) or None]
        if selected:
            placed[entry.name] = selected if entry.kind == "file-list" else selected[0]
            rest = [file for file in rest if file not in selected]
    return placed, rest


def _accepted(files: Sequence[_File], rules: FileRules | None) -> list[_File]:
    return [file for file in files if rules and file.get("type") in rules.kinds]
