"""The event stream of the older completions endpoint. No I/O."""

from collections.abc import Sequence
from functools import cached_property

from opendify import sse
from opendify.errors import OpenDifyError
from opendify.protocols.openai import chat_stream, completion_response
from opendify.protocols.openai.chat_response import ChunkMeta
from opendify.protocols.responses import ResponseMeta
from opendify.rendering.deltas import Completion, Delta, Reset, TextDelta


class CompletionStreamWriter:
    """Writes the chunks of one response. There is no place for reasoning and Open WebUI's events,
    which are left out. ``echo`` is the text that the first chunk holds, ``include_usage`` whether
    the caller asked for usage."""

    def __init__(self, echo: str = "", include_usage: bool = False) -> None:
        self._echo = echo
        self._include_usage = include_usage
        self._head = ChunkMeta("", 0, "", include_usage)
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """All text of the answer that was written, without ``echo``."""
        return "".join(self._texts)

    def start(self, meta: ResponseMeta) -> bytes:
        """The first chunk."""
        self._head = completion_response.to_head(meta, self._include_usage)
        return sse.encode(completion_response.chunk(self._head, self._echo))

    def write(self, deltas: Sequence[Delta]) -> bytes:
        """One event for each piece of text. Where there is none, a comment: the connection must
        not time out while an app thinks."""
        return b"".join(map(self._event, deltas)) or sse.KEEP_ALIVE

    def keep_alive(self) -> bytes:
        """A comment, which clients pass over."""
        return sse.KEEP_ALIVE

    def fail(self, error: OpenDifyError) -> bytes:
        """The event with the error, and the end of the stream."""
        return chat_stream.failure(error)

    def finish(self, meta: ResponseMeta, completion: Completion) -> bytes:
        """The chunk with the finish reason, that with the usage where it was asked for, and the
        end of the stream."""
        end = sse.encode(completion_response.last_chunk(self._head, meta, completion))
        if self._include_usage and completion.usage is not None:
            end += sse.encode(completion_response.usage_chunk(self._head, completion.usage))
        return end + chat_stream.DONE

    def _event(self, delta: Delta) -> bytes:
        match delta:
            case TextDelta(text):
                return self._write_text(text)
            case Reset(had_text=True):  # what was sent cannot be unsent, only be followed
                return self._write_text("\n\n")
            case _:
                return b""

    def _write_text(self, text: str) -> bytes:
        self._texts.append(text)
        return self._template.fill(text)

    @cached_property
    def _template(self) -> sse.Template:
        return sse.Template(completion_response.chunk(self._head, sse.PLACEHOLDER))
