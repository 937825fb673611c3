"""Dify's JSON, from bytes that may hold anything. No I/O."""

import json
from typing import Any


def decode(raw: bytes) -> Any:
    """The value in ``raw``. Bytes that are not UTF-8 become U+FFFD: a character that is broken is
    no reason to lose the rest. Strings may hold half a surrogate pair. Raises ValueError."""
    try:
        return json.loads(raw.decode("utf-8-sig", "replace"))
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def decode_whole(raw: bytes) -> Any:
    """The same, without halves of surrogate pairs, which no UTF-8 can carry."""
    value = decode(raw)
    return with_whole_characters(value) if may_have_halves(raw) else value


def may_have_halves(raw: bytes) -> bool:
    """Whether some string of the JSON in ``raw`` may hold half a surrogate pair."""
    return b"\\ud" in raw or b"\\uD" in raw


def with_whole_characters(value: Any) -> Any:
    """The value with each pair joined and U+FFFD in the place of each half."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
