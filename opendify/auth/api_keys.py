"""API keys: parsing them from settings and requests, and comparing them. No I/O."""

import hashlib
import hmac
import re
from dataclasses import dataclass, field

_HASHED = "sha256:"


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """A set of keys, stored as hashes only. Falsy when empty."""

    digests: tuple[str, ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def contains(self, key: str) -> bool:
        """Whether ``key`` is in the set. The time that this takes does not depend on how similar it
        is to a key in the set."""
        return self.contains_digest(hash_key(key))

    def contains_digest(self, digest: str) -> bool:
        """The same, for the hash of a key."""
        return any([hmac.compare_digest(digest, known) for known in self.digests])


def parse_keys(text: str) -> ApiKeys:
    """Parse keys separated by commas or line breaks.

    Raises ValueError, which names the wrong key by its position and never quotes it.
    """
    digests = []
    for number, key in enumerate((part.strip() for part in re.split(r"[,\n]", text)), start=1):
        if key:
            digests.append(parse_key(key, f"key {number}"))
    return ApiKeys(tuple(digests))


def parse_key(key: str, where: str) -> str:
    """The digest of one key, given in plain text or as ``sha256:`` and its hash in hexadecimal.

    Raises ValueError, which contains ``where`` and never quotes the key.
    """
    if key.lower().startswith(_HASHED):
        digest = key[len(_HASHED) :].lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"{where}: 'sha256:' must be followed by 64 hexadecimal digits")
        if digest == hash_key(""):
            raise ValueError(f"{where} is the hash of an empty key, which protects nothing")
        return digest
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{where} contains spaces or non-ASCII characters")
    if set(key) & set("\"'[]{}"):  # another list syntax; no generated key contains these
        raise ValueError(f"{where} contains quotes or brackets; separate keys with commas")
    return hash_key(key)


def parse_bearer(authorization: str) -> str:
    """The key in an ``Authorization`` header, "" where there is none. Only spaces and tabs around
    it are optional whitespace (RFC 9110, 5.6.3); ``str.strip`` alone would also remove U+00A0 and
    others."""
    scheme, _, key = authorization.partition(" ")
    return key.strip(" \t") if scheme.lower() == "bearer" else ""


def hash_key(key: str) -> str:
    """The SHA-256 hash of a key, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
