"""Serializes an HTTP/1.1 request (RFC 9112). No I/O except reading the request's own stream."""

import re
from collections.abc import Iterable, Iterator

import httpx

# Head and body up to this size are sent in one write: two would wake the peer twice.
_MAX_JOINED = 64 * 1024

# RFC 9110, 5.5 and 5.6.2: nothing that could end a line or start another header.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?"
_HEAD = re.compile(rb"%b [!-~]+ HTTP/1\.1\r\n(?:%b: %b\r\n)+\r\n" % (_TOKEN, _TOKEN, _VALUE))


def request_head(method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of a request. Raises httpx.LocalProtocolError where it is invalid, for example a
    line break in a header; the message quotes nothing."""
    lines = [b"%b %b HTTP/1.1\r\n" % (method, target)]
    lines += [b"%b: %b\r\n" % header for header in headers]
    head = b"%b\r\n" % b"".join(lines)
    # More lines than were written mean that a header contained a line break.
    if head.count(b"\n") != len(lines) + 1 or _HEAD.fullmatch(head) is None:
        raise httpx.LocalProtocolError("The request has a header that HTTP does not allow.")
    return head


def request_parts(
    request: httpx.Request, forwarding_headers: list[tuple[bytes, bytes]] | None
) -> Iterator[bytes]:
    """Yields the bytes of a request, piece by piece as its body does. ``forwarding_headers`` are
    for a proxy, whose requests have absolute URLs. Raises httpx.LocalProtocolError."""
    target, headers = request.url.raw_path, request.headers.raw
    if forwarding_headers is not None:
        target = b"http://%b%b" % (request.url.netloc, target)
        headers = [*headers, *forwarding_headers]
    pending = request_head(request.method.encode("ascii"), target, headers)
    assert isinstance(request.stream, httpx.SyncByteStream)
    for piece in _framed_body(request):
        if len(pending) + len(piece) <= _MAX_JOINED:
            pending += piece
        else:
            yield pending
            pending = piece
    yield pending


def _framed_body(request: httpx.Request) -> Iterator[bytes]:
    assert isinstance(request.stream, httpx.SyncByteStream)
    if "transfer-encoding" in request.headers:
        for piece in request.stream:
            if piece:
                yield b"%x\r\n%b\r\n" % (len(piece), piece)
        yield b"0\r\n\r\n"
        return
    remaining = int(request.headers.get("content-length", 0))
    for piece in request.stream:
        remaining -= len(piece)
        if remaining < 0:
            break
        yield piece
    if remaining:
        raise httpx.LocalProtocolError("The request's body does not have its announced length.")
