"""Who may call and what each caller may do: OPENDIFY_API_KEYS and related variables. No I/O."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from opendify.auth.api_keys import ApiKeys, parse_key, parse_keys
from opendify.config.parsing import InvalidValue, parse_object

MAX_NAME = 100
MAX_LIMIT = 1_000_000
_EXAMPLE = """'{"team-a":"first-key","team-b":{"keys":["second-key"],"models":["my-model"]}}'"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one caller; 0 means no limit."""

    requests_per_minute: int = 0
    max_streams: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """A caller, identified by any of these keys. ``models`` are the names of the allowed models,
    None for all. Without a ``name``, each key counts as a separate caller."""

    keys: ApiKeys
    name: str = ""
    models: frozenset[str] | None = None
    limits: Limits = field(default_factory=Limits)


def parse_accounts(
    text: str, models: Collection[str], limits: Limits, problems: list[str]
) -> tuple[Account, ...]:
    """The accounts of OPENDIFY_API_KEYS: keys separated by commas or line ends, or a JSON object of
    callers. ``models`` are the names that exist; ``limits`` are the defaults. Problems are added to
    ``problems``."""
    name = "OPENDIFY_API_KEYS"
    if not text.lstrip().startswith("{"):
        keys = parse_key_list(name, text, problems)
        return (Account(keys, limits=limits),) if keys else ()
    try:
        written = parse_object(text, "caller", _EXAMPLE)
    except InvalidValue as exc:
        problems.append(f"{name}{exc}")
        return ()
    accounts = []
    for caller, entry in written.items():
        try:
            accounts.append(_parse_account(caller, entry, models, limits))
        except ValueError as exc:
            problems.append(f"{name}: {exc}.")
    problems += _shared_keys(accounts)
    return tuple(accounts)


def parse_key_list(name: str, text: str, problems: list[str]) -> ApiKeys:
    """The keys in the variable ``name``. A variable that is set but contains no key is an error,
    because it would leave the service open."""
    try:
        keys = parse_keys(text)
    except ValueError as exc:
        problems.append(f"{name}: {exc}.")
        return ApiKeys()
    if text.strip() and not keys:
        problems.append(f"{name} contains no key. Leave it unset if none is wanted.")
    return keys


def parse_origins(text: str) -> frozenset[str]:
    """The allowed CORS origins, like ``https://chat.example.com``; ``*`` means all.

    Raises InvalidValue.
    """
    origins = {origin for part in text.split(",") if (origin := part.strip().rstrip("/"))}
    if not all(origin == "*" or _is_origin(origin) for origin in origins):
        raise InvalidValue(
            "must be origins separated by commas, like https://chat.example.com, or * for all"
        )
    return frozenset(origin.lower() for origin in origins)


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        is_valid = bool(parts.hostname) and parts.username is None and (parts.port or 1) > 0
    except ValueError:
        return False
    rest = parts.path or parts.query or parts.fragment or re.search(r"[\s*]", text)
    return is_valid and not rest and parts.scheme in ("http", "https")


def _parse_account(name: str, entry: Any, models: Collection[str], limits: Limits) -> Account:
    where = f"caller '{name}'"
    _check_name(name)
    settings = {"keys": entry} if isinstance(entry, str | list) else entry
    if not isinstance(settings, dict):
        raise InvalidValue(f"{where} must have a key, a list of keys, or an object with 'keys'")
    known = ("keys", "models", "requests_per_minute", "max_streams")
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InvalidValue(f"{where} has an unknown setting; known are {', '.join(known)}")
    return Account(
        _keys(settings.get("keys"), where),
        name,
        _models(settings["models"], where, models) if "models" in settings else None,
        Limits(
            _limit(settings, "requests_per_minute", limits.requests_per_minute, where),
            _limit(settings, "max_streams", limits.max_streams, where),
        ),
    )


def _check_name(name: str) -> None:
    """Names appear in the stored mappings in the place of a key's hash or ``-``, and must not look
    like one."""
    if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > MAX_NAME:
        raise InvalidValue(
            f"the name of a caller is empty, longer than {MAX_NAME} characters, or has spaces "
            "around it or control characters in it"
        )
    if name == "-" or re.fullmatch("[0-9a-f]{12}", name) or name.lower().startswith("sha256:"):
        raise InvalidValue("a caller has a name that is '-' or looks like the hash of a key")


def _keys(value: Any, where: str) -> ApiKeys:
    written = [value] if isinstance(value, str) else value
    if not isinstance(written, list) or not written:
        raise InvalidValue(f"{where}, setting 'keys' must be a key or a list of keys")
    digests = []
    for number, key in enumerate(written, start=1):
        place = f"{where}, key {number}"
        if not isinstance(key, str) or not key.strip() or "," in key:
            raise InvalidValue(f"{place} must be a string without commas, and not empty")
        digests.append(parse_key(key.strip(), place))
    return ApiKeys(tuple(digests))


def _models(value: Any, where: str, models: Collection[str]) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InvalidValue(f"{where}, setting 'models' must be a list of names of models")
    unknown = [name for name in value if name not in models]
    if unknown and models:
        raise InvalidValue(
            f"{where} refers to the model '{unknown[0]}', which is not in MODEL_CONFIG"
        )
    return frozenset(value)


def _limit(settings: Mapping[str, Any], name: str, default: int, where: str) -> int:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_LIMIT:
        raise InvalidValue(
            f"{where}, setting '{name}' must be a whole number from 0 to {MAX_LIMIT}"
        )
    return value


def _shared_keys(accounts: list[Account]) -> list[str]:
    seen: dict[str, str] = {}
    problems = []
    for account in accounts:
        for digest in account.keys.digests:
            owner = seen.setdefault(digest, account.name)
            if owner != account.name:
                problems.append(
                    f"OPENDIFY_API_KEYS: callers '{owner}' and '{account.name}' have the same key."
                )
    return problems
