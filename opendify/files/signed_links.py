"""Links that need no key: what a link is for, sealed so that nobody else can make one. No I/O."""

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass

from opendify.errors import FileExpired, InvalidSignature

VALID_SECONDS = 7 * 24 * 3600

# Links of the same hour are the same, so that browsers keep what they have loaded.
_EXPIRY_STEP = 3600

# A signature of anything else that the secret ever signs, or of another form of ticket, is none.
_PURPOSE = b"opendify file link 1\0"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Lets its holder have one file until ``expires``, in epoch seconds. ``path`` is Dify's."""

    model: str
    path: str
    name: str
    expires: int


def expiry(now: float) -> int:
    """When a link that is made now ends."""
    return (int(now + VALID_SECONDS) // _EXPIRY_STEP + 1) * _EXPIRY_STEP


def sign(ticket: Ticket, secret: bytes) -> tuple[str, str]:
    """The token and the signature of a link."""
    fields = [ticket.model, ticket.path, ticket.name, ticket.expires]
    raw = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    token = _to_text(raw)
    return token, _signature(token, secret)


def verify(token: str, signature: str, secret: bytes, now: float) -> Ticket:
    """What a link is for. Raises LinkRefused and FileGone."""
    expected = _signature(token, secret).encode()
    if not hmac.compare_digest(expected, signature.encode("utf-8", "replace")):
        raise InvalidSignature("The signature of this link is missing or wrong.")
    model, path, name, expires = json.loads(base64.urlsafe_b64decode(token + "=="))
    if now >= expires:
        raise FileExpired("This link has expired.")
    return Ticket(model, path, name, expires)


def _signature(token: str, secret: bytes) -> str:
    message = _PURPOSE + token.encode("utf-8", "replace")
    return _to_text(hmac.digest(secret, message, hashlib.sha256))


def _to_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
