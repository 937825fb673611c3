"""What a caller has sent of its next request, and whether it is enough to give it a thread.

A thread that reads from a slow caller serves nobody meanwhile, so requests are collected without
one, and nothing but this reads from a connection. Gunicorn's parser reads the head, once; chunks
are decoded here, so that the thread has a plain body of known size.
"""

import contextlib
import enum
import re
import tempfile
from collections.abc import Callable
from typing import IO

from opendify.worker.chunked import ChunkDecoder
from opendify.worker.gunicorn_api import (
    Body,
    InvalidChunkSize,
    InvalidHeader,
    LengthReader,
    LimitRequestHeaders,
    Unreader,
)
from opendify.worker.head import RequestHead

MAX_HEAD_BYTES = 64 * 1024
# Of a body; more goes to a file.
_IN_MEMORY_BYTES = 256 * 1024
# Where the end of the request is not known, what follows it comes along.
_PIECE = 16 * 1024
_CHUNKED_PIECE = 64 * 1024
_KNOWN_PIECE = 256 * 1024

_DECIDED = re.compile(rb"\r\n\r\n|(?<!\r)\n")


class Stage(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    READY = enum.auto()


class RequestBuffer:
    """Collects one request. ``parse_head`` makes a request of the bytes of a head. A body of more
    than ``max_body_bytes`` is not collected: the request is READY without being whole, and the
    application refuses it by its Content-Length. ``folder`` is where a body that does not stay in
    memory is kept; None is the system's own place.
    """

    def __init__(
        self,
        parse_head: Callable[[bytes], RequestHead],
        max_body_bytes: int,
        folder: str | None,
    ) -> None:
        self.stage = Stage.HEAD
        self.is_whole = False
        self.awaits_continue = False
        self.body_bytes = 0
        self.left = b""
        self._parse_head = parse_head
        self._max_body_bytes = max_body_bytes
        self._folder = folder
        self._head = bytearray()
        self._request: RequestHead | None = None
        self._body: IO[bytes] | None = None
        self._decoder: ChunkDecoder | None = None

    @property
    def request(self) -> RequestHead:
        """Known when the stage is no longer HEAD."""
        assert self._request is not None
        return self._request

    @property
    def has_begun(self) -> bool:
        return bool(self._head) or self.stage is not Stage.HEAD

    @property
    def piece(self) -> int:
        """How many bytes to read next: of a body of known length, none of what follows it."""
        if self.stage is not Stage.BODY:
            return _PIECE
        if self._decoder is not None:
            return _CHUNKED_PIECE
        return min((self.request.body_bytes or 0) - self.body_bytes, _KNOWN_PIECE)

    def feed(self, data: bytes) -> None:
        """Takes what came. Raises Gunicorn's ParseException for what is no request, and OSError
        when there is no place for a large body."""
        if self.stage is Stage.HEAD:
            data = self._feed_head(data)
        if self.stage is Stage.BODY:
            self._feed_body(data)

    def skip_body(self) -> None:
        """Makes it ready without the body, none of which is kept."""
        self.close()
        self.stage = Stage.READY

    def hand_over(self) -> RequestHead:
        """The request, with the body as far as it was collected. Raises OSError."""
        request = self.request
        if self._decoder is not None:
            request.replace_framing(self._decoder.announced_bytes)
        if self._body is not None:
            self._body.seek(0)
        collected = _BodyUnreader(self._body, self.body_bytes)
        request.body = Body(LengthReader(collected, self.body_bytes))
        return request

    def close(self) -> None:
        """Forgets the body."""
        self.body_bytes = 0
        if self._body is not None:
            with contextlib.suppress(OSError):  # what it still had to write found no place
                self._body.close()
            self._body = None

    def _feed_head(self, data: bytes) -> bytes:
        """Returns what came after the head."""
        begun = len(self._head)
        self._head += data
        decided = _DECIDED.search(self._head, max(0, begun - 3))
        if decided is None:
            if len(self._head) > MAX_HEAD_BYTES:
                raise LimitRequestHeaders("the head is too large")
            return b""
        if decided.group() == b"\n":
            raise InvalidHeader("bare LF as line terminator")
        self._request = self._parse_head(bytes(self._head[: decided.end()]))
        rest = bytes(self._head[decided.end() :])
        self._head.clear()
        self.awaits_continue = self._request.awaits_continue and not rest
        if self._request.body_bytes is None:
            self._decoder = ChunkDecoder()
        self.stage = Stage.BODY
        return rest

    def _feed_body(self, data: bytes) -> None:
        if self._decoder is not None:
            self._feed_chunks(self._decoder, data)
            return
        size = self.request.body_bytes or 0
        if size > self._max_body_bytes:
            self.skip_body()
            return
        missing = size - self.body_bytes
        self._keep(data[:missing])
        if self.body_bytes == size:
            self._end(data[missing:])

    def _feed_chunks(self, decoder: ChunkDecoder, data: bytes) -> None:
        try:
            decoded = decoder.feed(data)
        except ValueError as exc:
            raise InvalidChunkSize(str(exc)) from exc
        if decoder.announced_bytes > self._max_body_bytes:
            self.skip_body()
            return
        self._keep(decoded)
        if decoder.is_done:
            if decoder.trailers:  # which nobody needs, but a good request has good ones
                self.request.parse_headers(decoder.trailers, from_trailer=True)
            self._end(decoder.left)

    def _end(self, left: bytes) -> None:
        self.left = left
        self.is_whole = True
        self.stage = Stage.READY

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        if self._body is None:
            self._body = tempfile.SpooledTemporaryFile(  # noqa: SIM115, it outlives this call
                _IN_MEMORY_BYTES, dir=self._folder
            )
        self._body.write(data)
        self.body_bytes += len(data)


class _BodyUnreader(Unreader):
    """Gives Gunicorn's reader what was collected, and closes that at its end: an answer may run
    for long, and its request is not kept for it."""

    def __init__(self, body: IO[bytes] | None, size: int) -> None:
        super().__init__()
        self._body = body
        self._left = size

    def chunk(self, size_hint: int | None = None) -> bytes:
        if self._body is None or self._left <= 0:
            return b""
        data = self._body.read(max(size_hint or 0, _PIECE))
        self._left -= len(data)
        if self._left <= 0:
            self._body.close()
        return data
