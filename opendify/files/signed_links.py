"""Signed file links, which need no API key. No I/O."""

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass

from opendify.errors import FileExpired, InvalidSignature

VALID_SECONDS = 7 * 24 * 3600

# Links made in the same hour are identical, so that browsers can cache the files.
_EXPIRY_STEP = 3600

# Domain separation: signatures of other data, or of other link formats, made with the same key are
# not valid here.
_PURPOSE = b"opendify file link 1\0"


@dataclass(frozen=True, slots=True)
class LinkClaims:
    """Grants access to one file until ``expires`` (epoch seconds). ``path`` is Dify's."""

    model: str
    path: str
    name: str
    expires: int


def expiry_time(now: float) -> int:
    """When a link created now expires (epoch seconds)."""
    return (int(now + VALID_SECONDS) // _EXPIRY_STEP + 1) * _EXPIRY_STEP


def sign(ticket: LinkClaims, secret: bytes) -> tuple[str, str]:
    """The token and signature of a link."""
    fields = [ticket.model, ticket.path, ticket.name, ticket.expires]
    raw = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    token = _to_text(raw)
    return token, _signature(token, secret)


def verify(token: str, signature: str, secret: bytes, now: float) -> LinkClaims:
    """The content of a link. Raises InvalidSignature and FileExpired."""
    expected = _signature(token, secret).encode()
    if not hmac.compare_digest(expected, signature.encode("utf-8", "replace")):
        raise InvalidSignature("The signature of this link is missing or wrong.")
    model, path, name, expires = json.loads(base64.urlsafe_b64decode(token + "=="))
    if now >= expires:
        raise FileExpired("This link has expired.")
    return LinkClaims(model, path, name, expires)


def _signature(token: str, secret: bytes) -> str:
    message = _PURPOSE + token.encode("utf-8", "replace")
    return _to_text(hmac.digest(secret, message, hashlib.sha256))


def _to_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
