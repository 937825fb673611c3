"""Anthropic's event stream of a message. No I/O."""

from collections.abc import Sequence
from typing import Any

from opendify import sse
from opendify.errors import OpenDifyError
from opendify.protocols.anthropic import message
from opendify.protocols.responses import ResponseMeta, dify_metadata
from opendify.rendering.deltas import (
    Completion,
    Delta,
    ReasoningDelta,
    Reset,
    TextDelta,
    UiEvent,
)

_BLOCKS: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}


class MessageStreamWriter:
    """Writes the events of one answer: blocks of text and of thinking, one after the other.

    ``shows_thinking`` is whether there are blocks of thinking; ``request_id`` is named in errors.
    """

    def __init__(self, shows_thinking: bool = False, request_id: str = "") -> None:
        self._shows_thinking = shows_thinking
        self._request_id = request_id
        self._has_started = False
        self._texts: list[str] = []
        self._block = ""  # the type of the open block
        self._index = -1
        self._template = sse.Template("")

    @property
    def text(self) -> str:
        """All text that was written in blocks of text."""
        return "".join(self._texts)

    def start(self, meta: ResponseMeta) -> bytes:
        """The event with the message's id. Dify counts tokens at the end, so usage is zero here."""
        self._has_started = True
        return _event("message_start", message=message.message(meta, [], None))

    def write(self, deltas: Sequence[Delta]) -> bytes:
        """The events of the deltas, or a ping where none of them is shown: a silent connection
        would time out."""
        return b"".join(map(self._written, deltas)) or _PING

    def keep_alive(self) -> bytes:
        """A ping. Some clients take only a message for the first event, so before it a comment."""
        return _PING if self._has_started else sse.KEEP_ALIVE

    def fail(self, error: OpenDifyError) -> bytes:
        """The event ``error``, which ends the stream: Anthropic's SDKs raise it."""
        return sse.encode(message.error_body(error, self._request_id), "error")

    def finish(self, meta: ResponseMeta, completion: Completion) -> bytes:
        """The ends of block and message, with the reason and the usage."""
        begun = self._open("text") if self._index < 0 else b""
        end = _event(
            "message_delta",
            delta=message.stop(completion),
            usage=message.to_usage(completion.usage),
            dify=dify_metadata(meta, completion),
        )
        return begun + self._close() + end + _event("message_stop")

    def _written(self, delta: Delta) -> bytes:
        match delta:
            case TextDelta(text):
                return self._write_text(text)
            case ReasoningDelta(text) if self._shows_thinking:
                return self._open("thinking") + self._template.fill(text)
            case Reset(had_text=True):  # what was sent cannot be unsent, only be followed
                return self._write_text("\n\n")
            case ReasoningDelta() | UiEvent() | Reset():
                return b""

    def _write_text(self, text: str) -> bytes:
        self._texts.append(text)
        return self._open("text") + self._template.fill(text)

    def _open(self, block: str) -> bytes:
        """Begins a block of this type, unless one is open."""
        if self._block == block:
            return b""
        ended = self._close()
        self._block = block
        self._index += 1
        delta = {"type": f"{block}_delta", block: sse.PLACEHOLDER}
        name = "content_block_delta"
        self._template = sse.Template({"type": name, "index": self._index, "delta": delta}, name)
        return ended + _event(
            "content_block_start", index=self._index, content_block=_BLOCKS[block]
        )

    def _close(self) -> bytes:
        """Ends the open block, if there is one."""
        if not self._block:
            return b""
        signed = b""
        if self._block == "thinking":
            delta = {"type": "signature_delta", "signature": message.SIGNATURE}
            signed = _event("content_block_delta", index=self._index, delta=delta)
        self._block = ""
        return signed + _event("content_block_stop", index=self._index)


def _event(name: str, **fields: Any) -> bytes:
    return sse.encode({"type": name, **fields}, name)


_PING = _event("ping")
