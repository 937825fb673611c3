"""Files of ``NAME=value`` lines: how python-dotenv and Docker read them, and how to write them so
that all readers agree.

What Docker does is in ``pkg/kvfile`` of docker/cli. Measured with Docker 20.10, Compose 1.29 and 5,
python-dotenv and bash: the quotes of ``docker run --env-file`` stay on, the others' come off.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from dotenv.parser import parse_stream

# Docker's scanner gives up at lines of 64 KiB, their end included.
MAX_LINE_BYTES = 64 * 1024 - 2
BYTE_ORDER_MARK = "\ufeff"

_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_BLANK = re.compile(r"\s*(#.*)?")
# In single quotes, python-dotenv and Compose read \' and \\ as escapes, bash does not.
_NOT_IN_SINGLE_QUOTES = re.compile(r"['\n\r\0]|\\(?=\\|$)")
_NOT_IN_DOUBLE_QUOTES = re.compile(r'["$`\\\n\r\0]')


@dataclass(frozen=True, slots=True)
class Assignment:
    """One ``NAME=value``; ``line`` is how it was written, without the end of the line."""

    name: str
    value: str = field(repr=False)
    line: str = field(repr=False)


class BadLine(ValueError):
    """A line that is no assignment. Its text is not kept: it may hold a key."""

    def __init__(self, number: int) -> None:
        super().__init__(f"line {number} cannot be understood")
        self.number = number


class UnwritableValue(ValueError):
    """A value that readers would read differently, or not at all. ``reason`` is the key of a
    message."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def parse(text: str) -> dict[str, str]:
    """The values as python-dotenv gives them, which the application reads ``.env`` with.

    Stricter in that each value ends on its line, as all readers but python-dotenv and bash want it.
    Raises BadLine.
    """
    values = {}
    for number, line in enumerate(_lines(text), start=1):
        if _BLANK.fullmatch(line):
            continue
        assignment = parse_line(line)
        if assignment is None:
            raise BadLine(number)
        values[assignment.name] = assignment.value
    return values


def parse_assignments(text: str) -> list[Assignment]:
    """The lines that are assignments; all others are skipped."""
    return [found for line in _lines(text) if (found := parse_line(line))]


def parse_line(line: str) -> Assignment | None:
    """The assignment on a line without its end, or None where it is not exactly one."""
    bindings = list(parse_stream(StringIO(line)))
    if len(bindings) != 1 or bindings[0].error:
        return None
    name, value = bindings[0].key, bindings[0].value
    if name is None or value is None or not _NAME.fullmatch(name):
        return None
    return Assignment(name, value, line)


def _lines(text: str) -> list[str]:
    """Without byte order mark, and with either kind of line end."""
    return [line.removesuffix("\r") for line in text.removeprefix(BYTE_ORDER_MARK).split("\n")]


def parse_as_docker(text: str) -> dict[str, str]:
    """The values that ``docker run --env-file`` passes on. Raises BadLine.

    A name alone takes its value from the caller's environment, and is left out here.
    """
    values = {}
    for number, line in enumerate(_lines(text), start=1):
        line = line.lstrip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not name or re.search(r"[ \t]", name) or len(line.encode()) > MAX_LINE_BYTES:
            raise BadLine(number)
        if equals:
            values[name] = value
    return values


def write_for_docker(values: Mapping[str, str]) -> str:
    """A file for ``docker run --env-file``, which reads each value back unchanged.

    Raises Unwritable for values that the format cannot hold.
    """
    lines = []
    for name, value in values.items():
        if re.search(r"[\n\r\0]", value):
            raise UnwritableValue(name, "value_line_break")
        line = f"{name}={value}\n"
        if len(line.encode()) > MAX_LINE_BYTES:
            raise UnwritableValue(name, "value_too_long")
        lines.append(line)
    return "".join(lines)


def write_assignment(name: str, value: str, quote: str = "'") -> str:
    """One line that python-dotenv, bash and both Composes read alike; the application takes the
    quotes off where Docker leaves them on. Raises Unwritable."""
    unsafe = _NOT_IN_DOUBLE_QUOTES if quote == '"' else _NOT_IN_SINGLE_QUOTES
    if unsafe.search(value):
        raise UnwritableValue(name, "value_quotes")
    return f"{name}={quote}{value}{quote}"


def write_json(value: Any) -> str:
    """JSON on one line, in ASCII, without any character that has a meaning between quotes.

    Such characters occur within strings only, where JSON can write them by number. Raises
    ValueError for numbers that JSON does not have.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    text = re.sub(r'\\(["\\bfnrt])', lambda match: _ESCAPES[match[1]], text)
    return re.sub("['$`#\x7f]", lambda match: f"\\u{ord(match[0]):04x}", text)


_ESCAPES = {
    letter: f"\\u{ord(character):04x}"
    for letter, character in zip('"\\bfnrt', '"\\\b\f\n\r\t', strict=True)
}
