"""Opens connections: directly or through a proxy, with TLS where the origin wants it."""

import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import httpcore
import httpx

from opendify.upstream.transport.connection import Connection, NestedTlsConnection, Origin
from opendify.upstream.transport.proxy import open_socks5, open_tunnel, proxy_headers

_PORTS = {"http": 80, "https": 443}
_ALPN = ["http/1.1"]


def origin_of(url: httpx.URL) -> Origin:
    """What has to be connected to for an address. Raises httpx.UnsupportedProtocol."""
    scheme, host = url.scheme, url.raw_host.decode("ascii")
    if scheme not in _PORTS or not host:
        raise httpx.UnsupportedProtocol("The address must begin with http:// or https://.")
    return Origin(scheme, host, url.port or _PORTS[scheme])


class Connector:
    """``proxies`` tells for each origin the proxy through which it is reached; all others are
    reached directly. ``ssl_context`` verifies the origins, and proxies without one of their own."""

    def __init__(self, ssl_context: ssl.SSLContext, proxies: Mapping[Origin, httpx.Proxy]) -> None:
        self._ssl_context = ssl_context
        self._proxies = dict(proxies)
        self._backend = httpcore.SyncBackend()
        for context in {ssl_context, *_contexts(self._proxies.values())}:
            context.set_alpn_protocols(_ALPN)

    def forwarding_headers(self, origin: Origin) -> list[tuple[bytes, bytes]] | None:
        """None where requests go to the origin itself, possibly through a tunnel; else they go to
        a proxy, with whole addresses and these headers."""
        proxy = self._proxies.get(origin)
        if proxy is None or origin.scheme != "http" or proxy.url.scheme not in _PORTS:
            return None
        return proxy_headers(proxy)

    def open(self, origin: Origin, timeout: float | None) -> Connection:
        """A new connection on which requests to the origin can be sent.

        ``timeout`` is in seconds, for each step: connecting, a handshake of TLS, the proxy's
        answer. Raises httpx.ConnectError, httpx.ConnectTimeout and httpx.ProxyError.
        """
        with _connect_errors():
            proxy = self._proxies.get(origin)
            if proxy is None:
                stream = self._backend.connect_tcp(origin.host, origin.port, timeout)
            else:
                stream = self._connect_through(proxy, origin, timeout)
            is_nested = stream.get_extra_info("ssl_object") is not None
            if origin.scheme == "http":
                return Connection(origin, stream)
            stream = stream.start_tls(self._ssl_context, origin.host, timeout)
            return (NestedTlsConnection if is_nested else Connection)(origin, stream)

    def _connect_through(
        self, proxy: httpx.Proxy, origin: Origin, timeout: float | None
    ) -> httpcore.NetworkStream:
        scheme, host = proxy.url.scheme, proxy.url.raw_host.decode("ascii")
        port = proxy.url.port or _PORTS.get(scheme, 1080)
        stream = self._backend.connect_tcp(host, port, timeout)
        if scheme == "https":
            stream = stream.start_tls(proxy.ssl_context or self._ssl_context, host, timeout)
        try:
            if scheme not in _PORTS:
                open_socks5(stream, proxy, origin, timeout)
            elif origin.scheme == "https":
                open_tunnel(stream, proxy, origin, timeout)
        except BaseException:
            stream.close()
            raise
        return stream


def _contexts(proxies: Iterable[httpx.Proxy]) -> Iterator[ssl.SSLContext]:
    for proxy in proxies:
        if proxy.ssl_context is not None:
            yield proxy.ssl_context


@contextmanager
def _connect_errors() -> Iterator[None]:
    """Whatever fails before a request is sent is a failure to connect. The cause stays in the
    chain: httpx's error, httpcore's, and that of the socket or of TLS."""
    try:
        yield
    except httpcore.TimeoutException as exc:
        raise httpx.ConnectTimeout(str(exc)) from exc
    except (httpcore.NetworkError, UnicodeError) as exc:  # UnicodeError: a name that no DNS has
        raise httpx.ConnectError(str(exc)) from exc
