"""The keys that callers show: which there are, and whether one of them was shown. No I/O."""

import hashlib
import hmac
import re
from dataclasses import dataclass, field

_HASHED = "sha256:"


@dataclass(frozen=True, slots=True)
class Keys:
    """A set of keys, of which only hashes are kept. Empty, and false, where none are set."""

    digests: tuple[str, ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def hold(self, key: str) -> bool:
        """Whether it is one of them. How long this takes says nothing of how nearly it is."""
        return self.hold_digest(digest_of(key))

    def hold_digest(self, digest: str) -> bool:
        """The same, for the hash of a key."""
        return any([hmac.compare_digest(digest, known) for known in self.digests])


def parse_keys(text: str) -> Keys:
    """Read keys with commas or line ends between.

    Raises ValueError, which says by its number which key is wrong, and nothing of it.
    """
    digests = []
    for number, key in enumerate((part.strip() for part in re.split(r"[,\n]", text)), start=1):
        if key:
            digests.append(parse_key(key, f"key {number}"))
    return Keys(tuple(digests))


def parse_key(key: str, where: str) -> str:
    """The digest of one key, written as it is or as ``sha256:`` and the hash in hexadecimal.

    Raises ValueError, which says ``where`` the key is and nothing of it.
    """
    if key.lower().startswith(_HASHED):
        digest = key[len(_HASHED) :].lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"{where}: behind 'sha256:' go 64 hexadecimal digits")
        if digest == digest_of(""):
            raise ValueError(f"{where} is the hash of an empty key, which anybody has")
        return digest
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{where} has blanks or characters that are not ASCII in it")
    if set(key) & set("\"'[]{}"):  # of another way to write a list, and in no key that is made
        raise ValueError(f"{where} has quotes or brackets in it; write keys with commas between")
    return digest_of(key)


def parse_bearer(authorization: str) -> str:
    """The key in an ``Authorization`` header, or "" where there is none. Only blanks and tabs may
    stand around it (RFC 9110, 5.6.3): ``str.strip`` alone would take off U+00A0 and more."""
    scheme, _, key = authorization.partition(" ")
    return key.strip(" \t") if scheme.lower() == "bearer" else ""


def digest_of(key: str) -> str:
    """The hash by which a key is known: SHA-256, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
