"""The commonest events, pieces of text, decoded without the rest. No I/O.

An answer has hundreds of them, each with a dozen fields that never change: of these, only what is
told is made into objects.
"""

from collections.abc import Iterator

import msgspec

from opendify.dify.events import Text, Texts


class _Message(msgspec.Struct, tag_field="event", tag="message", gc=False):
    text: str = msgspec.field(name="answer")
    from_variable_selector: list[str] | None = None


class _AgentMessage(_Message, tag="agent_message", gc=False):
    pass


class _Data(msgspec.Struct, gc=False):
    text: str
    from_variable_selector: list[str] | None = None


class _TextChunk(msgspec.Struct, tag_field="event", tag="text_chunk", gc=False):
    data: _Data


_NAMES: dict[type, str] = {
    _Message: "message",
    _AgentMessage: "agent_message",
    _TextChunk: "text_chunk",
}
_DECODER = msgspec.json.Decoder(_Message | _AgentMessage | _TextChunk)
# Pieces of text of one kind, from one place.
_Run = tuple[type, list[str] | None, list[str]]
_NOT_PLAIN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def parse_piece(raw: bytes) -> Text | None:
    """The Text in the payload of one event where that is plain; None for everything else.

    It is what ``payloads`` makes of the same bytes; only what is wrong in a field that is passed
    over does not show.
    """
    try:
        piece = _DECODER.decode(raw)
    except _NOT_PLAIN:
        return None
    said = piece.data if isinstance(piece, _TextChunk) else piece
    return Text(said.text, _first(said.from_variable_selector), _NAMES[type(piece)])


def parse_pieces(payloads: Iterator[bytes]) -> tuple[list[Text | Texts], bytes | None]:
    """What ``parse_piece`` makes of the payloads of events that came together, up to the first
    that it does not take, which is taken from ``payloads`` and returned too."""
    runs: list[_Run] = []
    kind: type | None = None
    selector: list[str] | None = None
    texts: list[str] = []
    other = None
    decode = _DECODER.decode
    try:
        for other in payloads:
            piece = decode(other)
            said = piece.data if type(piece) is _TextChunk else piece
            if type(piece) is not kind or said.from_variable_selector != selector:
                kind, selector, texts = type(piece), said.from_variable_selector, []
                runs.append((kind, selector, texts))
            texts.append(said.text)
    except _NOT_PLAIN:
        return [_together(*run) for run in runs], other
    return [_together(*run) for run in runs], None


def _together(kind: type, selector: list[str] | None, texts: list[str]) -> Text | Texts:
    if len(texts) == 1:
        return Text(texts[0], _first(selector), _NAMES[kind])
    return Texts(tuple(texts), _first(selector), _NAMES[kind])


def _first(selector: list[str] | None) -> str:
    return selector[0] if selector else ""
