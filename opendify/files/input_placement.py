"""Where the files of a message go: into the inputs of the app's form, or beside them. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Any

from opendify.dify.apps import FileRules, FormField

_File = Mapping[str, Any]


def place_files(
    files: Sequence[_File],
    form: Sequence[FormField],
    given: Mapping[str, Any],
    beside: FileRules | None,
) -> tuple[dict[str, Any], list[_File]]:
    """The inputs that take the files (Dify's file objects), and the files that go beside them.

    Inputs that must be filled come first, then what the app takes beside its inputs (``beside``),
    then the other inputs; what nothing takes goes beside them. ``given`` are the inputs that have
    a value already.
    """
    rest = list(files)
    placed: dict[str, Any] = {}
    takers = [one for one in form if one.files and not given.get(one.name)]
    for one in sorted(takers, key=lambda one: not one.required):
        kept = [] if one.required or beside is None else _taken(rest, beside)
        free = [file for file in rest if file not in kept]
        mine = _taken(free, one.files)[: (one.files and one.files.max_count) or None]
        if mine:
            placed[one.name] = mine if one.kind == "file-list" else mine[0]
            rest = [file for file in rest if file not in mine]
    return placed, rest


def _taken(files: Sequence[_File], rules: FileRules | None) -> list[_File]:
    return [file for file in files if rules and file.get("type") in rules.kinds]
