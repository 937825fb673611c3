"""Decodes Dify's JSON, also where its text is not valid Unicode. No I/O."""

import json
from typing import Any


def decode(raw: bytes) -> Any:
    """The JSON value. Bytes that are not UTF-8 become U+FFFD, so that a broken character does not
    lose the rest. Strings may contain lone surrogates. Raises ValueError."""
    try:
        return json.loads(raw.decode("utf-8-sig", "replace"))
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def decode_valid_text(raw: bytes) -> Any:
    """As ``decode``, without lone surrogates, which UTF-8 cannot encode."""
    value = decode(raw)
    return replace_lone_surrogates(value) if may_have_lone_surrogates(raw) else value


def may_have_lone_surrogates(raw: bytes) -> bool:
    """Whether a string in this JSON may contain a lone surrogate."""
    return b"\\ud" in raw or b"\\uD" in raw


def replace_lone_surrogates(value: Any) -> Any:
    """The value with surrogate pairs joined and each lone surrogate replaced by U+FFFD."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
