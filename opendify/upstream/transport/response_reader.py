"""Parses an HTTP/1.1 response as its bytes arrive (RFC 9112). No I/O.

h11 parses the head unless it has the most common form. The body is parsed here: h11 emits an event
per chunk, and Dify sends a chunk per token (measured: 15 us of the 18 us that a token took).
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import h11

MAX_HEAD = 64 * 1024
MAX_HEADERS = 256
MAX_CHUNK_LINE = 4096

RawHeaders = Sequence[tuple[bytes, bytes]]


class ProtocolError(ValueError):
    """The bytes are not an HTTP response, or end too early. ``body`` is the part of the body that
    precedes the error in the same ``feed``."""

    body = b""


class TlsAlert(ProtocolError):
    """The server expects TLS, and the request was sent without."""


class ResponseReader:
    """An incremental parser: ``feed`` takes bytes and returns those of the body.

    ``method`` is that of the request: the response to HEAD, or to a successful CONNECT, has no
    body. ``status`` is 0 until the head is complete (informational responses are skipped). Names in
    ``headers`` are lower case; ``raw_headers`` has one item per line. ``complete`` is whether the
    whole body was read, ``reusable`` whether the connection may carry another request.
    """

    def __init__(self, method: str = "POST") -> None:
        self.status = 0
        self.raw_headers: RawHeaders = ()
        self.complete = False
        self.reusable = False
        self._method = method
        self._headers: Mapping[str, str] | None = None
        self._head: h11.Connection | None = None
        self._head_bytes = 0
        self._first_bytes = b""
        self._body: _Chunked | _Counted | _UntilClose | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; values of the same name are joined with commas."""
        if self._headers is None:
            self._headers = _joined(self.raw_headers)
        return self._headers

    def feed(self, data: bytes) -> bytes:
        """Parses the next bytes, at least one; returns those of the body. Raises ProtocolError."""
        if self._body is None:
            data = self._feed_head(data)
            if self._body is None:
                return b""
        if self.complete:
            self.reusable = self.reusable and not data
            return b""
        body = self._body.feed(data)
        if self._body.complete:
            self.complete = True
            self.reusable = self.reusable and not self._body.surplus
        return body

    def end(self) -> None:
        """Handles the end of the connection. Raises ProtocolError where it is too early."""
        if self._body is None:
            raise ProtocolError("the connection closed before an answer")
        if not self._body.complete_at_close():
            raise ProtocolError("the connection closed in the middle of the answer")
        self.complete, self.reusable = True, False

    def _feed_head(self, data: bytes) -> bytes:
        """Returns the bytes after the head."""
        if self._head is None and (plain := _plain_head(data)) is not None:
            status, headers, end = plain
            self._begin(status, headers, b"1.1")
            return data[end:]
        self._first_bytes = (self._first_bytes + data)[: len(_TLS_ALERT)]
        if self._first_bytes == _TLS_ALERT:
            raise TlsAlert("it is TLS")
        head = self._head = self._head or _new_head_parser()
        self._head_bytes += len(data)
        try:
            head.receive_data(data)
            event = head.next_event()
            while isinstance(event, h11.InformationalResponse):
                event = head.next_event()
        except h11.RemoteProtocolError as exc:
            # h11's own message quotes the line, which may be from a proxy's page.
            raise ProtocolError("it does not start like an HTTP answer") from exc
        if not isinstance(event, h11.Response):
            if self._head_bytes > MAX_HEAD:
                raise ProtocolError("its head is too long")
            return b""
        self._begin(event.status_code, tuple(event.headers), event.http_version)
        self._head = None  # frees its buffer: a response may take long
        return head.trailing_data[0]

    def _begin(self, status: int, headers: RawHeaders, version: bytes) -> None:
        if len(headers) > MAX_HEADERS:
            raise ProtocolError(f"its head has more than {MAX_HEADERS} headers")
        self.raw_headers = headers
        self._body = _body_reader(self._method, status, self.headers)
        self.status = status
        self.complete = self._body.complete
        self.reusable = (
            version == b"1.1"
            and "close" not in self.headers.get("connection", "").lower()
            and not isinstance(self._body, _UntilClose)
        )


# The start of the alert that TLS servers send to plain HTTP (RFC 8446, section 5.1).
_TLS_ALERT = b"\x15\x03"


class _Chunked:
    """Chunked transfer coding; extensions and trailers are dropped."""

    def __init__(self) -> None:
        self.complete = False
        self.surplus = False
        self._is_between_chunks = True
        self._pending = b""
        self._left = 0  # bytes of the current chunk, without its closing CRLF
        self._after_chunk = False
        self._in_trailers = False

    def feed(self, data: bytes) -> bytes:
        if self._is_between_chunks and (chunk := _only_chunk(data)) is not None:
            return chunk
        pieces: list[bytes] = []
        try:
            position = 0
            if self._is_between_chunks:
                position = _take_whole_chunks(data, 0, pieces)
            if position < len(data):
                self._cut(self._pending + data, position, pieces)
        except ProtocolError as exc:
            exc.body = b"".join(pieces)
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _cut(self, data: bytes, position: int, pieces: list[bytes]) -> None:
        while position < len(data) and not self.complete:
            if self._left:
                piece = data[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                self._after_chunk = not self._left
                continue
            if not (self._after_chunk or self._in_trailers):
                position = _take_whole_chunks(data, position, pieces)
            end = data.find(b"\n", position)
            if end < 0:
                break
            self._line(data[position:end])
            position = end + 1
        self._pending = data[position:]
        begun = self._pending or self._left or self._after_chunk or self._in_trailers
        self._is_between_chunks = not (begun or self.complete)
        self.surplus = self.complete and bool(self._pending)
        if not self.complete:
            _check_length(self._pending)

    def _line(self, line: bytes) -> None:
        """``line`` is without its LF."""
        _check_length(line)
        if self._in_trailers:
            self.complete = line == b"\r"
        elif self._after_chunk:
            if line != b"\r":  # strict: a size that is off by one is detected only here
                raise ProtocolError("a chunk does not have its announced length")
            self._after_chunk = False
        else:
            self._left = _chunk_size(line)
            self._in_trailers = not self._left

    def complete_at_close(self) -> bool:
        return self.complete


class _Counted:
    """A body with a Content-Length."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.complete = not length
        self.surplus = False

    def feed(self, data: bytes) -> bytes:
        body = data[: self._left]
        self.surplus = len(data) > self._left
        self._left -= len(body)
        self.complete = not self._left
        return body

    def complete_at_close(self) -> bool:
        return self.complete


class _UntilClose:
    """A body that ends when the connection closes."""

    complete = False
    surplus = False

    def feed(self, data: bytes) -> bytes:
        return data

    def complete_at_close(self) -> bool:
        return True


# h11 must have sent a request before it receives a response; validated once. The effect of the
# actual method on the body is decided here.
_REQUEST = h11.Request(method="POST", target="/", headers=[("host", "dify")])
_END_OF_REQUEST = h11.EndOfMessage()


def _new_head_parser() -> h11.Connection:
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    parser.send(_REQUEST)
    parser.send(_END_OF_REQUEST)
    return parser


# The common form of a head, complete in one read. h11 would parse it to the same result.
_PLAIN_HEAD = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9][0-9]) [ -~]*\r\n((?:[0-9A-Za-z-]+: [!-~]+(?: [!-~]+)*\r\n)+)\r\n"
)
_PLAIN_FIELD = re.compile(rb"([^:]+): ([^\r]+)\r\n")


def _plain_head(data: bytes) -> tuple[int, RawHeaders, int] | None:
    """Status, headers and the offset of the body, or None where h11 must parse the head. h11 takes
    50 us, a third of the time of sending a request and reading its response."""
    match = _PLAIN_HEAD.match(data)
    if match is None or match.end() > MAX_HEAD:
        return None
    headers = [(name.lower(), value) for name, value in _PLAIN_FIELD.findall(match[2])]
    by_name = dict(headers)
    length = by_name.get(b"content-length", b"0")
    is_plain = (
        len(by_name) == len(headers)
        and by_name.get(b"transfer-encoding", b"chunked") == b"chunked"
        and length.isdigit()
        and len(length) <= 20
    )
    return (int(match[1]), headers, match.end()) if is_plain else None


def _joined(headers: RawHeaders) -> dict[str, str]:
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _body_reader(
    method: str, status: int, headers: Mapping[str, str]
) -> _Chunked | _Counted | _UntilClose:
    has_tunnel = method == "CONNECT" and 200 <= status < 300
    if status in (204, 304) or method == "HEAD" or has_tunnel:
        return _Counted(0)
    coding = headers.get("transfer-encoding", "").strip().lower()
    if coding:
        if coding != "chunked":
            raise ProtocolError("an unknown transfer coding")
        return _Chunked()
    length = headers.get("content-length")
    if length is None:
        return _UntilClose()
    if not (length.isascii() and length.isdigit()):
        raise ProtocolError("a content length that is no number")
    return _Counted(int(length))


def _check_length(line: bytes) -> None:
    if len(line) > MAX_CHUNK_LINE:
        raise ProtocolError("a line between chunks is too long")


def _only_chunk(data: bytes) -> bytes | None:
    """The content, if the bytes are exactly one chunk, as they mostly are from Dify."""
    end = data.find(b"\n", 0, _MAX_SHORT_LINE)
    if end < 0:
        return None
    try:
        closing = end + 1 + _short_chunk_size(data[:end])
    except ProtocolError:
        return None
    return data[end + 1 : closing] if closing > end + 1 and data[closing:] == b"\r\n" else None


def _take_whole_chunks(data: bytes, position: int, pieces: list[bytes]) -> int:
    """Appends the content of the leading chunks that are complete to ``pieces``; returns the offset
    of the next chunk. Raises ProtocolError."""
    if len(data) - position > _MIN_SIMILAR_BYTES:
        position = _take_similar_chunks(data, position, pieces)
    while (end := data.find(b"\n", position, position + _MAX_SHORT_LINE)) >= 0:
        closing = end + 1 + _short_chunk_size(data[position:end])
        if closing == end + 1 or data[closing : closing + 2] != b"\r\n":
            break
        pieces.append(data[end + 1 : closing])
        position = closing + 2
    return position


_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r]*)?\r")


def _chunk_size(line: bytes) -> int:
    match = _CHUNK_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError("a chunk without a size")
    return int(match[1], 16)


# Data of this size contains more than a few tokens.
_MIN_SIMILAR_BYTES = 2048


def _take_similar_chunks(data: bytes, position: int, pieces: list[bytes]) -> int:
    """As ``_take_whole_chunks`` in half the time, for chunks that are followed by another one with
    a size of three hexadecimal digits; returns the offset of the next chunk."""
    size = _SIZES_BETWEEN.get(b"\r\n" + data[position : position + 5])
    if size is None:
        return position
    begin = position + 5
    end = begin + size
    while size := _SIZES_BETWEEN.get(data[end : end + 7]):
        pieces.append(data[begin:end])
        begin = end + 7
        end = begin + size
    return begin - 5


# The bytes between two chunks, mapped to the size of the second, for sizes of three hexadecimal
# digits: an event with a piece of text has about 300 bytes.
_SIZES_BETWEEN = {b"\r\n%x\r\n" % size: size for size in range(0x100, 0x1000)}

_MAX_SHORT_LINE = 20
# The chunks of a stream have few different sizes.
_short_chunk_size = lru_cache(1024)(_chunk_size)
