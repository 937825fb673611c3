"""Values that operators write: objects in JSON, and numbers in them. No I/O."""

import json
from typing import Any


class InvalidValue(ValueError):
    """One thing that is wrong, as a sentence that names it."""


class _DuplicateName(ValueError):
<<<<<<< HEAD
    """A name occurs twice in one object; JSON itself would forget the first."""
=======
    """A name occurs twice in one object; plain JSON parsing would drop the first."""
>>>>>>> 5e4ce14 (Say that a repeated name occurs twice)


def parse_object(text: str, kind: str, example: str) -> dict[str, Any]:
    """A JSON object with at least one entry, which is of this ``kind``.

    Raises BadValue, whose text goes behind the name of the variable. It quotes nothing but names:
    the parser's own message would quote the text around the mistake, keys included.
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
    """The value of a variable without the pair of quotes that may stand around all of it."""
    bare = value.strip()  # blanks and carriage returns at the end of a line stay, too
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'":
        return bare[1:-1]
    return value


def parse_positive(value: Any, where: str) -> int:
    """A whole number above 0. Raises BadValue, which says ``where``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidValue(f"{where} must be a whole number above 0")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
<<<<<<< HEAD
        twice = next(name for name in names if names.count(name) > 1)
        raise _DuplicateName(f"the name '{twice}' occurs twice")
=======
        duplicate = next(name for name in names if names.count(name) > 1)
        raise _DuplicateName(f"the name '{duplicate}' occurs twice")
>>>>>>> 5e4ce14 (Say that a repeated name occurs twice)
    return result
