"""httpx's transport over our own connection pool, and httpx's client over that transport."""

import math
import ssl
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import httpx

from opendify.upstream.cancellation import NEVER, Cancellation
from opendify.upstream.transport.connector import Connector, origin_of
from opendify.upstream.transport.pending_response import PendingResponse
from opendify.upstream.transport.pool import ConnectionPool
from opendify.upstream.transport.request_writer import request_parts


class PooledTransport(httpx.BaseTransport):
    """Sends requests over one pool of connections, HTTP/1.1 only.

    ``proxies`` maps origins (``scheme://host[:port]``) to their proxies: ``http://``, ``https://``
    or ``socks5://``. ``verify`` is a TLS context, or a value from which httpx creates one.

    A request may have two extensions besides httpx's ``timeout``: ``cancellation``, a Cancellation,
    and ``deadline``, the time of ``time.monotonic`` by which its response must be complete. Cookies
    in responses are dropped: the client serves all callers, and a cookie that a gateway sets for
    one of them is not for the others.
    """

    def __init__(
        self,
        limits: httpx.Limits,
        proxies: Mapping[str, str | httpx.Proxy] | None = None,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        by_origin = {
            origin_of(httpx.URL(origin)): httpx.Proxy(proxy) if isinstance(proxy, str) else proxy
            for origin, proxy in (proxies or {}).items()
        }
        self._connector = Connector(httpx.create_ssl_context(verify), by_origin)
        self.pool = ConnectionPool(limits, self._connector.open)

    def begin(self, request: httpx.Request, cancellation: Cancellation = NEVER) -> PendingResponse:
        """Sends a request; returns as soon as it is written, before the response.

        Raises ClientDisconnected and ServerStopping when cancelled, and the errors of httpx:
        PoolTimeout, ConnectError, ConnectTimeout, ProxyError, WriteTimeout and LocalProtocolError.
        """
        origin = origin_of(request.url)
        forwarding_headers = self._connector.forwarding_headers(origin)
        return PendingResponse(
            self.pool,
            origin,
            request.method,
            partial(request_parts, request, forwarding_headers),
            request.extensions.get("timeout", {}),
            cancellation,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request and waits for the head of its response. Raises as ``begin`` does, and
        httpx.ReadTimeout, httpx.ReadError and httpx.RemoteProtocolError."""
        cancellation = request.extensions.get("cancellation", NEVER)
        body = _Body(
            self.begin(request, cancellation),
            cancellation,
            request.extensions.get("timeout", {}).get("read"),
            request.extensions.get("deadline", math.inf),
        )
        try:
            return body.response()
        except BaseException:
            body.close()
            raise

    def close(self) -> None:
        """Closes idle connections now, and those in use when their requests are over."""
        self.pool.close()


class _Body(httpx.SyncByteStream):
    """The body of a response. Each read is limited by httpx's read timeout and the deadline."""

    def __init__(
        self,
        pending: PendingResponse,
        cancellation: Cancellation,
        timeout: float | None,
        deadline: float,
    ) -> None:
        self._pending = pending
        self._cancellation = cancellation
        self._seconds = math.inf if timeout is None else timeout
        self._deadline = deadline
        self._prefix = b""

    def response(self) -> httpx.Response:
        """Waits for the head; returns the response."""
        while not self._pending.status:
            self._prefix = self._read()
        return httpx.Response(
            self._pending.status,
            headers=[one for one in self._pending.raw_headers if one[0] != b"set-cookie"],
            stream=self,
            extensions={"http_version": b"HTTP/1.1"},
        )

    def __iter__(self) -> Iterator[bytes]:
        if self._prefix:
            yield self._prefix
        while not self._pending.is_complete:
            if data := self._read():
                yield data

    def _read(self) -> bytes:
        until = min(time.monotonic() + self._seconds, self._deadline)
        while (data := self._pending.read(until, self._cancellation)) is None:
            if time.monotonic() >= until:
                raise httpx.ReadTimeout("the response did not arrive in time")
        return data

    def close(self) -> None:
        self._pending.close()


class PooledClient(httpx.Client):
    """httpx's client over a PooledTransport. ``options`` are httpx's."""

    def __init__(self, transport: PooledTransport, **options: Any) -> None:
        super().__init__(transport=transport, **options)
        self._pooled = transport

    def begin(self, request: httpx.Request, cancellation: Cancellation = NEVER) -> PendingResponse:
        """See PooledTransport: for responses that are awaited together with other descriptors."""
        return self._pooled.begin(request, cancellation)
