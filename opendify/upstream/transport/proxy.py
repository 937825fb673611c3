"""Connections through proxies: CONNECT (RFC 9110, 9.3.6) and SOCKS 5 (RFC 1928)."""

import base64
import time
from http import HTTPStatus

import httpcore
import httpx
import socksio

from opendify.upstream.transport.connection import READ_BYTES, Origin
from opendify.upstream.transport.request_writer import request_head
from opendify.upstream.transport.response_reader import ProtocolError, ResponseReader

_SOCKS_VERSION = b"\x05"
_IPV4, _NAME, _IPV6 = 1, 3, 4


def proxy_headers(proxy: httpx.Proxy) -> list[tuple[bytes, bytes]]:
    """The headers for an HTTP proxy: its configured headers and its credentials."""
    headers = list(proxy.headers.raw)
    if proxy.raw_auth is not None:
        credentials = base64.b64encode(b":".join(proxy.raw_auth))
        headers.append((b"Proxy-Authorization", b"Basic " + credentials))
    return headers


def open_tunnel(
    stream: httpcore.NetworkStream, proxy: httpx.Proxy, origin: Origin, timeout: float | None
) -> None:
    """Asks an HTTP proxy for a tunnel to the origin. Raises httpx.ProxyError and what the stream
    raises."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    target = f"{host}:{origin.port}".encode("ascii")
    headers = [(b"Host", target), (b"Accept", b"*/*"), *proxy_headers(proxy)]
    stream.write(request_head(b"CONNECT", target, headers), timeout)
    reader, deadline = ResponseReader("CONNECT"), _deadline(timeout)
    try:
        while not reader.status:
            data = stream.read(READ_BYTES, _remaining(deadline))
            if data:
                reader.feed(data)
            else:
                reader.end()
    except ProtocolError as exc:
        raise httpx.ProxyError(f"The proxy's answer to CONNECT is broken: {exc}") from exc
    if not 200 <= reader.status < 300:
        raise httpx.ProxyError(f"{reader.status} {_phrase(reader.status)}".strip())


def open_socks5(
    stream: httpcore.NetworkStream, proxy: httpx.Proxy, origin: Origin, timeout: float | None
) -> None:
    """Asks a SOCKS 5 proxy for a connection to the origin, whose name the proxy resolves. Raises
    httpx.ProxyError and what the stream raises."""
    socks, deadline = _Socks5(stream, timeout), _deadline(timeout)
    try:
        socks.authenticate(proxy.raw_auth, deadline)
        socks.connect(origin, deadline)
    except socksio.ProtocolError as exc:
        raise httpx.ProxyError("The proxy does not speak SOCKS 5.") from exc


class _Socks5:
    """The client side of the handshake. Each reply is read to its exact length, since the bytes
    after it may be the origin's."""

    def __init__(self, stream: httpcore.NetworkStream, timeout: float | None) -> None:
        self._stream = stream
        self._timeout = timeout

    def authenticate(self, auth: tuple[bytes, bytes] | None, deadline: float | None) -> None:
        methods = socksio.SOCKS5AuthMethod
        method = methods.NO_AUTH_REQUIRED if auth is None else methods.USERNAME_PASSWORD
        self._write(socksio.SOCKS5AuthMethodsRequest([method]).dumps())
        if socksio.SOCKS5AuthReply.loads(self._read(2, deadline)).method != method:
            wanted = "no authentication" if auth is None else "a user name and password"
            raise httpx.ProxyError(f"The SOCKS proxy does not accept {wanted}.")
        if auth is not None:
            self._write(socksio.SOCKS5UsernamePasswordRequest(*auth).dumps())
            if self._read(2, deadline)[1:] != b"\0":
                raise httpx.ProxyError("The SOCKS proxy rejected the user name or password.")

    def connect(self, origin: Origin, deadline: float | None) -> None:
        request = socksio.SOCKS5CommandRequest.from_address(
            socksio.SOCKS5Command.CONNECT, (origin.host, origin.port)
        )
        self._write(request.dumps())
        reply = self._read(4, deadline)
        if reply[:1] != _SOCKS_VERSION:
            raise httpx.ProxyError("The proxy does not speak SOCKS 5.")
        if reply[1]:
            raise httpx.ProxyError(f"The SOCKS proxy could not connect: {_reason(reply[1:2])}.")
        length = {_IPV4: 4, _IPV6: 16}.get(reply[3])
        if length is None:
            length = self._read(1, deadline)[0]
        self._read(length + 2, deadline)

    def _write(self, data: bytes) -> None:
        self._stream.write(data, self._timeout)

    def _read(self, length: int, deadline: float | None) -> bytes:
        data = b""
        while len(data) < length:
            piece = self._stream.read(length - len(data), _remaining(deadline))
            if not piece:
                raise httpx.ProxyError("The SOCKS proxy closed the connection.")
            data += piece
        return data


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _remaining(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise httpcore.ConnectTimeout("the proxy did not answer in time")
    return remaining


def _phrase(status: int) -> str:
    """The standard reason phrase; the proxy's own may contain anything."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _reason(code: bytes) -> str:
    try:
        return socksio.SOCKS5ReplyCode(code).name.lower().replace("_", " ")
    except ValueError:
        return f"reply {code[0]}"
