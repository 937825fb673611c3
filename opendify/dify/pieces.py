"""The commonest events, pieces of text, decoded without the rest. No I/O.

An answer has hundreds of them, each with a dozen fields that never change: of these, only what is
told is made into objects.
"""

import msgspec

from opendify.dify.events import Text


class _Message(msgspec.Struct, tag_field="event", tag="message", gc=False):
    answer: str
    from_variable_selector: list[str] | None = None


class _AgentMessage(_Message, tag="agent_message", gc=False):
    pass


class _Data(msgspec.Struct, gc=False):
    text: str
    from_variable_selector: list[str] | None = None


class _TextChunk(msgspec.Struct, tag_field="event", tag="text_chunk", gc=False):
    data: _Data


_DECODER = msgspec.json.Decoder(_Message | _AgentMessage | _TextChunk)


def parse_piece(raw: bytes) -> Text | None:
    """The Text in the payload of one event where that is plain; None for everything else.

    It is what ``payloads`` makes of the same bytes; only what is wrong in a field that is passed
    over does not show.
    """
    try:
        piece = _DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if type(piece) is _Message:
        return Text(piece.answer, _first(piece.from_variable_selector))
    if isinstance(piece, _TextChunk):
        return Text(piece.data.text, _first(piece.data.from_variable_selector), "text_chunk")
    return Text(piece.answer, _first(piece.from_variable_selector), "agent_message")


def _first(selector: list[str] | None) -> str:
    return selector[0] if selector else ""
