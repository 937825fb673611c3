"""Decompresses responses that a proxy compressed although ``Accept-Encoding: identity`` was sent
(RFC 9110, section 8.4.1); in pieces, since few bytes can decompress to gigabytes. No I/O.
"""

import re
import zlib
from collections.abc import Mapping

MAX_PIECE_BYTES = 256 * 1024

# Event streams compress to a tenth or a thirtieth; a higher ratio is an attack. The limit applies
# beyond MIN_LIMITED_BYTES.
MAX_RATIO = 200
MIN_LIMITED_BYTES = 8 * 1024 * 1024

_GZIP = ("gzip", "x-gzip")
_WINDOW_OF_GZIP = zlib.MAX_WBITS | 16


class UnknownCoding(ValueError):
    """An unsupported content coding; the message names it."""


class BadPacking(ValueError):
    """The bytes do not match their content coding, or decompress to too much."""


def new_unpacker(headers: Mapping[str, str]) -> "Unpacker | None":
    """The decompressor of a body with these headers, whose names are lower case; None where it is
    not compressed. Raises UnknownCoding."""
    header = headers.get("content-encoding", "").lower()
    codings = [name for name in map(str.strip, header.split(",")) if name not in ("", "identity")]
    if not codings:
        return None
    if codings[1:] or codings[0] not in (*_GZIP, "deflate"):
        shown = re.sub("[^a-z0-9, _-]", "", ", ".join(codings))[:40]
        raise UnknownCoding(shown or "an unknown coding")
    return Unpacker(is_gzip=codings[0] in _GZIP)


class Unpacker:
    """Decompresses the bytes passed to ``feed``; ``take`` returns the result in pieces.

    ``has_more`` is whether ``take`` may return more without further ``feed``.
    """

    def __init__(self, is_gzip: bool) -> None:
        self.has_more = False
        self._is_gzip = is_gzip
        self._inflater = zlib.decompressobj(_WINDOW_OF_GZIP) if is_gzip else None
        self._input = b""
        self._bytes_in = 0
        self._bytes_out = 0
        self._has_ended = False

    @property
    def is_complete(self) -> bool:
        """Whether the end of the compressed data was read."""
        return (
            not self._bytes_in
            or (self._inflater is not None and self._inflater.eof)
            or self._has_ended
        )

    def feed(self, data: bytes) -> None:
        """Adds compressed bytes; those after the end are dropped."""
        if self._has_ended:
            return
        self._input += data
        self._bytes_in += len(data)
        self.has_more = bool(self._input)

    def take(self) -> bytes:
        """The next piece, at most MAX_PIECE_BYTES. Raises BadPacking."""
        if self._inflater is None:
            if len(self._input) < 2:
                self.has_more = False
                return b""
            self._inflater = zlib.decompressobj(_window_of_deflate(self._input))
        try:
            piece = self._inflater.decompress(self._input, MAX_PIECE_BYTES)
        except zlib.error as exc:
            raise BadPacking("it is not packed as it says") from exc
        self._input = self._inflater.unconsumed_tail
        if self._inflater.eof:
            self._begin_next_member(self._inflater.unused_data)
        self.has_more = bool(self._input) or len(piece) == MAX_PIECE_BYTES
        self._bytes_out += len(piece)
        if self._bytes_out > max(MIN_LIMITED_BYTES, MAX_RATIO * self._bytes_in):
            raise BadPacking(f"it unpacks to more than {MAX_RATIO} times its size")
        return piece

    def _begin_next_member(self, rest: bytes) -> None:
        """Gzip data may consist of several members (RFC 1952, section 2.2)."""
        self._has_ended = not self._is_gzip or (bool(rest) and not rest.startswith(b"\x1f"))
        self._input = b"" if self._has_ended else rest
        if self._input:
            self._inflater = zlib.decompressobj(_WINDOW_OF_GZIP)


def _window_of_deflate(data: bytes) -> int:
    """Some servers send deflate without the zlib header that it should have."""
    has_head = data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return zlib.MAX_WBITS if has_head else -zlib.MAX_WBITS
