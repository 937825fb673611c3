"""OpenAI's event stream of a chat completion. No I/O."""

from collections.abc import Sequence
from functools import cached_property

from opendify import sse
from opendify.errors import OpenDifyError
from opendify.protocols.openai import chat_response
from opendify.protocols.responses import ResponseMeta
from opendify.rendering.deltas import (
    Completion,
    Delta,
    ReasoningDelta,
    Reset,
    TextDelta,
    UiEvent,
)

DONE = b"data: [DONE]\n\n"


def failure(error: OpenDifyError) -> bytes:
    """The end of a stream that failed: an event with ``error`` and without ``choices``, which
    OpenAI's SDKs raise."""
    return sse.encode(chat_response.error_body(error)) + DONE


class ChatStreamWriter:
    """Writes the chunks of one answer. Those that only add text differ in that text alone, so a
    chunk is prepared but for its text. ``include_usage`` is whether the caller asked for usage."""

    def __init__(self, include_usage: bool = False) -> None:
        self._include_usage = include_usage
        self._head = chat_response.ChunkMeta("", 0, "", include_usage)
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """All text that was written as the answer's content."""
        return "".join(self._texts)

    def start(self, meta: ResponseMeta) -> bytes:
        """The chunk that names the role."""
        self._head = chat_response.to_head(meta, self._include_usage)
        return sse.encode(chat_response.chunk(self._head, {"role": "assistant", "content": ""}))

    def write(self, deltas: Sequence[Delta]) -> bytes:
        """One event for each of the deltas."""
        return b"".join(map(self._event, deltas))

    def keep_alive(self) -> bytes:
        """A comment, which clients pass over."""
        return sse.KEEP_ALIVE

    def fail(self, error: OpenDifyError) -> bytes:
        """The event with the error, and the end of the stream."""
        return failure(error)

    def finish(self, meta: ResponseMeta, completion: Completion) -> bytes:
        """The chunk with the finish reason, that with the usage where it was asked for, and the
        end of the stream."""
        end = sse.encode(chat_response.last_chunk(self._head, meta, completion))
        if self._include_usage and completion.usage is not None:
            end += sse.encode(chat_response.usage_chunk(self._head, completion.usage))
        return end + DONE

    def _event(self, delta: Delta) -> bytes:
        match delta:
            case TextDelta(text):
                return self._write_text(text)
            case ReasoningDelta(text):
                return self._reasoning.fill(text)
            case UiEvent(event):
                return sse.encode(
                    chat_response.chunk(self._head, {"content": ""}) | {"event": event}
                )
            case Reset(had_text):  # what was sent cannot be unsent, only be followed
                return self._write_text("\n\n" if had_text else "")

    def _write_text(self, text: str) -> bytes:
        self._texts.append(text)
        return self._content.fill(text)

    @cached_property
    def _content(self) -> sse.Template:
        return sse.Template(chat_response.chunk(self._head, {"content": sse.PLACEHOLDER}))

    @cached_property
    def _reasoning(self) -> sse.Template:
        return sse.Template(chat_response.chunk(self._head, {"reasoning_content": sse.PLACEHOLDER}))
