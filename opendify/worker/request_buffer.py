"""Buffers a request until it is complete enough for a thread.

A thread that read from a slow client would serve no other meanwhile, so the main loop receives
requests, and nothing but this reads from a connection. Gunicorn's parser reads the head, once;
chunked bodies are decoded here, so that the thread gets a plain body of known size.
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
# Of a body; a larger one goes to a temporary file.
_IN_MEMORY_BYTES = 256 * 1024
# How much to read at once: of a head, where bytes of the next request may follow; of a chunked
# body; and of a body of known size.
_READ_BYTES = 16 * 1024
_CHUNKED_READ_BYTES = 64 * 1024
_BODY_READ_BYTES = 256 * 1024

# The end of a head, or a line end that makes it invalid.
_HEAD_END = re.compile(rb"\r\n\r\n|(?<!\r)\n")


class Stage(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    READY = enum.auto()


class RequestBuffer:
    """Buffers one request. ``parse_head`` parses the bytes of a head. A body of more than
    ``max_body_bytes`` is not received: the request is READY but not complete, and the application
    rejects it by its Content-Length. ``temp_dir`` is for the files of large bodies; None is the
    system's default. ``remainder`` is what was received after the end of the request.
    """

    def __init__(
        self,
        parse_head: Callable[[bytes], RequestHead],
        max_body_bytes: int,
        temp_dir: str | None,
    ) -> None:
        self.stage = Stage.HEAD
        self.is_complete = False
        self.awaits_continue = False
        self.body_bytes = 0
        self.remainder = b""
        self._parse_head = parse_head
        self._max_body_bytes = max_body_bytes
        self._temp_dir = temp_dir
        self._head = bytearray()
        self._request: RequestHead | None = None
        self._body: IO[bytes] | None = None
        self._decoder: ChunkDecoder | None = None

    @property
    def request(self) -> RequestHead:
        """Only in a later stage than HEAD."""
        assert self._request is not None
        return self._request

    @property
    def has_started(self) -> bool:
        return bool(self._head) or self.stage is not Stage.HEAD

    @property
    def read_size(self) -> int:
        """How many bytes to read next; of a body of known length, never beyond its end."""
        if self.stage is not Stage.BODY:
            return _READ_BYTES
        if self._decoder is not None:
            return _CHUNKED_READ_BYTES
        return min((self.request.body_bytes or 0) - self.body_bytes, _BODY_READ_BYTES)

    def feed(self, data: bytes) -> None:
        """Buffers received data. Raises Gunicorn's ParseException for what is no valid request, and
        OSError when a large body cannot be stored."""
        if self.stage is Stage.HEAD:
            data = self._feed_head(data)
        if self.stage is Stage.BODY:
            self._feed_body(data)

    def skip_body(self) -> None:
        """Makes the request READY without its body."""
        self.close()
        self.stage = Stage.READY

    def to_request(self) -> RequestHead:
        """The request, with as much of its body as was received. Raises OSError."""
        request = self.request
        if self._decoder is not None:
            request.replace_framing(self._decoder.announced_bytes)
        if self._body is not None:
            self._body.seek(0)
        received = _BodyUnreader(self._body, self.body_bytes)
        request.body = Body(LengthReader(received, self.body_bytes))
        return request

    def close(self) -> None:
        """Discards the body."""
        self.body_bytes = 0
        if self._body is not None:
            with contextlib.suppress(OSError):  # from data that is not on the disk yet
                self._body.close()
            self._body = None

    def _feed_head(self, data: bytes) -> bytes:
        """Returns what follows the head."""
        known_bytes = len(self._head)
        self._head += data
        end = _HEAD_END.search(self._head, max(0, known_bytes - 3))
        if end is None:
            if len(self._head) > MAX_HEAD_BYTES:
                raise LimitRequestHeaders("the head is too large")
            return b""
        if end.group() == b"\n":
            raise InvalidHeader("bare LF as line terminator")
        self._request = self._parse_head(bytes(self._head[: end.end()]))
        rest = bytes(self._head[end.end() :])
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
        self._store(data[:missing])
        if self.body_bytes == size:
            self._finish(data[missing:])

    def _feed_chunks(self, decoder: ChunkDecoder, data: bytes) -> None:
        try:
            decoded = decoder.feed(data)
        except ValueError as exc:
            raise InvalidChunkSize(str(exc)) from exc
        if decoder.announced_bytes > self._max_body_bytes:
            self.skip_body()
            return
        self._store(decoded)
        if decoder.is_done:
            if decoder.trailers:  # unused, but they must be valid
                self.request.parse_headers(decoder.trailers, from_trailer=True)
            self._finish(decoder.remainder)

    def _finish(self, remainder: bytes) -> None:
        self.remainder = remainder
        self.is_complete = True
        self.stage = Stage.READY

    def _store(self, data: bytes) -> None:
        if not data:
            return
        if self._body is None:
            self._body = tempfile.SpooledTemporaryFile(  # noqa: SIM115, closed by close()
                _IN_MEMORY_BYTES, dir=self._temp_dir
            )
        self._body.write(data)
        self.body_bytes += len(data)


class _BodyUnreader(Unreader):
    """Gives Gunicorn's reader the buffered body, and closes it at its end: the response may stream
    for long, and the body should not take up room until then."""

    def __init__(self, body: IO[bytes] | None, size: int) -> None:
        super().__init__()
        self._body = body
        self._remaining = size

    def chunk(self, size_hint: int | None = None) -> bytes:
        if self._body is None or self._remaining <= 0:
            return b""
        data = self._body.read(max(size_hint or 0, _READ_BYTES))
        self._remaining -= len(data)
        if self._remaining <= 0:
            self._body.close()
        return data
