"""Files of ``NAME=value`` lines: how python-dotenv and Docker read them, and how to write them so
that all readers agree.

Docker's parser is ``pkg/kvfile`` of docker/cli. Measured with Docker 20.10, Compose 1.29 and 5,
python-dotenv and bash: ``docker run --env-file`` keeps quotes, the others remove them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from dotenv.parser import parse_stream

# Docker's scanner fails at lines of 64 KiB, including the line end.
MAX_LINE_BYTES = 64 * 1024 - 2
BYTE_ORDER_MARK = "\ufeff"

_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_BLANK = re.compile(r"\s*(#.*)?")
# In single quotes, python-dotenv and Compose read \' and \\ as escapes, bash does not.
_NOT_IN_SINGLE_QUOTES = re.compile(r"['\n\r\0]|\\(?=\\|$)")
_NOT_IN_DOUBLE_QUOTES = re.compile(r'["$`\\\n\r\0]')


@dataclass(frozen=True, slots=True)
class Assignment:
    """One ``NAME=value``; ``line`` is the original line without its line end."""

    name: str
    value: str = field(repr=False)
    line: str = field(repr=False)


class BadLine(ValueError):
    """A line that is not an assignment. Its text is not included: it may contain a key."""

    def __init__(self, number: int) -> None:
        super().__init__(f"line {number} cannot be understood")
        self.number = number


class UnwritableValue(ValueError):
    """A value that readers would read differently or not at all. ``reason`` is the key of a
    message."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def parse(text: str) -> dict[str, str]:
    """The values as python-dotenv returns them, which the application uses for ``.env``.

    Stricter: a value must end on its line, which all readers except python-dotenv and bash require.
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
    """The assignments; all other lines are skipped."""
    return [found for line in _lines(text) if (found := parse_line(line))]


def parse_line(line: str) -> Assignment | None:
    """The assignment on a line (without line end), or None if it is not exactly one."""
    bindings = list(parse_stream(StringIO(line)))
    if len(bindings) != 1 or bindings[0].error:
        return None
    name, value = bindings[0].key, bindings[0].value
    if name is None or value is None or not _NAME.fullmatch(name):
        return None
    return Assignment(name, value, line)


def _lines(text: str) -> list[str]:
    """The lines without byte order mark, for both kinds of line end."""
    return [line.removesuffix("\r") for line in text.removeprefix(BYTE_ORDER_MARK).split("\n")]


def parse_as_docker(text: str) -> dict[str, str]:
    """The values that ``docker run --env-file`` passes on. Raises BadLine.

    A name without ``=`` takes its value from the caller's environment, and is skipped here.
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

    Raises UnwritableValue for values that the format cannot represent.
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
    """One line that python-dotenv, bash and both Composes read alike; the application removes the
    quotes that Docker keeps. Raises UnwritableValue."""
    unsafe = _NOT_IN_DOUBLE_QUOTES if quote == '"' else _NOT_IN_SINGLE_QUOTES
    if unsafe.search(value):
        raise UnwritableValue(name, "value_quotes")
    return f"{name}={quote}{value}{quote}"


def write_json(value: Any) -> str:
    """JSON on one line, in ASCII, without characters that are special inside quotes.

    Such characters occur only within strings, where JSON can escape them by number. Raises
    ValueError for numbers that JSON does not support.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    text = re.sub(r'\\(["\\bfnrt])', lambda match: _ESCAPES[match[1]], text)
    return re.sub("['$`#\x7f]", lambda match: f"\\u{ord(match[0]):04x}", text)


_ESCAPES = {
    letter: f"\\u{ord(character):04x}"
    for letter, character in zip('"\\bfnrt', '"\\\b\f\n\r\t', strict=True)
}
