"""Parses values that operators write: JSON objects and numbers in them. No I/O."""

import json
from typing import Any


class InvalidValue(ValueError):
    """A single problem, as a sentence."""


class _DuplicateName(ValueError):
    """A name occurs twice in one object; plain JSON parsing would drop the first."""


def parse_object(text: str, kind: str, example: str) -> dict[str, Any]:
    """A JSON object with at least one entry of this ``kind`` (for messages).

    Raises InvalidValue, whose text follows the name of the variable. It quotes only names: the JSON
    parser's own message would quote the text around the mistake, including keys.
    """
    try:
        found = json.loads(text, object_pairs_hook=_without_duplicates)
    except _DuplicateName as exc:
        raise InvalidValue(f": {exc}") from None
    except (ValueError, RecursionError):
        raise InvalidValue(f" is not valid JSON. It should look like {example}.") from None
    if not isinstance(found, dict) or not found:
        raise InvalidValue(f" must be a JSON object with at least one {kind}, like {example}.")
    return found


def strip_quotes(value: str) -> str:
    """The value of a variable without a pair of quotes around all of it."""
    stripped = value.strip()  # files can leave spaces and carriage returns, too
    if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'":
        return stripped[1:-1]
    return value


def parse_positive(value: Any, where: str) -> int:
    """A whole number above 0. Raises InvalidValue, naming ``where``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidValue(f"{where} must be a whole number above 0")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise _DuplicateName(f"the name '{duplicate}' occurs twice")
    return result
