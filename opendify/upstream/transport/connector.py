"""Opens connections, directly or through a proxy, with TLS for https origins."""

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
    """The origin of a URL. Raises httpx.UnsupportedProtocol."""
    scheme, host = url.scheme, url.raw_host.decode("ascii")
    if scheme not in _PORTS or not host:
        raise httpx.UnsupportedProtocol("The address must begin with http:// or https://.")
    return Origin(scheme, host, url.port or _PORTS[scheme])


class Connector:
    """``proxies`` maps origins to their proxies; all other origins are connected directly.
    ``ssl_context`` is for the origins, and for proxies without a context of their own."""

    def __init__(self, ssl_context: ssl.SSLContext, proxies: Mapping[Origin, httpx.Proxy]) -> None:
        self._ssl_context = ssl_context
        self._proxies = dict(proxies)
        self._backend = httpcore.SyncBackend()
        for context in {ssl_context, *_contexts(self._proxies.values())}:
            context.set_alpn_protocols(_ALPN)

    def forwarding_headers(self, origin: Origin) -> list[tuple[bytes, bytes]] | None:
        """The additional headers of requests that a proxy forwards, which need absolute URLs as
        targets; None where requests go to the origin itself, possibly through a tunnel."""
        proxy = self._proxies.get(origin)
        if proxy is None or origin.scheme != "http" or proxy.url.scheme not in _PORTS:
            return None
        return proxy_headers(proxy)

    def open(self, origin: Origin, timeout: float | None) -> Connection:
        """A new connection on which requests to the origin can be sent.

        ``timeout`` is in seconds, for each step: connecting, the TLS handshake, the proxy's
        response. Raises httpx.ConnectError, httpx.ConnectTimeout and httpx.ProxyError.
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
    """Raises every failure before a request is sent as a connect error. The exception chain keeps
    httpcore's error and that of the socket or of TLS."""
    try:
        yield
    except httpcore.TimeoutException as exc:
        raise httpx.ConnectTimeout(str(exc)) from exc
    except (httpcore.NetworkError, UnicodeError) as exc:  # UnicodeError: an impossible name
        raise httpx.ConnectError(str(exc)) from exc
