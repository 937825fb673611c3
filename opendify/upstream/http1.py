"""An HTTP/1.1 answer, taken apart as its bytes arrive (RFC 9112). No I/O.

What a head means is h11's to say; one in the plainest form is read here. The body is cut here: h11
hands out one event per chunk, and Dify sends one chunk per token, which made it the dearest part of
a token's way (measured: 15 us of 18).
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import h11

MAX_HEAD = 64 * 1024
MAX_CHUNK_LINE = 4096


class BadAnswer(ValueError):
    """The bytes are no HTTP answer, or were cut short. ``body`` is what of the body came with
    them, before the fault."""

    body = b""


class BadQuestion(ValueError):
    """A head that HTTP does not allow, as one with a line break in a header, or not in ASCII."""


def question_head(target: bytes, headers: Mapping[str, str]) -> bytes:
    """The head of a POST as h11 writes and checks it, to which further headers, a blank line and
    the body are to be added. Raises BadQuestion."""
    try:
        fields = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        question = h11.Request(method="POST", target=target, headers=fields)
        head = h11.Connection(h11.CLIENT).send(question)
    except (h11.LocalProtocolError, UnicodeEncodeError) as exc:
        raise BadQuestion("HTTP does not allow it") from exc  # their own words quote it
    assert head is not None
    return head.removesuffix(b"\r\n")


class Answer:
    """Feed it bytes; it gives the status, the headers and the body.

    ``status`` is 0 until the head is complete; the names in ``headers`` are lower case.
    ``complete`` says that the whole body was seen, ``reusable`` that the connection may carry
    another request.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.complete = False
        self.reusable = False
        self._head: h11.Connection | None = None
        self._body: _Chunked | _Counted | _UntilClose | None = None

    def feed(self, data: bytes) -> bytes:
        """Takes the next bytes; returns what of them is body. Raises BadAnswer."""
        if self._body is None:
            data = self._feed_head(data)
            if self._body is None:
                return b""
        if self.complete and data:
            self.reusable = False
            return b""
        body = self._body.feed(data)
        self.complete = self._body.complete
        self.reusable = self.reusable and not self._body.surplus
        return body

    def only_chunk(self, data: bytes) -> bytes | None:
        """What of the next bytes is body where they are just one chunk, as most that Dify sends
        are, and so change nothing. Else None: then they are for ``feed``."""
        if not (isinstance(self._body, _Chunked) and self._body.is_between_chunks):
            return None
        end = data.find(b"\n", 0, _LONGEST_SHORT_LINE)
        try:
            closing = end + 1 + _short_chunk_size(data[:end])
        except BadAnswer:
            return None
        if end < 0 or closing == end + 1 or data[closing:] != b"\r\n":
            return None
        return data[end + 1 : closing]

    def end(self) -> None:
        """Takes note that the connection has ended. Raises BadAnswer when that was too early."""
        if self._body is None:
            raise BadAnswer("the connection closed before an answer")
        if not self._body.complete_at_close():
            raise BadAnswer("the connection closed in the middle of the answer")
        self.complete, self.reusable = True, False

    def _feed_head(self, data: bytes) -> bytes:
        """Returns what of the data is body."""
        if self._head is None and (plain := _plain_head(data)) is not None:
            status, headers, end = plain
            self._begin(status, headers, "1.1")
            return data[end:]
        head = self._head = self._head or _new_head_parser()
        try:
            head.receive_data(data)
            event = head.next_event()
            while isinstance(event, h11.InformationalResponse):
                event = head.next_event()
        except h11.RemoteProtocolError as exc:
            # Its own message quotes the line, and that may be a page of some proxy.
            raise BadAnswer("it does not start like an HTTP answer") from exc
        if not isinstance(event, h11.Response):
            return b""
        self._begin(event.status_code, _joined(event.headers), event.http_version.decode())
        self._head = None  # an answer may run for long: what its head came with is not kept
        return head.trailing_data[0]

    def _begin(self, status: int, headers: Mapping[str, str], version: str) -> None:
        self.status = status
        self.headers = headers
        self._body = _body_reader(status, headers)
        self.reusable = (
            version == "1.1"
            and "close" not in headers.get("connection", "").lower()
            and not isinstance(self._body, _UntilClose)
        )


class _Chunked:
    """Chunked transfer coding; trailers are read and dropped."""

    def __init__(self) -> None:
        self.complete = False
        self.surplus = False
        self.is_between_chunks = True
        self._pending = b""
        self._left = 0  # bytes of the current chunk, its closing CRLF not counted
        self._after_chunk = False
        self._in_trailers = False

    def feed(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        try:
            position = 0
            if self.is_between_chunks:
                position = _cut_whole_chunks(data, 0, pieces)
            if position < len(data):
                self._cut(self._pending + data, position, pieces)
        except BadAnswer as exc:
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
                position = _cut_whole_chunks(data, position, pieces)
            end = data.find(b"\n", position)
            if end < 0:
                break
            self._line(data[position:end])
            position = end + 1
        self._pending = data[position:]
        begun = self._pending or self._left or self._after_chunk or self._in_trailers
        self.is_between_chunks = not (begun or self.complete)
        self.surplus = self.complete and bool(self._pending)
        if not self.complete:
            _check_length(self._pending)

    def _line(self, line: bytes) -> None:
        _check_length(line)
        if self._in_trailers:
            self.complete = not line.rstrip(b"\r")
        elif self._after_chunk:
            if line != b"\r":  # nothing else: a size that is wrong by one shows only here
                raise BadAnswer("a chunk is not as long as it said")
            self._after_chunk = False
        else:
            self._left = _chunk_size(line)
            self._in_trailers = not self._left

    def complete_at_close(self) -> bool:
        return self.complete


class _Counted:
    """A body of a length told beforehand."""

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
    """A body that ends with its connection."""

    complete = False
    surplus = False

    def feed(self, data: bytes) -> bytes:
        return data

    def complete_at_close(self) -> bool:
        return True


# What h11 has to have sent before it hears an answer; checked once.
_QUESTION = h11.Request(method="POST", target="/", headers=[("host", "dify")])
_END_OF_QUESTION = h11.EndOfMessage()


def _new_head_parser() -> h11.Connection:
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    parser.send(_QUESTION)
    parser.send(_END_OF_QUESTION)
    return parser


# A head as servers mostly send it, whole and in its canonical form. h11 would say the same of it.
_PLAIN_HEAD = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9][0-9]) [ -~]*\r\n((?:[0-9A-Za-z-]+: [!-~]+(?: [!-~]+)*\r\n)+)\r\n"
)
_PLAIN_FIELD = re.compile(r"([^:]+): ([^\r]+)\r\n")


def _plain_head(data: bytes) -> tuple[int, dict[str, str], int] | None:
    """Status, headers and where the body begins, or None: then h11 has to look at it. That takes
    50 us, a third of what the way of a question and its answer costs here."""
    match = _PLAIN_HEAD.match(data)
    if match is None:
        return None
    fields = _PLAIN_FIELD.findall(match[2].decode("ascii"))
    headers = {name.lower(): value for name, value in fields}
    length = headers.get("content-length", "0")
    is_plain = (
        len(headers) == len(fields)
        and headers.get("transfer-encoding", "chunked") == "chunked"
        and length.isdigit()
        and len(length) <= 20
    )
    return (int(match[1]), headers, match.end()) if is_plain else None


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _body_reader(status: int, headers: Mapping[str, str]) -> _Chunked | _Counted | _UntilClose:
    if status in (204, 304):
        return _Counted(0)
    coding = headers.get("transfer-encoding", "").strip().lower()
    if coding:
        if coding != "chunked":
            raise BadAnswer("an unknown transfer coding")
        return _Chunked()
    length = headers.get("content-length")
    if length is None:
        return _UntilClose()
    if not (length.isascii() and length.isdigit()):
        raise BadAnswer("a content length that is no number")
    return _Counted(int(length))


def _check_length(line: bytes) -> None:
    if len(line) > MAX_CHUNK_LINE:
        raise BadAnswer("a line between chunks is too long")


def _cut_whole_chunks(data: bytes, position: int, pieces: list[bytes]) -> int:
    """Takes the chunks that lie in the data with all that belongs to them, as most do; returns
    where the next begins. Raises BadAnswer."""
    if len(data) - position > _MANY:
        position = _cut_row(data, position, pieces)
    while (end := data.find(b"\n", position, position + _LONGEST_SHORT_LINE)) >= 0:
        closing = end + 1 + _short_chunk_size(data[position:end])
        if closing == end + 1 or data[closing : closing + 2] != b"\r\n":
            break
        pieces.append(data[end + 1 : closing])
        position = closing + 2
    return position


def _chunk_size(line: bytes) -> int:
    size = line.partition(b";")[0].strip()
    if not size or len(size) > 16 or size.strip(b"0123456789abcdefABCDEF"):
        raise BadAnswer("a chunk without a size")
    return int(size, 16)


# So many bytes hold more than a few tokens.
_MANY = 2048


def _cut_row(data: bytes, position: int, pieces: list[bytes]) -> int:
    """Takes the chunks after which another of like size follows, in half the time; returns where
    the next begins."""
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


# What stands between two chunks, and the size of the second: of those of three digits, as those
# of a piece of text are, which has some 300 bytes in all.
_SIZES_BETWEEN = {b"\r\n%x\r\n" % size: size for size in range(0x100, 0x1000)}

_LONGEST_SHORT_LINE = 20
# The sizes of a stream's chunks are much alike.
_short_chunk_size = lru_cache(1024)(_chunk_size)
