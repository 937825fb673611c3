"""Decodes Dify's JSON, also where its text is not valid Unicode. No I/O."""

import json
from collections.abc import Callable
from typing import Any

import msgspec

_decode_valid = msgspec.json.Decoder().decode


def decode(raw: bytes, clean: Callable[[Any], Any]) -> Any:
    """The JSON value. Bytes that are not UTF-8 become U+FFFD, so that a broken character does not
    lose the rest. ``clean`` gets a value whose strings may contain lone surrogates, which UTF-8
    cannot encode, and returns the value to use. Raises ValueError."""
    try:
        try:
            return _decode_valid(raw)
        except ValueError:  # not JSON, or with text or numbers that only Python's decoder takes
            value = json.loads(raw.decode("utf-8-sig", "replace"))
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    return clean(value) if _may_have_lone_surrogates(raw) else value


def decode_valid_text(raw: bytes) -> Any:
    """As ``decode``, without lone surrogates."""
    return decode(raw, replace_lone_surrogates)


def replace_lone_surrogates(value: Any) -> Any:
    """The value with surrogate pairs joined and each lone surrogate replaced by U+FFFD."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _may_have_lone_surrogates(raw: bytes) -> bool:
    return b"\\ud" in raw or b"\\uD" in raw
