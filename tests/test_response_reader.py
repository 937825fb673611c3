from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opendify.upstream.transport import response_reader
from opendify.upstream.transport.response_reader import (
    MAX_CHUNK_LINE,
    MAX_HEAD,
    MAX_HEADERS,
    ProtocolError,
    ResponseReader,
)
from tests.support.fake_dify import recorded_streams, recording
from tests.support.profiles import examples

OK = b"HTTP/1.1 200 OK\r\n"


def chunked(body: bytes, size: int = 300) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""]]
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


def counted(body: bytes) -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


def until_close(body: bytes) -> bytes:
    return OK + b"Connection: close\r\n\r\n" + body


FRAMINGS = [
    pytest.param(chunked, id="chunked"),
    pytest.param(counted, id="counted"),
    pytest.param(until_close, id="until the connection closes"),
]
RECORDED = recorded_streams()
# One of each kind, small enough to be cut in two at every byte.
SHORT = [
    "1.13.2/chat/stream_first",
    "1.13.2/agent-chat/llm_fail_start_stream",
    "1.13.2/advanced-chat/stream_conv_unknown",
    "1.11.4/chat/stream_conv_unknown",
    "1.11.4/chat/wrong_key",
]

Framing = Callable[[bytes], bytes]


def read(answer: ResponseReader, pieces: Iterable[bytes]) -> bytes:
    return b"".join(answer.feed(piece) for piece in pieces)


def read_whole(data: bytes) -> tuple[ResponseReader, bytes]:
    answer = ResponseReader()
    body = answer.feed(data)
    if not answer.complete:
        answer.end()
    return answer, body


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_answer_is_read_byte_by_byte(name: str, framing: Framing) -> None:
    body = recording(name).body
    answer = ResponseReader()
    assert read(answer, byte_by_byte(framing(body))) == body
    assert answer.status == 200
    assert answer.complete is (framing is not until_close)
    answer.end()
    assert answer.complete


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("name", SHORT)
def test_a_recorded_answer_is_the_same_cut_in_two_at_every_byte(
    name: str, framing: Framing
) -> None:
    body = recording(name).body
    data = framing(body)
    for position in range(1, len(data)):
        assert read(ResponseReader(), [data[:position], data[position:]]) == body


@pytest.mark.parametrize("framing", [chunked, counted])
@pytest.mark.parametrize("name", SHORT)
def test_an_answer_that_ends_at_any_byte_before_its_last_is_broken(
    name: str, framing: Framing
) -> None:
    data = framing(recording(name).body)
    for position in range(len(data)):
        answer = ResponseReader()
        if position:
            answer.feed(data[:position])
        assert not answer.complete
        with pytest.raises(ProtocolError):
            answer.end()


def test_an_answer_that_ends_in_its_head_is_broken_whatever_its_framing() -> None:
    data = until_close(b"")
    for position in range(len(data)):
        answer = ResponseReader()
        if position:
            answer.feed(data[:position])
        with pytest.raises(ProtocolError):
            answer.end()


@given(body=st.binary(max_size=500), data=st.data())
def test_any_chunking_of_any_body_in_any_pieces_gives_the_body(
    body: bytes, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 200), max_size=8))
    extension = data.draw(st.sampled_from([b"", b";a=b", b' ; a="x"']))
    trailers = data.draw(st.sampled_from([b"", b"X-Checked: 1\r\n", b"A: b\r\nC: d\r\n"]))
    raw, rest = OK + b"Transfer-Encoding: chunked\r\n\r\n", body
    for size in [*sizes, len(body) or 1]:
        if rest:
            piece, rest = rest[:size], rest[size:]
            raw += b"%X%b\r\n%b\r\n" % (len(piece), extension, piece)
    raw += b"000\r\n" + trailers + b"\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(1, len(raw) - 1), unique=True, max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    answer = ResponseReader()
    assert read(answer, pieces) == body
    assert answer.complete
    assert answer.reusable


def outcome(pieces: Iterable[bytes]) -> tuple[bytes, str, bool, bool]:
    """What is read of a response: its body, what is wrong with it, whether it is whole and its
    connection reusable."""
    answer, body, wrong = ResponseReader(), [], ""
    try:
        for piece in pieces:
            body.append(answer.feed(piece))
        if not answer.complete:
            answer.end()
    except ProtocolError as exc:
        body.append(exc.body)
        wrong = str(exc)
    return b"".join(body), wrong, answer.complete, answer.reusable


HEADS = st.sampled_from(
    [b"%x\r\n"] * 6 + [b"%X\r\n", b"0%x\r\n", b"%x;a=b\r\n", b"%x\n", b" %x\r\n"]
)
CHUNKS = st.lists(
    st.tuples(
        HEADS,
        st.sampled_from([300] * 6 + [1, 255, 256, 4095, 4096, 5000]),
        st.sampled_from([0] * 30 + [-1, 1]),
        st.sampled_from([b"\r\n"] * 30 + [b"\n", b"", b"\r\r\n"]),
    ),
    max_size=16,
)


@given(
    chunks=CHUNKS,
    filling=st.sampled_from([b"x", b"\r\n", b"\r\n12c\r\n"]),
    end=st.sampled_from([b"0\r\n\r\n", b"", b"0\r\n\r\nmore", b"000\r\n\r\n"]),
    cuts=st.lists(st.floats(0, 1), max_size=4),
)
def test_chunks_sound_or_not_are_read_the_same_together_and_byte_by_byte(
    chunks: list[tuple[bytes, int, int, bytes]], filling: bytes, end: bytes, cuts: list[float]
) -> None:
    raw = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    raw += b"".join(alone(chunks, filling)) + end
    places = [0, *sorted(round(cut * len(raw)) for cut in cuts), len(raw)]
    pieces = [raw[a:b] for a, b in pairwise(places) if a < b]
    assert outcome(pieces) == outcome(byte_by_byte(raw))
    apart = [OK + b"Transfer-Encoding: chunked\r\n\r\n", *alone(chunks, filling), end]
    assert outcome(filter(None, apart)) == outcome(byte_by_byte(raw))


def alone(chunks: list[tuple[bytes, int, int, bytes]], filling: bytes) -> list[bytes]:
    return [
        head % max(0, size + off) + (filling * size)[:size] + closing
        for head, size, off, closing in chunks
    ]


ROW = (b"12c\r\n" + b"x" * 300 + b"\r\n") * 10
BETWEEN = [
    pytest.param(b"12c\r\n" + b"x" * 300 + b"xx", id="another line end"),
    pytest.param(b"12c\r\n" + b"x" * 300 + b"\n", id="half a line end"),
    pytest.param(b"12c\r\n" + b"x" * 300, id="no line end"),
    pytest.param(b"12b\r\n" + b"x" * 300 + b"\r\n", id="one byte more"),
    pytest.param(b"12d\r\n" + b"x" * 300 + b"\r\n", id="one byte less"),
    pytest.param(b"0x12c\r\n" + b"x" * 300 + b"\r\n", id="a size with a prefix"),
    pytest.param(b"-12c\r\n" + b"x" * 300 + b"\r\n", id="a negative size"),
    pytest.param(b"\r\n", id="an empty line"),
]


def test_a_chunk_that_comes_alone_is_read_like_one_among_others() -> None:
    answer = ResponseReader()
    answer.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    assert answer.feed(b"1\r\nx\r\n") == b"x"
    assert answer.feed(b"7\r\ny") == b"y"
    assert answer.feed(b"1\r\nx\r\n") == b"1\r\nx\r\n"
    assert answer.feed(b"\r\n1\r\nz\r\n0\r\n\r\n") == b"z"
    assert answer.complete


@pytest.mark.parametrize("fault", BETWEEN)
def test_a_fault_in_a_row_of_like_chunks_is_noticed(fault: bytes) -> None:
    raw = OK + b"Transfer-Encoding: chunked\r\n\r\n" + ROW + fault + ROW + b"0\r\n\r\n"
    body, wrong, is_complete, _ = outcome([raw])
    assert wrong
    assert not is_complete
    assert body.startswith(b"x" * 3000)
    assert (body, wrong) == outcome(byte_by_byte(raw))[:2]


@given(data=st.binary(max_size=300), sound_head=st.booleans())
def test_any_bytes_are_an_answer_or_a_bad_answer_and_nothing_else(
    data: bytes, sound_head: bool
) -> None:
    answer = ResponseReader()
    head = OK + b"Transfer-Encoding: chunked\r\n\r\n" if sound_head else b""
    try:
        answer.feed(head + data or b"x")
        answer.end()
    except ProtocolError:
        return
    assert answer.complete


# --- the head ----------------------------------------------------------------------------------

DIFYS_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Fri, 27 Nov 2026 09:55:08 GMT\r\n"
    b"Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: keep-alive\r\nX-Version: 1.13.2\r\n\r\n"
)


def mostly(sound: list[bytes], strange: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.sampled_from(sound * (1 + 12 * len(strange) // len(sound)) + strange)


VERSIONS = mostly([b"HTTP/1.1 "], [b"HTTP/1.0 ", b"http/1.1 ", b"HTTP/1.1", b""])
STATUSES = mostly(
    [b"200 OK", b"200 ", b"204 No", b"304 Same", b"404 Not found"],
    [b"200", b"100 Go on", b"101 Switch", b"199 x", b"600 x", b"20 OK", b"2000 OK", b"200 \xe9"],
)
NAMES = mostly(
    [b"Content-Length", b"transfer-encoding", b"Connection", b"X-Version", b"x-version"],
    [b"a_b", b"a b", b"", b"\xe9", b"\0"],
)
VALUES = mostly(
    [b"0", b"3", b"03", b"9" * 20, b"chunked", b"close", b"Keep-Alive, Close", b"a b", b"a: b"],
    [b"+3", b"3, 3", b"3,4", b"9" * 21, b"Chunked", b"gzip, chunked", b"", b"a  b", b" a", b"a\t"],
) | st.sampled_from([b"\xe9", b"a:", b"\x7f", b"a\rb", b"a\nb", b"a\0b", b"x"])
SEPARATORS = mostly([b": "], [b":", b" : ", b":  ", b""])
ENDS = mostly([b"\r\n"], [b"\n", b"\r", b"\r\r\n", b""])
STRAY = mostly([b""], [b"\r", b"\n", b"\0", b" ", b":", b"\xff", b"\r\n", b"\r\n\r\n", b"\t"])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads of answers, most of them nearly as they should be."""
    head = draw(VERSIONS) + draw(STATUSES) + draw(ENDS)
    for _ in range(draw(st.integers(0, 4))):
        head += draw(NAMES) + draw(SEPARATORS) + draw(VALUES) + draw(ENDS)
    head += draw(ENDS)
    position = draw(st.integers(0, len(head)))
    return head[:position] + draw(STRAY) + head[position:]


def told(data: bytes, pieces: list[bytes]) -> object:
    """All that an answer is taken for, or that it is none."""
    answer = ResponseReader()
    try:
        body = read(answer, pieces)
    except ProtocolError as exc:
        return answer.status, str(exc)
    return answer.status, answer.headers, body, answer.complete, answer.reusable


@settings(max_examples=examples(2000))
@given(head=heads() | st.binary(max_size=60), body=st.binary(max_size=12), data=st.data())
def test_h11_says_what_a_head_means(head: bytes, body: bytes, data: st.DataObject) -> None:
    """One that comes in pieces is read by h11 alone, since no plain head is shorter."""
    raw = head + body or b"x"
    position = data.draw(st.integers(0, min(len(raw), 20)))
    with pytest.MonkeyPatch.context() as patched:
        whole = told(raw, [raw])
        cut = told(raw, [piece for piece in (raw[:position], raw[position:]) if piece])
        patched.setattr(response_reader, "_plain_head", lambda data: None)
        assert whole == told(raw, [raw])
        assert cut == told(raw, [piece for piece in (raw[:position], raw[position:]) if piece])


@given(
    status=st.integers(200, 599),
    reason=st.text("aZ 0!~", max_size=8),
    fields=st.lists(
        st.tuples(
            st.text("aBz09-", min_size=1, max_size=8),
            st.from_regex(r"[!-~]+( [!-~]+)*", fullmatch=True),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda field: field[0].lower(),
    ),
)
def test_a_plain_head_is_read_without_h11_and_as_h11_reads_it(
    status: int, reason: str, fields: list[tuple[str, str]]
) -> None:
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in fields)]
    raw = "\r\n".join([*lines, "", "rest"]).encode()
    plain = response_reader._plain_head(raw)
    assert plain is not None
    assert raw[plain[2] :] == b"rest"
    whole = told(raw, [raw])
    assert whole == told(raw, byte_by_byte(raw))


def test_the_head_of_dify_is_a_plain_one() -> None:
    status, headers, end = response_reader._plain_head(DIFYS_HEAD + b"0\r\n\r\n") or (0, [], 0)
    assert (status, headers[-1], end) == (200, (b"x-version", b"1.13.2"), len(DIFYS_HEAD))


# --- what is unusual -----------------------------------------------------------------------------

SOUND = [
    pytest.param(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + counted(b"a"),
        200,
        b"a",
        id="heads before the head",
    ),
    pytest.param(b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\na", 200, b"a", id="no reason"),
    pytest.param(b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\na", 200, b"a", id="an empty reason"),
    pytest.param(b"HTTP/1.0 200 OK\r\n\r\nabc", 200, b"abc", id="HTTP/1.0 until close"),
    pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, b"abc", id="HTTP/1.0"),
    pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", id="a status without a body"),
    pytest.param(b"HTTP/1.1 304 Same\r\nContent-Length: 9\r\n\r\n", 304, b"", id="not modified"),
    pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 1\n\na", 200, b"a", id="lines that end at LF"),
    pytest.param(
        OK + b"transfer-encoding: Chunked\r\n\r\n0003;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n",
        200,
        b"abc",
        id="extensions, trailers, leading zeros",
    ),
    pytest.param(
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, b"", id="no chunk but the last"
    ),
    pytest.param(
        OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab", 200, b"ab", id="twice one length"
    ),
    pytest.param(
        OK + b"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        200,
        b"a",
        id="chunks win over a length",
    ),
]


@pytest.mark.parametrize(("data", "status", "body"), SOUND)
def test_an_unusual_but_sound_answer_is_read(data: bytes, status: int, body: bytes) -> None:
    whole, got = read_whole(data)
    assert (whole.status, got, whole.complete) == (status, body, True)
    piecemeal = ResponseReader()
    assert read(piecemeal, byte_by_byte(data)) == body
    assert piecemeal.status == status


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MALFORMED = [
    pytest.param(b"hello\r\n\r\n", id="no status line"),
    pytest.param(b"<html>\r\n<p>hello\r\n\r\n", id="a page without a head"),
    pytest.param(b"HTTP/1.1 OK\r\n\r\n", id="no status"),
    pytest.param(b"HTTP/1.1 20 OK\r\n\r\n", id="a status of two digits"),
    pytest.param(b"HTTP/2 200\r\n\r\n", id="another version"),
    pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", id="another protocol"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", id="TLS"),
    pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", id="a switch not asked for"),
    pytest.param(OK + b"Name\r\n\r\n", id="a header without a colon"),
    pytest.param(OK + b"Name : x\r\n\r\n", id="a blank before the colon"),
    pytest.param(OK + b"Name: a\0b\r\n\r\n", id="a NUL in a header"),
    pytest.param(OK + b"Content-Length: many\r\n\r\n", id="a length that is no number"),
    pytest.param(OK + b"Content-Length: -1\r\n\r\n", id="a negative length"),
    pytest.param(OK + b"Content-Length: +1\r\n\r\n", id="a length with a sign"),
    pytest.param(OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", id="an endless length"),
    pytest.param(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", id="two lengths"),
    pytest.param(OK + b"Transfer-Encoding: gzip\r\n\r\n", id="an unknown coding"),
    pytest.param(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", id="one coding over another"),
    pytest.param(CHUNKED + b"\r\n", id="an empty size"),
    pytest.param(CHUNKED + b"x\r\n", id="a size that is no number"),
    pytest.param(CHUNKED + b"-1\r\n", id="a negative size"),
    pytest.param(CHUNKED + b"0x1\r\n", id="a size with a prefix"),
    pytest.param(CHUNKED + b"1_0\r\n", id="a size with an underscore"),
    pytest.param(CHUNKED + b"1 0\r\n", id="a size with a blank in it"),
    pytest.param(CHUNKED + b"1" * 17 + b"\r\n", id="an endless size"),
    pytest.param(CHUNKED + "١\r\n".encode(), id="a digit that is not ASCII"),
    pytest.param(CHUNKED + b";a=b\r\n", id="an extension without a size"),
    pytest.param(CHUNKED + b"1;" + b"a" * MAX_CHUNK_LINE, id="an endless extension"),
    pytest.param(CHUNKED + b"2\r\nabc\r\n0\r\n\r\n", id="a chunk that is too long"),
    pytest.param(CHUNKED + b"3\r\nabc0\r\n\r\n", id="a chunk without its line end"),
    pytest.param(CHUNKED + b"4\r\nabc\r\n0\r\n\r\n", id="a chunk that is too short"),
    pytest.param(CHUNKED + b"0\r\nT: " + b"u" * MAX_CHUNK_LINE, id="an endless trailer"),
    pytest.param(
        CHUNKED + b"1;" + b"a" * MAX_CHUNK_LINE + b"\r\na\r\n0\r\n\r\n", id="a long extension"
    ),
    pytest.param(CHUNKED + b"1\r\na\n0\r\n\r\n", id="a chunk whose line end is half"),
    pytest.param(CHUNKED + b"1\na\r\n0\r\n\r\n", id="a size whose line end is half"),
    pytest.param(CHUNKED + b" 1\r\na\r\n0\r\n\r\n", id="a blank before a size"),
    pytest.param(CHUNKED + b"1\r\na\r\n0\n\n", id="an end whose line ends are half"),
    pytest.param(OK + b"A: b\r\n" * (MAX_HEADERS + 1) + b"\r\n", id="too many headers"),
    pytest.param(
        OK + b"".join(b"A%d: b\r\n" % i for i in range(MAX_HEADERS + 1)) + b"\r\n",
        id="too many headers, in a plain head",
    ),
    pytest.param(
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD // 20), id="endless heads before the head"
    ),
    pytest.param(OK + b"A: b\r\n" * (MAX_HEAD // 6) + b"\r\n", id="an endless head"),
    pytest.param(OK + b"X: " + b"y" * MAX_HEAD, id="an endless header"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 3, id="only heads before the head"),
]


@pytest.mark.parametrize("data", MALFORMED)
def test_a_malformed_answer_is_refused_however_it_is_cut(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_whole(data)
    answer = ResponseReader()
    with pytest.raises(ProtocolError):
        read(answer, byte_by_byte(data))
        answer.end()


@pytest.mark.parametrize("data", MALFORMED)
def test_a_complaint_quotes_nothing_of_what_was_received(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_whole(data)
    for quoted in ("html", "hello", "OpenSSH", "Name", "many", "gzip", "x03"):
        assert quoted not in str(caught.value)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", OK + b"Content-Length: 9\r\n\r\n"),
        ("HEAD", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", OK + b"Server: x\r\n\r\n"),
        ("CONNECT", b"HTTP/1.1 200 Connection established\r\n\r\n"),
        ("CONNECT", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n"),
    ],
)
def test_some_responses_have_no_body_whatever_their_headers_say(
    method: str, head: bytes, cut: bool
) -> None:
    answer = ResponseReader(method)
    assert read(answer, byte_by_byte(head) if cut else [head]) == b""
    assert (answer.status, answer.complete) == (200, True)


def test_a_refused_tunnel_has_a_body() -> None:
    answer = ResponseReader("CONNECT")
    assert answer.feed(b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno") == b"no"
    assert (answer.status, answer.complete) == (407, True)


REUSABLE = [
    pytest.param(chunked(b"a"), True, id="chunked"),
    pytest.param(counted(b"a"), True, id="counted"),
    pytest.param(counted(b""), True, id="an empty body"),
    pytest.param(until_close(b"a"), False, id="until close"),
    pytest.param(OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n", False, id="close"),
    pytest.param(OK + b"Connection: Close, x\r\nContent-Length: 0\r\n\r\n", False, id="a list"),
    pytest.param(OK + b"Connection: keep-alive\r\nContent-Length: 0\r\n\r\n", True, id="keep"),
    pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False, id="HTTP/1.0"),
    pytest.param(counted(b"a") + b"b", False, id="bytes after a counted body"),
    pytest.param(chunked(b"a") + b"b", False, id="bytes after the last chunk"),
    pytest.param(chunked(b"a") + b"b" * 2 * MAX_CHUNK_LINE, False, id="many such bytes"),
]


@pytest.mark.parametrize(("data", "reusable"), REUSABLE)
def test_a_connection_is_reusable_only_after_an_answer_with_a_certain_end(
    data: bytes, reusable: bool
) -> None:
    answer, _ = read_whole(data)
    assert answer.reusable is reusable
    piecemeal = ResponseReader()
    read(piecemeal, byte_by_byte(data))
    assert piecemeal.reusable is reusable


def test_a_connection_that_closed_is_not_reusable_though_the_body_was_complete() -> None:
    answer = ResponseReader()
    answer.feed(counted(b"a"))
    answer.end()
    assert answer.complete
    assert not answer.reusable


def test_bytes_after_the_end_are_no_body() -> None:
    answer = ResponseReader()
    assert answer.feed(counted(b"a") + b"more") == b"a"
    assert answer.feed(b"still more") == b""


def test_headers_have_lower_case_names_and_are_joined() -> None:
    answer, _ = read_whole(OK + b"X-One: a\r\nx-one:  b \r\nTWO: \xe9\r\nContent-Length: 0\r\n\r\n")
    assert answer.headers == {"x-one": "a, b", "two": "é", "content-length": "0"}


def test_a_status_is_returned_only_when_the_head_is_complete() -> None:
    answer = ResponseReader()
    assert answer.feed(b"HTTP/1.1 503 Bad\r\n") == b""
    assert answer.status == 0
    answer.feed(b"\r\n")
    assert answer.status == 503


def test_body_is_handed_on_before_its_chunk_is_complete() -> None:
    answer = ResponseReader()
    assert answer.feed(CHUNKED + b"ffff\r\nabc") == b"abc"
    assert answer.feed(b"def") == b"def"


def test_no_more_than_one_line_is_kept_between_pieces() -> None:
    answer = ResponseReader()
    body = b"x" * 1_000_000
    data = chunked(body, size=900_000)
    kept = 0
    for position in range(0, len(data), 1000):
        answer.feed(data[position : position + 1000])
        reader = answer._body
        kept = max(kept, len(getattr(reader, "_pending", b"")))
    assert answer.complete
    assert kept <= len(b"ffffffff\r\n")
