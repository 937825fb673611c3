"""Characters that came in two halves. No I/O.

A model's token can be half of a character beyond U+FFFF, and up to 1.8 Dify passes it on as the
escape of one surrogate. Neither half can stand in an answer; together they are the character.
"""


class SurrogateJoiner:
    """Joins halves that stand at the ends of two pieces of text; U+FFFD is for one alone."""

    def __init__(self) -> None:
        self._half = ""

    def feed(self, text: str) -> str:
        """Takes the next piece; returns what is whole."""
        if not self._half and (text.isascii() or _is_whole(text)):
            return text
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return _mended(text[: len(text) - len(self._half)])

    def rest(self) -> str:
        """The text is over."""
        half, self._half = self._half, ""
        return _mended(half)


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mended(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
