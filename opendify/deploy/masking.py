"""Masks keys and passwords for display. No I/O."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from opendify.config.settings import PROXY_VARIABLES

MIN_SECRET = 4  # shorter ones would mask half of every line
MIN_SHOWN = 12

_KEY_LISTS = ("OPENDIFY_API_KEYS", "OPENDIFY_ADMIN_KEYS")
_SINGLE = ("OPENDIFY_SECRET", "OPENWEBUI_JWT_SECRET")
_ADDRESSES = ("CONVERSATION_STORE", *PROXY_VARIABLES, *(name.lower() for name in PROXY_VARIABLES))
_PASSWORD = re.compile("://[^/@]*?:([^/]+)@")
_DIFY_KEY = re.compile(r"\bapp-[A-Za-z0-9]{16,}")


def mask_key(key: str) -> str:
    """``app-…ab12``: at most the last four characters, and none of a short key."""
    prefix = "app-" if key.startswith("app-") else ""
    return f"{prefix}…{key[-4:] if len(key) >= MIN_SHOWN else ''}"


def mask(text: str, secrets: Iterable[str]) -> str:
    """The text with these secrets masked, and anything that looks like a Dify key."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, mask_key(secret))
    return _DIFY_KEY.sub(lambda match: mask_key(match[0]), text)


def find_secrets(environ: Mapping[str, str]) -> set[str]:
    """The secrets in this environment, in all spellings; the values need not be valid."""
    found = set(_keys_of_models(environ.get("MODEL_CONFIG", "")))
    for name in _KEY_LISTS:
        found.update(split_keys(environ.get(name, "")))
    for name in _SINGLE:
        found.add(environ.get(name, ""))
    for name in _ADDRESSES:
        for match in _PASSWORD.finditer(environ.get(name, "")):
            found |= {match[1], unquote(match[1])}
    return {secret for secret in found if len(secret) >= MIN_SECRET}


def split_keys(text: str) -> Iterator[str]:
    """The keys in OPENDIFY_API_KEYS as written: a list, or JSON by callers."""
    with suppress(ValueError, RecursionError):
        parsed = json.loads(text)
        if isinstance(parsed, dict):
            for entry in parsed.values():
                yield from _strings(entry.get("keys") if isinstance(entry, dict) else entry)
            return
    yield from filter(None, re.split(r"[,\s]+", text))


def _keys_of_models(text: str) -> Iterator[str]:
    with suppress(ValueError, RecursionError):
        parsed = json.loads(text)
        if isinstance(parsed, dict):
            for entry in parsed.values():
                yield from _strings(entry.get("key") if isinstance(entry, dict) else entry)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)
