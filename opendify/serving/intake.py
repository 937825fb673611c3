"""What a caller has sent of its next request, and whether it is enough to give it a thread.

A thread that reads from a slow caller serves nobody meanwhile, so requests are collected without
one. This only judges *when* all is there: what the bytes mean is told by Gunicorn's parser, which
reads them again in the thread and refuses what is wrong. Where the two disagree, the thread reads
on from the connection, with a limit on how long that may be silent.
"""

import contextlib
import enum
import re
import tempfile
from typing import IO

from opendify.serving.chunks import ChunkScanner

MAX_HEAD_BYTES = 64 * 1024
# Of a body; more goes to a file.
_IN_MEMORY_BYTES = 256 * 1024
# Where the end of the request is not known, what follows it comes along.
_PIECE = 16 * 1024
_KNOWN_PIECE = 256 * 1024

# The parser refuses a line that ends with a bare LF at once, so it need not wait for more.
_DECIDED = re.compile(rb"\r\n\r\n|(?<!\r)\n")
_FRAMING = re.compile(
    rb"\r\n(?:content-length:[ \t]*([0-9]+)|transfer-encoding:[^\r\n]*(chunked))", re.IGNORECASE
)
_EXPECTS = re.compile(
    rb"[^\r\n]* HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*?expect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE
)
_MOST_DIGITS = 18


class Stage(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    READY = enum.auto()
    HEAD_TOO_LARGE = enum.auto()


class Intake:
    """Collects one request. ``limit`` is the size of the largest body that is collected; a larger
    one is for the application to refuse, or to read itself. ``folder`` is where a body that does
    not stay in memory is kept; None is the system's own place.
    """

    def __init__(self, limit: int, folder: str | None) -> None:
        self.stage = Stage.HEAD
        self.is_whole = False
        self.awaits_continue = False
        self.body_bytes = 0
        self.beginning = bytearray()
        self.rest: IO[bytes] | None = None
        self._limit = limit
        self._folder = folder
        self._length = 0
        self._chunks: ChunkScanner | None = None

    @property
    def piece(self) -> int:
        """How many bytes to read next: of a body of known length, none of what follows it."""
        if self.stage is not Stage.BODY or self._chunks is not None:
            return _PIECE
        return min(self._length - self.body_bytes, _KNOWN_PIECE)

    def feed(self, data: bytes) -> None:
        """Takes what came. Raises OSError when there is no place for a large body."""
        if self.stage is not Stage.HEAD:
            if self.rest is None:
                self.rest = tempfile.SpooledTemporaryFile(  # noqa: SIM115, it outlives this call
                    _IN_MEMORY_BYTES, dir=self._folder
                )
            self.rest.write(data)
            self._feed_body(data)
            return
        begun = len(self.beginning)
        self.beginning += data
        decided = _DECIDED.search(self.beginning, max(0, begun - 3))
        if decided is None:
            if len(self.beginning) > MAX_HEAD_BYTES:
                self.stage = Stage.HEAD_TOO_LARGE
        elif decided.group() == b"\n":
            self.stage = Stage.READY
        else:
            self._end_head(decided.end())

    def close(self) -> None:
        if self.rest is not None:
            with contextlib.suppress(OSError):  # what it still had to write found no place
                self.rest.close()
            self.rest = None

    def _end_head(self, end: int) -> None:
        head = bytes(self.beginning[:end])
        self.stage = Stage.BODY
        match _FRAMING.findall(head):
            case [(digits, b"")]:
                self._length = int(digits) if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS
            case [(b"", _)]:
                self._chunks = ChunkScanner()
            case _:  # there is no body, or the parser refuses what claims two
                pass
        self._feed_body(bytes(self.beginning[end:]))
        self.awaits_continue = not self.body_bytes and _EXPECTS.match(head) is not None

    def _feed_body(self, data: bytes) -> None:
        self.body_bytes += len(data)
        if self._chunks is not None:
            self._chunks.feed(data)
            self.is_whole = self._chunks.ended
        else:
            self.is_whole = self.body_bytes >= self._length
        if self.is_whole or max(self._length, self.body_bytes) > self._limit:
            self.stage = Stage.READY
