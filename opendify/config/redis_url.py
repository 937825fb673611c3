"""CONVERSATION_STORE: where conversations are stored. No I/O."""

import re
from urllib.parse import parse_qsl, urlsplit

from opendify.config.parsing import InvalidValue

SCHEMES = ("redis", "rediss")
OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


def parse_store_url(value: str) -> str:
    """The URL of a Redis server, or an empty string for the file. Raises InvalidValue, which quotes
    no part of the value: it may contain a password."""
    if value in ("", "file"):
        return ""
    try:
        parts = urlsplit(value)
        is_valid = parts.scheme in SCHEMES and parts.hostname and parts.port != 0
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        is_valid, options = False, []
    if not is_valid or re.search(r"\s", value):
        raise InvalidValue(
            "must be empty or 'file' for the JSON file in DATA_DIR, or the address of a Redis "
            "server, like redis://:password@redis.example.com:6379/0 (rediss:// for TLS; signs "
            "like / @ # ? in the password are written %2F %40 %23 %3F)"
        )
    if not re.fullmatch(r"(/\d*)?", parts.path) or parts.fragment:
        raise InvalidValue(
            "must end with the number of the database, like redis.example.com:6379/0"
        )
    known = OPTIONS if parts.scheme == "rediss" else ()
    if any(name not in known for name, _ in options):
        raise InvalidValue(
            "has an unknown option after the question mark; known are, for rediss:// addresses, "
            + ", ".join(OPTIONS)
        )
    return value


def redact_url(address: str) -> str:
    """The address without user and password, for display."""
    if not address:
        return "file"
    parts = urlsplit(address)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or 6379}/{parts.path.strip('/') or 0}"
