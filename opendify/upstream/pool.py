"""Several small pools that act as one large one.

Whenever a request begins or ends, httpcore looks through all connections of its pool, under the
pool's lock: with 400 streams open a further request cost 2.7 ms of CPU instead of 0.5.
"""

import ssl
import threading
from collections.abc import Callable, Iterator

import httpx

from opendify.upstream.wire import Transport

_POOLS = 16


class Client(httpx.Client):
    """httpx's client, but for cookies: it serves everybody, and what a gateway sets for one caller
    is not for the next. So none is kept, nor looked for."""

    @property
    def cookies(self) -> httpx.Cookies:
        return _NO_COOKIES

    @cookies.setter
    def cookies(self, cookies: object) -> None:
        raise TypeError("this client keeps no cookies")


class _NoCookies(httpx.Cookies):
    def extract_cookies(self, response: httpx.Response) -> None:
        """Leaves them in the answer."""


_NO_COOKIES = _NoCookies()


class Pools(httpx.BaseTransport):
    """A transport whose requests go to the pool that has the fewest under way, the first of them
    where there are several: so one request after the other finds the same kept connection.

    ``limits`` are for all pools together. A pool never has more than its share to do as long as
    all have not, so none is full before the others.
    """

    def __init__(
        self,
        *,
        limits: httpx.Limits,
        proxy: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        verify = ssl_context or httpx.create_ssl_context()  # costly, and the same for all
        share = httpx.Limits(
            max_connections=_share(limits.max_connections),
            max_keepalive_connections=_share(limits.max_keepalive_connections),
            keepalive_expiry=limits.keepalive_expiry,
        )
        self._pools = [Transport(limits=share, proxy=proxy, verify=verify) for _ in range(_POOLS)]
        self._under_way = [0] * _POOLS
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        index = self._take()
        try:
            response = self._pools[index].handle_request(request)
        except BaseException:
            self._free(index)
            raise
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Counted(response.stream, lambda: self._free(index))
        return response

    def close(self) -> None:
        for pool in self._pools:
            pool.close()

    def _take(self) -> int:
        with self._lock:
            index = self._under_way.index(min(self._under_way))
            self._under_way[index] += 1
        return index

    def _free(self, index: int) -> None:
        with self._lock:
            self._under_way[index] -= 1


class _Counted(httpx.SyncByteStream):
    """The body of an answer, of which ``on_end`` learns once that it is over."""

    def __init__(self, stream: httpx.SyncByteStream, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end: Callable[[], None] | None = on_end

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            on_end, self._on_end = self._on_end, None
            if on_end is not None:
                on_end()


def _share(limit: int | None) -> int | None:
    return None if limit is None else -(-limit // _POOLS)
