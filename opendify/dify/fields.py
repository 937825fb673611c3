"""Reads fields of Dify's JSON as the expected type, or as its empty value. No I/O."""

from typing import Any


def as_object(raw: Any) -> dict[str, Any]:
    """The object, or an empty one."""
    return raw if isinstance(raw, dict) else {}


def as_list(raw: Any) -> list[Any]:
    """The list, or an empty one."""
    return raw if isinstance(raw, list) else []


def as_string(raw: Any) -> str:
    """The string, or an empty one."""
    return raw if isinstance(raw, str) else ""


def as_strings(raw: Any) -> list[str]:
    """The strings in a list."""
    return [item for item in as_list(raw) if isinstance(item, str)]


def as_count(raw: Any) -> int:
    """The integer if it is positive, or 0."""
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and raw > 0 else 0
