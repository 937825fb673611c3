"""The text of an answer as its caller gets it: cut at stop sequences, with links that work. No I/O.

The model's own text can hold a stop sequence and links to Dify's files; what is added to it (files,
sources, notes) stands in paragraphs of its own and is never cut in two.
"""

from collections.abc import Callable, Sequence

from opendify.files import links
from opendify.files.inline import LinkRewriter
from opendify.telling.stopping import StopCutter


class Wording:
    """Every method returns what can be said by then. ``stops`` are the caller's stop sequences;
    ``link`` gives the address for one of Dify's, from that, a name and Dify's word for a kind."""

    def __init__(self, stops: Sequence[str], link: Callable[[str, str, str], str]) -> None:
        self._stops = stops
        self._link = link
        self._said: list[str] = []
        self._cutter = StopCutter(stops)
        self._links = LinkRewriter(link)

    @property
    def is_cut(self) -> bool:
        """Whether a stop sequence has ended the text."""
        return self._cutter.hit

    def is_passed_by(self, text: str) -> bool:
        """Whether this text, in whatever pieces, comes back from ``feed`` as it is."""
        return self._cutter.is_passed_by(text) and self._links.is_passed_by(text)

    def pass_on(self, text: str) -> None:
        """Takes such a text."""
        self._links.pass_on(text)
        self._said.append(text)

    def is_free_of_links(self, text: str) -> bool:
        """Whether no link begins, goes on or ends with this text or what is held before it."""
        return self._links.is_passed_by(self._cutter.held + text)

    def feed(self, text: str) -> str:
        """Takes the next text of the model."""
        return self._keep(self._links.feed(self._cutter.feed(text)))

    def rest(self) -> str:
        """What was held back of the model's text, which ends or pauses here."""
        return self._keep(self._links.feed(self._cutter.close()) + self._links.flush())

    def add(self, paragraph: str) -> str:
        """Adds a paragraph that is not the model's; nothing follows a stop sequence."""
        return self.begin_paragraph() + self.insert(paragraph)

    def begin_paragraph(self) -> str:
        """Ends the paragraph of what was said so far."""
        rest = self.rest()
        return rest if self.is_cut else rest + self._keep(self._gap())

    def insert(self, text: str) -> str:
        """Adds what goes on in the paragraph of the model but is not to be cut."""
        rest = self.rest()
        return rest if self.is_cut else rest + self._keep(text)

    def void(self) -> bool:
        """Forgets everything; returns whether there was anything."""
        was = bool(self._said)
        self._said.clear()
        self._cutter = StopCutter(self._stops)
        self._links = LinkRewriter(self._link)
        return was

    def holds(self, url: str) -> bool:
        """Whether the text links to this file of Dify's."""
        identity = links.identity(url)
        met = map(links.identity, self._links.seen)
        return identity in met or identity in "".join(self._said)

    def _gap(self) -> str:
        last = "".join(self._said[-2:]) or "\n\n"
        line_ends = len(last) - len(last.rstrip("\n"))
        return "\n" * max(0, 2 - line_ends)

    def _keep(self, text: str) -> str:
        if text:
            self._said.append(text)
        return text
