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
        digest = _digest(key)
        return any([hmac.compare_digest(digest, known) for known in self.digests])


def parse_keys(text: str) -> Keys:
    """Read keys with commas between, each as it is or as ``sha256:`` and the hash in hexadecimal.

    Raises ValueError, which says by its number which key is wrong, and nothing of it.
    """
    digests = []
    for number, key in enumerate((part.strip() for part in text.split(",")), start=1):
        if key.lower().startswith(_HASHED):
            digest = key[len(_HASHED) :].lower()
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError(f"key {number}: behind 'sha256:' go 64 hexadecimal digits")
            if digest == _digest(""):
                raise ValueError(f"key {number} is the hash of an empty key, which anybody has")
            digests.append(digest)
        elif key:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(f"key {number} has blanks or characters that are not ASCII in it")
            digests.append(_digest(key))
    return Keys(tuple(digests))


def parse_bearer(authorization: str) -> str:
    """The key in an ``Authorization`` header, or "" where there is none."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
