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

    ``proxies`` tells for the origins that need one (``scheme://host[:port]``) their proxy:
    ``http://``, ``https://`` or ``socks5://``. ``verify`` is the TLS context, or what httpx makes
    one of.

    A request may have two extensions besides httpx's ``timeout``: ``cancellation``, a Watch that
    ends it before its time, and ``deadline``, the time of ``time.monotonic`` at which its response
    must be complete. Cookies that a response sets are dropped: the client serves everybody, and
    what a gateway sets for one caller is not for the next.
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

        Raises CallerGone and ServerStopping when the cancellation says so first, and the errors of
        httpx: PoolTimeout, ConnectError, ConnectTimeout, ProxyError, WriteTimeout and
        LocalProtocolError.
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
        """Closes the idle connections; those in use are closed when their requests are over."""
        self.pool.close()


class _Body(httpx.SyncByteStream):
    """The body of a response, read within httpx's timeout for each read, and the deadline."""

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
        self._first = b""

    def response(self) -> httpx.Response:
        """The response, once its head is there."""
        while not self._pending.status:
            self._first = self._read()
        return httpx.Response(
            self._pending.status,
            headers=[one for one in self._pending.raw_headers if one[0] != b"set-cookie"],
            stream=self,
            extensions={"http_version": b"HTTP/1.1"},
        )

    def __iter__(self) -> Iterator[bytes]:
        if self._first:
            yield self._first
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
        """See PooledTransport: for responses whose head must be awaited together with something
        else."""
        return self._pooled.begin(request, cancellation)
