"""The decoder of chunked bodies, against the grammar of RFC 9112 written in another way."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opendify.worker.chunked import (
    FRAMING_GRACE_BYTES,
    MAX_LINE_BYTES,
    MAX_TRAILER_BYTES,
    ChunkDecoder,
)

Result = tuple[bytes, bytes, bytes]  # data, trailers, what is left


def decoded(*pieces: bytes) -> Result | None:
    """None where the body is not complete. Raises ValueError."""
    decoder, found = ChunkDecoder(), b""
    for number, piece in enumerate(pieces):
        found += decoder.feed(piece)
        if decoder.is_done:
            return found, decoder.trailers, decoder.remainder + b"".join(pieces[number + 1 :])
    return None


TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
QUOTED = r'"([\t !\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
LINE = re.compile(
    rf"([0-9a-fA-F]{{1,16}})([ \t]*;[ \t]*{TOKEN}([ \t]*=[ \t]*({TOKEN}|{QUOTED}))?)*"
)


def reference(body: str) -> Result | None:
    """The same, of small bodies, slowly. Raises ValueError."""
    data, size = "", 1
    while size:
        line, end, body = body.partition("\r\n")
        if not end:
            return None
        size = reference_size(line)
        if size and len(body) < size + 2 and body[size:] in ("", "\r"):
            return None
        if size and body[size : size + 2] != "\r\n":
            raise ValueError(body)
        data += body[:size]
        body = body[size + 2 :] if size else body
    trailers, end, left = ("", "\r\n", body[2:])
    if not body.startswith("\r\n"):
        trailers, end, left = body.partition("\r\n\r\n")
    if re.search(r"\r(?!\n)|(?<!\r)\n", trailers + "\r\n" if end else trailers.rstrip("\r")):
        raise ValueError(trailers)
    texts = (data, trailers, left)
    return tuple(text.encode("latin-1") for text in texts) if end else None  # type: ignore[return-value]


def reference_size(line: str) -> int:
    size = LINE.fullmatch(line)
    if size is None or len(line) > MAX_LINE_BYTES:
        raise ValueError(line)
    return int(size[1], 16)


NAMES = st.sampled_from(["a", "b-c", "!"])
VALUES = st.sampled_from(["", "=1", ' = "x;\\"\r"', '\t=\t"a b"', '="', "=", "= é"])
EXTENSIONS = st.lists(
    st.builds("{}{}{}".format, st.sampled_from([";", " ; ", "\t;"]), NAMES, VALUES)
)
SIZES = st.sampled_from(
    [
        "1",
        "5",
        "a",
        "A",
        "00c",
        "0",
        "000",
        "+1",
        "-1",
        "0x5",
        "1_0",
        " 5",
        "5 ",
        "",
        "zz",
        "1" * 17,
    ]
) | st.integers(0, 20).map("{:x}".format)
ENDS = st.sampled_from(["\r\n"] * 9 + ["\n", "\r", "", "\r\r\n"])
ODD_CHUNKS = st.builds(
    "{}{}{}{}{}".format, SIZES, EXTENSIONS.map("".join), ENDS, st.text("ab\r\n0", max_size=12), ENDS
)
GOOD_CHUNKS = st.text("ab\r\n0;é", min_size=1, max_size=12).map(
    lambda data: f"{len(data):x}\r\n{data}\r\n"
)
LASTS = st.sampled_from(
    ["0\r\n\r\n", "0\r\nA: b\r\n\r\n", "0\n\n", "0\r\n\n", "0\r\nA: b\n\r\n", ""]
)
BODIES = st.builds(
    lambda chunks, last, after: "".join(chunks) + last + after,
    st.lists(GOOD_CHUNKS | ODD_CHUNKS, max_size=4),
    LASTS,
    st.sampled_from(["", "GET / HTTP/1.1\r\n\r\n", "\r\n"]),
) | st.text('0123456789abcdefgxX;=" \t\r\n+-_é', max_size=40)


def outcome(*pieces: bytes) -> Result | str:
    try:
        return decoded(*pieces) or "incomplete"
    except ValueError:
        return "refused"


def expected(body: str) -> Result | str:
    """What may still become a body is incomplete; what may not is refused before its end."""
    try:
        found = reference(body)
    except ValueError:
        return "refused"
    return found or "incomplete"


@settings(max_examples=1000)
@given(BODIES)
@example("5 \r\nhello\r\n0\r\n\r\n")
@example("0\r\nA: b\r\r\n\r\n")
@example('1;a\r\nx\r\n0;b="c"\r\n\r\n')
def test_what_is_accepted_is_what_the_grammar_says(body: str) -> None:
    found, due = outcome(body.encode("latin-1")), expected(body)
    if due == "incomplete":  # the grammar sees the fault of a line at its end only
        assert found in ("incomplete", "refused")
    else:
        assert found == due


@settings(max_examples=1000)
@given(BODIES, st.lists(st.integers(0, 80)))
@example("0\r\nA: b\r\r\n\r\n", [8])
@example("5\r\nhello\r\n0\r\n\r\n", [10, 11])
def test_no_cut_changes_anything(body: str, cuts: list[int]) -> None:
    data = body.encode("latin-1")
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    whole = outcome(data)
    assert outcome(*[data[begin:end] for begin, end in pairwise(places)]) == whole
    assert outcome(*[bytes([byte]) for byte in data]) == whole


@given(st.lists(st.binary(min_size=1, max_size=70_000), max_size=5), st.binary(max_size=20))
def test_what_was_cut_into_chunks_is_whole_again(chunks: list[bytes], after: bytes) -> None:
    body = b"".join(b"%X\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    assert decoded(body + b"0\r\n\r\n" + after) == (b"".join(chunks), b"", after)


NEVER = {
    "no size": b"\r\n",
    "a bare LF": b"0\n",
    "a bare LF at the end": b"0\r\n\n",
    "a bare LF in a trailer": b"0\r\nA: b\n",
    "a bare CR in a trailer": b"0\r\nA: b\rc",
    "other letters": b"zz",
    "a sign": b"+5",
    "a negative size": b"-5",
    "0x": b"0x",
    "an underscore": b"1_",
    "a blank before": b" ",
    "a blank after": b"5 \r\n",
    "digits of another script": "٥".encode(),
    "too many digits": b"0" * 17,
    "an extension without a name": b"5;\r\n",
    "an extension that is no token": b"5;a b\r\n",
    "a quote that does not end": b'5;a="b\r\n',
    "a control character": b'5;a="\0"\r\n',
    "an endless extension": b"5;" + b"a" * (MAX_LINE_BYTES - 2 + 2),
    "endless blanks": b"5" + b" " * (MAX_LINE_BYTES + 1),
    "too much data": b"5\r\nhello!",
    "data without CR": b"5\r\nhello\n",
    "data before half a line end": b"5\r\nhello\rx",
    "endless trailers": b"0\r\n" + b"A: b\r\n" * (MAX_TRAILER_BYTES // 6 + 2),
    "an endless trailer": b"0\r\nA: " + b"b" * (MAX_TRAILER_BYTES + 1),
}


@pytest.mark.parametrize("body", NEVER.values(), ids=NEVER)
def test_what_cannot_become_a_chunk_is_not_waited_for(body: bytes) -> None:
    assert outcome(body) == "refused"
    assert outcome(*[bytes([byte]) for byte in body]) == "refused"


@pytest.mark.parametrize(
    "body",
    [
        b"5;" + b"a" * (MAX_LINE_BYTES - 2) + b"\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nA: " + b"b" * (MAX_TRAILER_BYTES - 3) + b"\r\n\r\n",
    ],
)
def test_the_limits_are_those_that_are_named(body: bytes) -> None:
    for pieces in ([body], [bytes([byte]) for byte in body]):
        found = decoded(*pieces)
        assert found is not None
        assert found[0] == b"hello"


def test_many_small_chunks_are_refused_and_some_are_not() -> None:
    allowed = FRAMING_GRACE_BYTES // 5
    some = b"1\r\nx\r\n" * (allowed - 1) + b"0\r\n\r\n"
    assert outcome(some) == (b"x" * (allowed - 1), b"", b"")
    assert outcome(b"1\r\nx\r\n" * 2 * allowed) == "refused"
    large = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    assert outcome(large * 10, *[b"1\r\nx\r\n" * 1000] * 200) == "refused"
    assert outcome(*[b"a\r\n1234567890\r\n" * 1000] * 200, b"0\r\n\r\n") != "refused"
