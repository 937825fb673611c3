"""Fields of Dify's JSON, which may hold anything: what they should be, or nothing of it. No I/O."""

from typing import Any


def as_object(raw: Any) -> dict[str, Any]:
    """The object, or an empty one."""
    return raw if isinstance(raw, dict) else {}


def as_list(raw: Any) -> list[Any]:
    """The list, or an empty one."""
    return raw if isinstance(raw, list) else []


def as_string(raw: Any) -> str:
    """The text, or an empty one."""
    return raw if isinstance(raw, str) else ""


def as_strings(raw: Any) -> list[str]:
    """The texts in a list."""
    return [item for item in as_list(raw) if isinstance(item, str)]


def as_count(raw: Any) -> int:
    """A whole number above 0, or 0."""
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and raw > 0 else 0
