"""The text of an answer as sent to the client: cut at stop sequences, with working links. No I/O.

Stop sequences and Dify file links are searched for in the model's own text only. Text that the
proxy adds (files, sources, notes) is placed in separate paragraphs and is never cut.
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
    """Each method returns the text that is now final, in order. ``stops`` are the stop sequences of
    the request."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._written: list[str] = []
        self._stop_filter = StopSequenceFilter(stops)
        self._links = LinkRewriter()

    @property
    def hit_stop_sequence(self) -> bool:
        """Whether a stop sequence has ended the text."""
        return self._stop_filter.hit

    @property
    def stop_sequence(self) -> str:
        """The stop sequence that has ended the text; "" for none."""
        return self._stop_filter.found

    def feed(self, text: str) -> list[RenderedText]:
        """Adds text from the model."""
        return self._write(self._links.feed(self._stop_filter.feed(text)))

    def flush(self) -> list[RenderedText]:
        """Returns the model text that was held back; call when it ends or pauses."""
        return self._write([*self._links.feed(self._stop_filter.close()), self._links.flush()])

    def begin_paragraph(self) -> list[RenderedText]:
        """Ends the current paragraph."""
        flushed = self.flush()
        if self.hit_stop_sequence:
            return flushed
        return flushed + self._write([self._paragraph_break()])

    def insert(self, text: str) -> list[RenderedText]:
        """Adds text that stop sequences must not cut to the current paragraph."""
        flushed = self.flush()
        return flushed if self.hit_stop_sequence else flushed + self._write([text])

    def add_file(self, link: FileLink) -> list[RenderedText]:
        """Adds a paragraph that shows a file, unless a stop sequence was hit."""
        before = self.begin_paragraph()
        if self.hit_stop_sequence:
            return before
        self._written.append(link.url)
        return [*before, FileMarkdown(link)]

    def reset(self) -> bool:
        """Discards all text; returns whether there was any."""
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
