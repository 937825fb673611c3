"""Joins surrogate pairs that arrive in two chunks. No I/O.

A token can be half of a character beyond U+FFFF. Up to 1.8, Dify passes it on as the escape of a
single surrogate. One half cannot be encoded as UTF-8; both together are the character.
"""


class SurrogateJoiner:
    """Joins halves at the ends of consecutive chunks; an unpaired half becomes U+FFFD."""

    def __init__(self) -> None:
        self._high_surrogate = ""

    def feed(self, text: str) -> str:
        """Adds a chunk; returns the text that is complete."""
        if not self._high_surrogate and (text.isascii() or _is_whole(text)):
            return text
        text = self._high_surrogate + text
        self._high_surrogate = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return _combine(text[: len(text) - len(self._high_surrogate)])

    def flush(self) -> str:
        """Ends the text; returns what was held back."""
        half, self._high_surrogate = self._high_surrogate, ""
        return _combine(half)


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _combine(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
