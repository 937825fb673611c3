"""Reasoning that Dify sends apart from the text: without the line ends around it. No I/O."""

_LINE_ENDS = "\r\n"
_BETWEEN_SOURCES = "\n\n"
_ENDED = ""


class SeparateReasoning:
    """The reasoning of several sources: nodes of a graph, or steps of an agent.

    Line ends before and after the reasoning of a source belong to the tags in which the model wrote
    it, and are left out. ``add`` and ``update`` return the text to show next.
    """

    def __init__(self) -> None:
        self._received: dict[str, str] = {}
        self._held_back: dict[str, str] = {}  # of each source that has begun
        self._shown: str | None = None

    def add(self, source: str, text: str) -> str:
        """Appends the next piece of the reasoning of a source."""
        held_back = self._held_back.get(source)
        text = text.lstrip(_LINE_ENDS) if held_back is None else held_back + text
        shown = text.rstrip(_LINE_ENDS)
        if not shown and held_back is None:
            return ""
        self._held_back[source] = text[len(shown) :]
        return self._separated(source, shown) if shown else ""

    def update(self, source: str, text: str) -> str:
        """Takes the whole reasoning of a source so far, which repeats what was known of it."""
        known = self._received.get(source, "")
        if not text.startswith(known):
            return ""
        self._received[source] = text
        return self.add(source, text[len(known) :])

    def end(self, source: str) -> None:
        """The reasoning of a source is complete; the source may begin with another one."""
        self._held_back.pop(source, None)
        if self._shown == source:
            self._shown = _ENDED

    def interrupt(self) -> None:
        """Something else was shown: no empty line is needed before the next reasoning."""
        self._shown = None

    def _separated(self, source: str, text: str) -> str:
        is_next = self._shown is not None and self._shown != source
        self._shown = source
        return _BETWEEN_SOURCES + text if is_next else text
