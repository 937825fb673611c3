"""A strict decoder for chunked bodies (RFC 9112, section 7.1). No I/O."""

import re

# Limits of a chunk-size line and of all trailer fields together, without line ends.
MAX_LINE_BYTES = 256
MAX_TRAILER_BYTES = 8 * 1024
# The framing (all that is not data) may take this much plus half of the data before it: each chunk
# costs time. Bodies that ordinary clients write in many small pieces stay below it.
FRAMING_GRACE_BYTES = 256 * 1024

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_EXTENSION = rb"[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?" % (_TOKEN, _TOKEN, _QUOTED)
_SIZE = rb"([0-9A-Fa-f]{1,16})"
_PLAIN_SIZE_LINE = re.compile(_SIZE + rb"\r\n")
_SIZE_LINE = re.compile(_SIZE + rb"(?:%b)*\r\n" % _EXTENSION)
# What may still become a chunk-size line.
_SIZE_LINE_START = re.compile(rb"(?:%b[ \t]*(?:;[^\r\n]*)?\r?)?" % _SIZE)
_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?=[^\n])")


class ChunkDecoder:
    """At the end of the body ``is_done`` is true; then ``trailers`` is the trailer section as
    received, with unchecked fields, and ``remainder`` is what follows the body."""

    def __init__(self) -> None:
        self.is_done = False
        self.trailers = b""
        self.remainder = b""
        self._pending = b""
        self._chunk_left = 0
        self._awaits_line_end = False
        self._in_trailers = False
        self._data_bytes = 0
        self._framing_bytes = 0

    @property
    def announced_bytes(self) -> int:
        """The size of all data so far, including the rest of the current chunk."""
        return self._data_bytes

    def feed(self, data: bytes) -> bytes:
        """Returns the decoded data. Raises ValueError for a malformed body, and for one with too
        much framing."""
        data = self._pending + data
        pieces: list[bytes] = []
        position = self._decode(data, pieces)
        if self.is_done:
            self.remainder = data[position:]
        else:
            self._pending = data[position:]
        return b"".join(pieces)

    def _decode(self, data: bytes, pieces: list[bytes]) -> int:
        """Appends the decoded data to ``pieces``; returns the position up to which it decoded."""
        position = 0
        while not self._in_trailers:
            if self._chunk_left:
                piece = data[position : position + self._chunk_left]
                pieces.append(piece)
                position += len(piece)
                self._chunk_left -= len(piece)
                if self._chunk_left:
                    return position
                self._awaits_line_end = True
            if self._awaits_line_end:
                if not data.startswith(b"\r\n", position):
                    if data[position:] not in (b"", b"\r"):
                        raise ValueError("the data of a chunk is not followed by a line end")
                    return position
                position += 2
                self._awaits_line_end = False
            line = _PLAIN_SIZE_LINE.match(data, position) or _size_line(data, position)
            if line is None:
                return position
            self._start_chunk(int(line[1], 16), line.end() - position)
            position = line.end()
        return self._finish(data, position)

    def _start_chunk(self, size: int, line_bytes: int) -> None:
        self._framing_bytes += line_bytes + len(b"\r\n")
        if self._framing_bytes > FRAMING_GRACE_BYTES + self._data_bytes // 2:
            raise ValueError("the chunks are too small")
        self._data_bytes += size
        self._chunk_left = size
        self._in_trailers = not size

    def _finish(self, data: bytes, position: int) -> int:
        if data.startswith(b"\r\n", position):
            self.is_done = True
            return position + 2
        end = data.find(b"\r\n\r\n", position)
        size = (end if end >= 0 else len(data) - 3) - position
        if size > MAX_TRAILER_BYTES:
            raise ValueError("the trailers are too large")
        if _BARE_LINE_END.search(data, position, end + 1 if end >= 0 else len(data)):
            raise ValueError("a line of the trailers has no valid line end")
        if end < 0:
            return position
        self.is_done = True
        self.trailers = data[position:end]
        return end + 4


def _size_line(data: bytes, position: int) -> re.Match[bytes] | None:
    """The chunk-size line at this position, or None while it is incomplete."""
    end = position + MAX_LINE_BYTES + 2
    line = _SIZE_LINE.match(data, position, end)
    if line is None and (len(data) >= end or not _SIZE_LINE_START.fullmatch(data, position)):
        raise ValueError("the size of a chunk is malformed")
    return line
