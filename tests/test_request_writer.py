"""Requests as bytes."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from opendify.upstream.transport.request_writer import request_head, request_parts


def sent(forwarding_headers: list[tuple[bytes, bytes]] | None = None, **options: Any) -> bytes:
    with httpx.Client(headers={"User-Agent": "x"}) as client:
        request = client.build_request("POST", "http://u:p@dify:5001/v1/a b?c=d", **options)
    return b"".join(request_parts(request, forwarding_headers))


def test_a_request_is_sent_as_http_wants_it() -> None:
    head, _, body = sent(json={"a": 1}).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[:2] == [b"POST /v1/a%20b?c=d HTTP/1.1", b"Host: dify:5001"]
    assert b"Content-Length: 7" in lines
    assert body == b'{"a":1}'


def test_a_proxy_is_asked_with_the_whole_address() -> None:
    head = sent([(b"Proxy-Authorization", b"Basic eA==")])
    assert head.startswith(b"POST http://dify:5001/v1/a%20b?c=d HTTP/1.1\r\nHost: dify:5001\r\n")
    assert b"\r\nProxy-Authorization: Basic eA==\r\n" in head


def test_a_small_body_leaves_with_its_head_and_a_large_one_is_not_copied() -> None:
    with httpx.Client() as client:
        small = client.build_request("POST", "http://dify/", content=b"x" * 1000)
        large = client.build_request("POST", "http://dify/", content=b"x" * 1_000_000)
    assert len(list(request_parts(small, None))) == 1
    assert [len(part) for part in request_parts(large, None)][1:] == [1_000_000]


def test_an_upload_is_sent_whole_and_again() -> None:
    with httpx.Client() as client:
        files = {"file": ("a.bin", b"\0" * 200_000, "image/png")}
        request = client.build_request("POST", "http://dify/", data={"user": "u"}, files=files)
    first, again = (b"".join(request_parts(request, None)) for _ in range(2))
    assert first == again
    _head, _, body = first.partition(b"\r\n\r\n")
    assert len(body) == int(request.headers["content-length"])
    assert b"\0" * 200_000 in body


def test_a_body_of_unknown_length_is_sent_in_chunks() -> None:
    def pieces() -> Iterator[bytes]:
        yield from (b"abc", b"", b"d" * 17)

    raw = sent(content=pieces())
    assert raw.endswith(b"\r\n\r\n3\r\nabc\r\n11\r\n" + b"d" * 17 + b"\r\n0\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in raw


@pytest.mark.parametrize("length", ["2", "4"])
def test_a_body_of_another_length_than_its_head_says_is_not_sent(length: str) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        sent(content=b"abc", headers={"Content-Length": length})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(b"A", b"b\r\nC: d", id="a line break in a value"),
        pytest.param(b"A", b"b\n", id="half a line break"),
        pytest.param(b"A", b"b\rc", id="the other half"),
        pytest.param(b"A", b"b\0", id="a zero"),
        pytest.param(b"A", b" b", id="a blank before a value"),
        pytest.param(b"A", b"b ", id="a blank after a value"),
        pytest.param(b"A\r\nB", b"c", id="a line break in a name"),
        pytest.param(b"A:", b"b", id="a colon in a name"),
        pytest.param(b"A ", b"b", id="a blank in a name"),
        pytest.param(b"", b"b", id="no name"),
        pytest.param(b"A", b"b\r\n\r\nGET / HTTP/1.1", id="another request"),
        pytest.param(b"A: x\r\nB", b"c", id="a whole header in a name"),
    ],
)
def test_a_request_has_no_header_that_http_does_not_allow(name: bytes, value: bytes) -> None:
    with pytest.raises(httpx.LocalProtocolError) as caught:
        request_head(b"POST", b"/v1", [(b"Host", b"dify"), (name, value)])
    assert "b" not in str(caught.value).split()


@pytest.mark.parametrize(
    "target",
    [b"/a b", b"/a\r\nB: c", b"/\xc3\xa4", b"", b"/ HTTP/1.1\r\nA: b\r\nC: d", b"/ HTTP/1.1\r\nA:"],
)
def test_a_request_goes_to_no_address_that_http_does_not_allow(target: bytes) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        request_head(b"POST", target, [(b"Host", b"dify")])


@pytest.mark.parametrize("value", [b"", b"a", b"a b\tc", b"\xe4", b"a: b"])
def test_a_header_may_hold_what_http_allows(value: bytes) -> None:
    head = request_head(b"GET", b"/", [(b"X-Any", value)])
    assert head == b"GET / HTTP/1.1\r\nX-Any: " + value + b"\r\n\r\n"
