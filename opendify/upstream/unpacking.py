"""Answers that come compressed although ``Accept-Encoding: identity`` was asked for (RFC 9110,
section 8.4.1), unpacked piece by piece, since a small one can unpack to gigabytes. No I/O.
"""

import re
import zlib
from collections.abc import Mapping

PIECE_BYTES = 256 * 1024

# An event stream shrinks to a tenth or a thirtieth; only what is made for it shrinks further. Small
# answers may.
MAX_RATIO = 200
FREE_BYTES = 8 * 1024 * 1024

_GZIP = ("gzip", "x-gzip")
_WINDOW_OF_GZIP = zlib.MAX_WBITS | 16


class UnknownCoding(ValueError):
    """A coding that cannot be undone here; the text names it."""


class BadPacking(ValueError):
    """The bytes are not what their coding says, or unpack to too much."""


def new_unpacker(headers: Mapping[str, str]) -> "Unpacker | None":
    """What undoes the coding of a body with these headers, whose names are lower case; None where
    there is none. Raises UnknownCoding."""
    told = headers.get("content-encoding", "").lower()
    codings = [name for name in map(str.strip, told.split(",")) if name not in ("", "identity")]
    if not codings:
        return None
    if codings[1:] or codings[0] not in (*_GZIP, "deflate"):
        shown = re.sub("[^a-z0-9, _-]", "", ", ".join(codings))[:40]
        raise UnknownCoding(shown or "an unknown coding")
    return Unpacker(is_gzip=codings[0] in _GZIP)


class Unpacker:
    """Takes compressed bytes by ``feed``, and gives what is in them by ``take``, a piece at a time.

    ``has_more`` says whether ``take`` may give more without further bytes.
    """

    def __init__(self, is_gzip: bool) -> None:
        self.has_more = False
        self._is_gzip = is_gzip
        self._inflater = zlib.decompressobj(_WINDOW_OF_GZIP) if is_gzip else None
        self._packed = b""
        self._fed = 0
        self._given = 0
        self._is_over = False

    @property
    def is_whole(self) -> bool:
        """Whether the end of what was packed has come."""
        return not self._fed or (self._inflater is not None and self._inflater.eof) or self._is_over

    def feed(self, data: bytes) -> None:
        """Takes the next compressed bytes; those after the end are dropped."""
        if self._is_over:
            return
        self._packed += data
        self._fed += len(data)
        self.has_more = bool(self._packed)

    def take(self) -> bytes:
        """The next piece, at most PIECE_BYTES of it. Raises BadPacking."""
        if self._inflater is None:
            if len(self._packed) < 2:
                self.has_more = False
                return b""
            self._inflater = zlib.decompressobj(_window_of_deflate(self._packed))
        try:
            piece = self._inflater.decompress(self._packed, PIECE_BYTES)
        except zlib.error as exc:
            raise BadPacking("it is not packed as it says") from exc
        self._packed = self._inflater.unconsumed_tail
        if self._inflater.eof:
            self._begin_next_member(self._inflater.unused_data)
        self.has_more = bool(self._packed) or len(piece) == PIECE_BYTES
        self._given += len(piece)
        if self._given > max(FREE_BYTES, MAX_RATIO * self._fed):
            raise BadPacking(f"it unpacks to more than {MAX_RATIO} times its size")
        return piece

    def _begin_next_member(self, rest: bytes) -> None:
        """Gzip may be several members, one after the other (RFC 1952, section 2.2)."""
        self._is_over = not self._is_gzip or (bool(rest) and not rest.startswith(b"\x1f"))
        self._packed = b"" if self._is_over else rest
        if self._packed:
            self._inflater = zlib.decompressobj(_WINDOW_OF_GZIP)


def _window_of_deflate(data: bytes) -> int:
    """Some servers send deflate without the head of zlib that it should have."""
    has_head = data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return zlib.MAX_WBITS if has_head else -zlib.MAX_WBITS
