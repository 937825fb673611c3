"""A body as fields: what is decoded agrees with Python's own decoder, and what would cost more than
it weighs is refused before anything is made of it."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opendify.errors import InvalidRequest, OpenDifyError, RequestTooLarge
from opendify.protocols.json_object import (
    MAX_DEPTH,
    MAX_VALUES,
    parse_nested,
    parse_object,
)
from opendify.protocols.openai.chat_request import ChatRequest, parse_chat_request

MEGABYTE = 1024 * 1024
NUMBERS = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=8) | st.sampled_from(['"', "\\", '\\"', ",[{", "\U0001f600", "\0", "é"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS | st.sampled_from(["model", "messages"]), VALUES, max_size=4)


def decoded(data: bytes, max_text_bytes: int = 8 * MEGABYTE) -> dict[str, Any]:
    """All fields, each read."""
    return dict(parse_object(data, max_text_bytes))


def strictly(text: str) -> Any:
    """What Python's own decoder makes of it. Raises ValueError for what is no JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(number)
        return float(number)

    value = json.loads(text, parse_constant=refuse, parse_float=finite)
    json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is not text
    return value


@given(value=OBJECTS, is_ascii=st.booleans(), indent=st.none() | st.integers(0, 2))
def test_a_valid_body_is_what_python_reads_in_it(
    value: dict[str, Any], is_ascii: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    assert decoded(text.encode()) == value
    assert decoded(text.encode("utf-8-sig")) == value
    assert parse_nested(text, "x") == value


@given(data=st.data())
def test_a_damaged_body_is_read_as_python_reads_it_or_refused(data: st.DataObject) -> None:
    text = json.dumps(data.draw(OBJECTS))
    cut = data.draw(st.integers(0, len(text)))
    rest = text[cut + data.draw(st.integers(0, 3)) :]
    damage = st.sampled_from('"\\{}[],:0123456789eE+-. \t\nNaInfinitytruefalse\x01')
    check(text[:cut] + data.draw(st.text(damage, max_size=3)) + rest)


@given(st.text(st.sampled_from('{}[]":,\\ud8dcDC0189aeE+-. \nNtrue\x1f'), max_size=30))
@example('{"a":1,"a":2}')
@example('{"a":01}')
@example('{"a":-}')
@example('{"a":1e999}')
@example('{"a":-1e999}')
@example('{"a":1e-999}')
@example('{"a":%s}' % ("9" * 4300))
@example('{"a":%s}' % ("9" * 4301))
@example('{"a":1%s.5}' % ("0" * 400))
@example('{"a":18446744073709551616}')
@example('{"a":NaN}')
@example('{"a":-Infinity}')
@example('{"a":"\\ud800"}')
@example('{"a":"\\udc00\\ud800"}')
@example('{"a":"\\ud83d\\ude00"}')
@example('{"a":"\\u0000"}')
@example('{"a":"\\x"}')
@example('{"a":"\n"}')
@example('{"a":"\x7f"}')
@example('{"a":1}{')
@example('{"a":1}\v')
@example('{"a":1,}')
@example('{"a":[1,]}')
@example("{'a':1}")
@example("")
def test_any_text_is_read_as_python_reads_it_or_refused(text: str) -> None:
    check(text)


def check(text: str) -> None:
    try:
        expected = strictly(text)
    except (ValueError, RecursionError):
        expected = None
    if isinstance(expected, dict):
        assert decoded(text.encode()) == expected
    else:
        with pytest.raises(InvalidRequest):
            decoded(text.encode())


@given(data=st.binary(max_size=200) | st.text().map(str.encode) | OBJECTS.map(str).map(str.encode))
@example(b"\xff\xfe{\0}\0")
@example(b"\xef\xbb\xbf")
@example(b'{"model":"\xff"}')
@example(b'{"\xff":1}')
@example(b'{"model":"\xed\xa0\x80"}')
@example(b"[" * 100_000)
@example(b'{"model":' * 100_000)
def test_any_bytes_are_a_request_or_an_error_of_ours(data: bytes) -> None:
    try:
        assert isinstance(parse_chat_request(parse_object(data, MEGABYTE)), ChatRequest)
    except OpenDifyError as exc:
        assert exc.status in (400, 413)
        assert exc.message.endswith(".")
        assert len(exc.message) < 500


def test_a_name_that_goes_into_no_header_goes_into_no_error() -> None:
    names = b"".join(b', "%s": %s' % (b"x" * 5000, value) for value in (b"1e999", b'"\xff"'))
    data = b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}]%s}' % names
    assert parse_chat_request(parse_object(data, MEGABYTE)).ignored == ()


FIELDS = [
    (b'{"model": "tiny", "x": 1e999}', "x"),
    (b'{"x": %s}' % (b"9" * 5000), "x"),
    (b'{"x": "\xff"}', "x"),
    (b'{"x": {"y": "\xed\xa0\x80"}}', "x"),
    (b'{"x": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "x"),
    (b'{"x": ' + b'{"y":' * 900 + b"1" + b"}" * 900 + b"}", "x"),
]


@pytest.mark.parametrize(("data", "name"), FIELDS)
def test_what_is_wrong_with_a_field_names_it_and_a_field_that_nobody_reads_does_no_harm(
    data: bytes, name: str
) -> None:
    body = parse_object(data, MEGABYTE)
    assert name in body
    with pytest.raises(InvalidRequest) as caught:
        body[name]
    assert caught.value.param == name
    assert f"'{name}'" in caught.value.message


def test_a_field_may_be_as_deep_as_the_limit() -> None:
    nested = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert decoded(b'{"x": ' + nested + b"}")
    assert parse_nested("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x")


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
def test_json_in_a_text_is_no_deeper_than_other_json(depth: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_nested("[" * depth + "]" * depth, "metadata.inputs")
    assert caught.value.param == "metadata.inputs"


# Each of them is one value or two more than there may be, or holds as many within a text.
MANY = [
    pytest.param(b"[],", False, id="lists"),
    pytest.param(b"{},", False, id="objects"),
    pytest.param(b'{"a":{}},', False, id="objects in objects"),
    pytest.param(b'"",', False, id="empty strings"),
    pytest.param(b'"\\"",', False, id="quotes"),
    pytest.param(b'"\\\\",', False, id="backslashes"),
    pytest.param(b"1,", False, id="numbers"),
    pytest.param(b'"a, b, [c], {d: \\"e\\", \\\\",', True, id="structure in texts"),
    pytest.param(b'"' + b",[{" * 500 + b'",', True, id="much of it"),
    pytest.param(b'"\\\\\\",",', True, id="backslashes before a quote"),
]


@pytest.mark.parametrize(("item", "is_text"), MANY)
def test_values_are_counted_before_they_are_made(item: bytes, is_text: bool) -> None:
    times = MAX_VALUES // 300 if is_text and len(item) > 1000 else MAX_VALUES // 2
    times = times if is_text else MAX_VALUES + 1
    data = b'{"x": [' + item * times + b"0]}"
    if is_text:
        assert len(decoded(data)["x"]) == times + 1
        return
    with pytest.raises(InvalidRequest) as caught:
        parse_object(data, 64 * MEGABYTE)
    assert f"{MAX_VALUES:,} values" in caught.value.message
    with pytest.raises(InvalidRequest) as caught:
        parse_nested(data.decode(), "metadata.inputs")
    assert caught.value.param == "metadata.inputs"


def test_keys_are_values_too() -> None:
    keys = b",".join(b'"%d":1' % number for number in range(MAX_VALUES + 1))
    with pytest.raises(InvalidRequest):
        parse_object(b"{" + keys + b"}", 8 * MEGABYTE)


BASE64 = b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ+/" * 50_000  # more than two megabytes
PREFIX = b"data:image/png;base64,"
FILES = [
    pytest.param(PREFIX + BASE64, id="an image"),
    pytest.param(BASE64, id="base64 alone"),
    pytest.param(PREFIX + BASE64 + b"==", id="with its padding"),
    pytest.param(BASE64.replace(b"+", b"-").replace(b"/", b"_"), id="URL-safe"),
    pytest.param((PREFIX + BASE64).replace(b"/", b"\\/"), id="with its slashes escaped"),
    pytest.param(b"\\r\\n".join([BASE64[:76]] * 30_000), id="in lines"),
    pytest.param(BASE64.replace(b"+", b"%2B"), id="percent-encoded"),
    pytest.param(b"data:application/pdf;name=a b.pdf;base64," + BASE64, id="with a name"),
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("before", [b"", b"x" * 16_000, b"\xf0\x9f\x98\x80" * 9_000], ids=len)
def test_the_content_of_files_is_no_text(file: bytes, before: bytes) -> None:
    data = b'{"before": "%s", "messages": ["%s", {"url":"%s"}]}' % (before, file, file)
    body = parse_object(data, MEGABYTE)
    plain = file.replace(b"\\/", b"/").replace(b"\\r\\n", b"\r\n").decode()
    assert body.with_files("messages") == [plain, {"url": plain}]


@pytest.mark.parametrize("start", range(0, 16 * 1024 + 40, 509))
def test_a_file_may_begin_anywhere(start: int) -> None:
    data = b'{"x":"%s","messages":"%s%s"}' % (b" " * start, PREFIX, BASE64[:2_000_000])
    parse_object(data, 64 * 1024)


LARGE = [
    pytest.param(b'"' + b"words and words " * 80_000 + b'"', id="words"),
    pytest.param(b'"' + b"[" * 1_200_000 + b'"', id="brackets in a text"),
    pytest.param(b"[" * 600_000 + b"]" * 600_000, id="nesting"),
    pytest.param(b" " * 1_200_000 + b"1", id="blanks"),
    pytest.param(b"1" * 1_200_000, id="digits"),
    pytest.param(b'"\\ud83d\\ude00' + BASE64 + b'"', id="a wide character before"),
    pytest.param(b'"' + BASE64 + b'\\ud83d\\ude00"', id="a wide character after"),
    pytest.param(b'"' + BASE64 + "é".encode() + b'"', id="a wider character after"),
    pytest.param(b'"\\ud83d\\ude00' + b'\\"' + BASE64 + b'"', id="behind a quote"),
    pytest.param(b'"' + BASE64 + b'\\" \\ud83d\\ude00"', id="before a quote"),
    pytest.param(b'"' + b"\\u0041" * 300_000 + b'"', id="escapes"),
    pytest.param(b'"' + b"\\\\n" * 600_000 + b'"', id="backslashes"),
    pytest.param(b'"' + b"\xff" * 1_200_000 + b'"', id="bytes that are no text"),
    pytest.param(b'"' + b'\\"' * 600_000 + b'"', id="quotes"),
    pytest.param(BASE64, id="no string"),
    pytest.param(b'"' + BASE64, id="no end"),
    pytest.param(b'"x:' + BASE64 + b'"', id="another scheme"),
]


@pytest.mark.parametrize("value", LARGE)
@pytest.mark.parametrize("name", ["messages", "x"])
def test_all_else_is_text_which_is_limited(value: bytes, name: str) -> None:
    with pytest.raises(RequestTooLarge) as caught:
        parse_object(b'{"%s": %s}' % (name.encode(), value), MEGABYTE)
    assert "1 MB (MAX_TEXT_MB)" in caught.value.message


def test_only_messages_hold_files() -> None:
    body = parse_object(b'{"inputs": {"a": "%s"}}' % BASE64, MEGABYTE)
    with pytest.raises(RequestTooLarge) as caught:
        body["inputs"]
    assert caught.value.param == "inputs"


def test_a_message_s_text_is_no_file() -> None:
    message = b'{"role": "user", "content": "%s"}' % BASE64
    body = parse_object(b'{"model": "tiny", "messages": [%s]}' % message, MEGABYTE)
    with pytest.raises(RequestTooLarge) as caught:
        parse_chat_request(body)
    assert caught.value.param == "messages"
