"""The text of an answer as its caller gets it: cut at stop sequences, with links that work. No I/O.

The model's own text can hold a stop sequence and links to Dify's files; what is added to it (files,
sources, notes) stands in paragraphs of its own and is never cut in two.
"""

from collections.abc import Iterable, Sequence

from opendify.files import links
from opendify.files.link_rewriter import LinkRewriter
from opendify.files.links import FileLink
from opendify.rendering.deltas import (
    FileMarkdown,
    LinkTarget,
    RenderedText,
    TextDelta,
)
from opendify.rendering.stop_sequences import StopSequenceFilter


class TextOutput:
    """Every method returns the text that is certain by then, in order. ``stops`` are the caller's
    stop sequences."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._written: list[str] = []
        self._stop_filter = StopSequenceFilter(stops)
        self._links = LinkRewriter()

    @property
    def hit_stop_sequence(self) -> bool:
        """Whether a stop sequence has ended the text."""
        return self._stop_filter.hit

    def feed(self, text: str) -> list[RenderedText]:
        """Takes the next text of the model."""
        return self._write(self._links.feed(self._stop_filter.feed(text)))

    def flush(self) -> list[RenderedText]:
        """What was held back of the model's text, which ends or pauses here."""
        return self._write([*self._links.feed(self._stop_filter.close()), self._links.flush()])

    def begin_paragraph(self) -> list[RenderedText]:
        """Ends the paragraph of the text so far."""
        rest = self.flush()
        return rest if self.hit_stop_sequence else rest + self._write([self._paragraph_break()])

    def insert(self, text: str) -> list[RenderedText]:
        """Adds to the model's paragraph what is not to be cut."""
        rest = self.flush()
        return rest if self.hit_stop_sequence else rest + self._write([text])

    def add_file(self, link: FileLink) -> list[RenderedText]:
        """Adds a paragraph that shows a file; nothing follows a stop sequence."""
        before = self.begin_paragraph()
        if self.hit_stop_sequence:
            return before
        self._written.append(link.url)
        return [*before, FileMarkdown(link)]

    def reset(self) -> bool:
        """Forgets everything; returns whether there was anything."""
        had_text = bool(self._written)
        self._written.clear()
        self._stop_filter = StopSequenceFilter(self._stops)
        self._links = LinkRewriter()
        return had_text

    def links_to(self, url: str) -> bool:
        """Whether the text contains a link to this Dify file."""
        identity = links.file_identity(url)
        return identity in map(links.file_identity, self._links.seen) or identity in "".join(
            self._written
        )

    def _paragraph_break(self) -> str:
        last = "".join(self._written[-2:]) or "\n\n"
        line_ends = len(last) - len(last.rstrip("\n"))
        return "\n" * max(0, 2 - line_ends)

    def _write(self, parts: Iterable[str | FileLink]) -> list[RenderedText]:
        written: list[RenderedText] = []
        for part in parts:
            if isinstance(part, FileLink):
                self._written.append(part.url)
                written.append(LinkTarget(part))
            elif part:
                self._written.append(part)
                written.append(TextDelta(part))
        return written
