"""Characters that came in two halves. No I/O.

A model's token can be half of a character beyond U+FFFF, and up to 1.8 Dify passes it on as the
escape of one surrogate. Neither half can stand in an answer; together they are the character.
"""


class SurrogateJoiner:
    """Joins halves that stand at the ends of two pieces of text; U+FFFD is for one alone."""

    def __init__(self) -> None:
        self._high_surrogate = ""

    def feed(self, text: str) -> str:
        """Takes the next piece; returns what is whole."""
        if not self._high_surrogate and (text.isascii() or _is_whole(text)):
            return text
        text = self._high_surrogate + text
        self._high_surrogate = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return _combine(text[: len(text) - len(self._high_surrogate)])

    def flush(self) -> str:
        """The text is over."""
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
