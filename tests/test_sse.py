import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify import sse
from tests.support.fake_dify import recorded_streams, recording

# Every line end is a plain LF here; the tests put the others in its place.
STREAMS = [
    pytest.param(b"", [], id="nothing"),
    pytest.param(b"data: a\n\n", [b"a"], id="one event"),
    pytest.param(b"data: a\n\ndata: b\n\n", [b"a", b"b"], id="two events"),
    pytest.param(b"data:a\n\n", [b"a"], id="no blank after the colon"),
    pytest.param(b"data:  a\n\n", [b" a"], id="only one blank belongs to the colon"),
    pytest.param(b"data: a: b\n\n", [b"a: b"], id="a colon in the data"),
    pytest.param(b"data: a\ndata: b\n\n", [b"a\nb"], id="data of two lines"),
    pytest.param(b"data: a\ndata\ndata: b\n\n", [b"a\n\nb"], id="an empty line of data"),
    pytest.param(b"data:\n\n", [b""], id="data that is empty"),
    pytest.param(b"event: ping\n\n", [], id="a ping of Dify"),
    pytest.param(b"event: ping\n\ndata: a\n\n", [b"a"], id="a ping before data"),
    pytest.param(b"data: a\n\nevent: ping\n\n", [b"a"], id="a ping after data"),
    pytest.param(b": hello\n\n", [], id="a comment"),
    pytest.param(b": data: x\n\n", [], id="a comment that looks like data"),
    pytest.param(b": hello\ndata: a\n: bye\n\n", [b"a"], id="comments around data"),
    pytest.param(b"id: 7\nretry: 5\nevent: x\ndata: a\n\n", [b"a"], id="all other fields"),
    pytest.param(b"datax: a\n\n", [], id="a field whose name only starts like data"),
    pytest.param(b"data : a\n\n", [], id="a field whose name ends in a blank"),
    pytest.param(b" data: a\n\n", [], id="a field whose name starts with a blank"),
    pytest.param(b"Data: a\n\n", [], id="field names have a case"),
    pytest.param(b"\n\n\ndata: a\n\n\n\ndata: b\n\n", [b"a", b"b"], id="surplus empty lines"),
    pytest.param(b"data: a\n\ndata: b\n", [b"a"], id="an event without its empty line"),
    pytest.param(b"data: a\n\ndata: b", [b"a"], id="an event without its line end"),
    pytest.param(
        'data: {"answer":"a\u2028b\u2029c\u0085d\u000be\u000cf"}\n\n'.encode(),
        ['{"answer":"a\u2028b\u2029c\u0085d\u000be\u000cf"}'.encode()],
        id="line ends of Unicode in JSON",
    ),
    pytest.param("data: 你好\n\n".encode(), ["你好".encode()], id="text that is not ASCII"),
    pytest.param(b"data: \xff\xfe\n\n", [b"\xff\xfe"], id="bytes that are no text"),
    pytest.param(b"\xef\xbb\xbfdata: a\n\ndata: b\n\n", [b"a", b"b"], id="a byte order mark"),
    pytest.param(b"\xef\xbb\xbf\n\ndata: a\n\n", [b"a"], id="a byte order mark alone"),
]

LINE_ENDS = [
    pytest.param([b"\n"], id="LF"),
    pytest.param([b"\r\n"], id="CRLF"),
    pytest.param([b"\r"], id="CR"),
    pytest.param([b"\r\n", b"\n"], id="CRLF and LF"),
    pytest.param([b"\n", b"\r\n"], id="LF and CRLF"),
    pytest.param([b"\r\n", b"\r"], id="CRLF and CR"),
    pytest.param([b"\r", b"\r\n", b"\r\n", b"\r"], id="all that hold a CR"),
]


def decoded(*pieces: bytes) -> list[bytes]:
    decoder = sse.Decoder()
    return [payload for piece in pieces for payload in decoder.feed(piece)]


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def with_line_ends(stream: bytes, ends: list[bytes]) -> bytes:
    numbers = iter(range(stream.count(b"\n")))
    return re.sub(b"\n", lambda _: ends[next(numbers) % len(ends)], stream)


@pytest.mark.parametrize("ends", LINE_ENDS)
@pytest.mark.parametrize(("stream", "payloads"), STREAMS)
def test_a_stream_gives_its_payloads_however_it_is_cut_and_whatever_ends_its_lines(
    stream: bytes, payloads: list[bytes], ends: list[bytes]
) -> None:
    raw = with_line_ends(stream, ends)
    assert decoded(raw) == payloads
    assert decoded(*byte_by_byte(raw)) == payloads
    for position in range(len(raw) + 1):
        assert decoded(raw[:position], raw[position:]) == payloads


def test_an_event_is_handed_out_with_the_byte_that_completes_it() -> None:
    decoder = sse.Decoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\n") == [b"a"]
    assert decoder.feed(b"data: b\r\n") == []
    assert decoder.feed(b"\r") == [b"b"]
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"data: c\n\n") == [b"c"]


def test_nothing_fed_between_a_cr_and_its_lf_changes_nothing() -> None:
    assert decoded(b"data: a\r", b"", b"\ndata: b\r", b"", b"\n\r\n") == [b"a\nb"]


@pytest.mark.parametrize("name", [n for n in recorded_streams() if recording(n).is_stream])
def test_a_recorded_stream_gives_the_same_payloads_in_one_piece_and_byte_by_byte(
    name: str,
) -> None:
    answer = recording(name)
    expected = [block[6:] for block in answer.body.split(b"\n\n") if block.startswith(b"data: ")]
    assert decoded(answer.body) == expected
    assert decoded(*byte_by_byte(answer.body)) == expected


def plain_decode(stream: bytes) -> list[bytes]:
    """The standard's algorithm, line by line, for a stream that is there as a whole."""
    payloads, data = [], []
    for line in re.split(rb"\r\n|\r|\n", stream)[:-1]:
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif not line:
            payloads += [b"\n".join(data)] if data else []
            data = []
    return payloads


STREAM_PIECES = st.lists(
    st.sampled_from([b"data", b":", b" ", b"\r", b"\n", b"\r\n", b"x", b"\xe2\x80\xa8"])
    | st.sampled_from([b"data: ", b"data: x\n\n", b"\n\n", b"data: \n\n", b": x\n\n", b"x\n\n"])
)


@given(pieces=STREAM_PIECES)
def test_any_bytes_in_any_pieces_are_decoded_as_the_standard_says(pieces: list[bytes]) -> None:
    assert decoded(*pieces) == plain_decode(b"".join(pieces))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(pieces=STREAM_PIECES, cut=st.floats(0, 1))
def test_events_are_decoded_the_same_together_and_byte_by_byte(
    pieces: list[bytes], cut: float
) -> None:
    stream = b"\xef\xbb\xbf" * (len(pieces) % 2) + b"".join(pieces)
    at = round(cut * len(stream))
    assert decoded(stream[:at], stream[at:]) == decoded(*byte_by_byte(stream))


@given(values=st.lists(JSON_VALUES, max_size=4), cut=st.integers(min_value=0))
def test_what_is_encoded_comes_back_cut_anywhere(values: list[Any], cut: int) -> None:
    stream = b"".join(sse.encode(value) for value in values)
    position = cut % (len(stream) + 1)
    payloads = decoded(stream[:position], stream[position:])
    assert [json.loads(payload) for payload in payloads] == values


def test_encoded_text_stays_readable() -> None:
    assert sse.encode({"a": "你好", "b": [1]}) == 'data: {"a":"你好","b":[1]}\n\n'.encode()


def test_the_fixed_events_are_whole_events() -> None:
    assert decoded(b"data: [DONE]\n\n") == [b"[DONE]"]
    assert decoded(sse.KEEP_ALIVE) == []
    assert decoded(sse.KEEP_ALIVE + b"data: [DONE]\n\n") == [b"[DONE]"]


def test_an_event_without_an_end_is_refused_before_it_fills_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    decoder = sse.Decoder()
    assert decoder.feed(b"data: " + b"x" * 994) == []
    with pytest.raises(sse.EventTooLarge):
        decoder.feed(b"x")


def test_a_long_stream_of_small_events_is_no_large_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    assert len(decoded(b"data: x\n\n" * 1000, *[b"data: y\n\n"] * 1000)) == 2000


class CountingBuffer(bytearray):
    """Counts the bytes that searches have looked at."""

    looked_at = 0

    def find(self, *args: Any) -> int:
        found = super().find(*args)
        start = args[1] if len(args) > 1 else 0
        self.looked_at += (len(self) if found < 0 else found + len(args[0])) - start
        return found


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_the_search_for_the_end_of_an_event_never_starts_over(piece: int) -> None:
    event = b"data: " + b"x" * 50_000 + b"\n\n"
    decoder = sse.Decoder()
    buffer = decoder._pending = CountingBuffer()
    for position in range(0, len(event), piece):
        decoder.feed(event[position : position + piece])
    assert decoder._pending is buffer
    assert buffer.looked_at <= 3 * len(event)


def test_many_events_in_one_piece_are_looked_at_once() -> None:
    decoder = sse.Decoder()
    buffer = decoder._pending = CountingBuffer()
    stream = b"data: x\n\n" * 5000
    assert len(decoder.feed(stream)) == 5000
    assert buffer.looked_at <= 2 * len(stream)


def test_an_event_may_have_a_name() -> None:
    assert sse.encode({"a": "é"}, "ping") == 'event: ping\ndata: {"a":"é"}\n\n'.encode()
    template = sse.Template({"text": sse.PLACEHOLDER}, "delta")
    assert template.fill('"') == sse.encode({"text": '"'}, "delta")
