"""The resources that a request holds, owned by the response body whatever its type.

Each request has a Resources object in its WSGI environment. It is closed when the server closes the
body (PEP 3333 requires that however the response ends), or when the application raises instead of
returning a body. ``Response.call_on_close`` is not used, because Werkzeug does not call it for
every kind of response.
"""

import select
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from threading import Lock
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask, request

from opendify.api.streaming_response import StreamingBody

_KEY = "opendify.resources"

# The end of a response: a socket that poll() reports as writable takes this many bytes without
# blocking.
MAX_LAST_BYTES = 8 * 1024


class Resources:
    """The resources of one request. ``sock`` is the client's connection, if the server exposes
    it."""

    def __init__(self, sock: Any = None) -> None:
        self._sock = sock
        self._callbacks = ExitStack()
        self._permits = ExitStack()
        self._lock = Lock()
        self._callbacks.callback(self._release_permits)

    def add(self, close: Callable[[], object]) -> None:
        """Calls ``close`` when the response is closed, in reverse order of addition."""
        self._callbacks.callback(close)

    def add_permit(self, release: Callable[[], object]) -> None:
        """Calls ``release`` when the response is closed, after everything else, or just before its
        last bytes are sent: a client that has them can rely on the slot being free."""
        self._permits.callback(release)

    def release_permits(self) -> None:
        """Call before the last bytes of the response (at most MAX_LAST_BYTES) are passed to the
        server. If the client cannot take them yet, the permits are kept until the response is
        closed, since sending occupies a thread."""
        if self._sock is None or _is_writable(self._sock):
            self._release_permits()

    def close(self) -> None:
        """Releases everything, even if some of it raises. Idempotent."""
        with self._lock:
            callbacks = self._callbacks.pop_all()
        callbacks.close()

    def _release_permits(self) -> None:
        with self._lock:
            permits = self._permits.pop_all()
        permits.close()


def track_resources(app: Flask) -> None:
    """Gives every request of the application its Resources."""
    app.wsgi_app = _ResourceMiddleware(app.wsgi_app)  # type: ignore[method-assign]


def current_resources() -> Resources:
    """The Resources of the current request."""
    resources: Resources = request.environ[_KEY]
    return resources


class _ResourceMiddleware:
    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        resources = environ[_KEY] = Resources(environ.get("gunicorn.socket"))
        try:
            body = self._app(environ, start_response)
        except BaseException:
            resources.close()
            raise
        if hasattr(body, "close"):
            resources.add(body.close)
        if isinstance(body, StreamingBody):
            return StreamingBody(body.steps, resources.close)
        return _Body(body, resources)


class _Body:
    """A body that releases the permits before its last bytes. Always one chunk behind."""

    def __init__(self, body: Iterable[bytes], resources: Resources) -> None:
        self._body = body
        self._resources = resources
        self.close = resources.close

    def __iter__(self) -> Iterator[bytes]:
        last = b""
        for chunk in self._body:
            if last:
                yield last
            last = chunk
        if len(last) > MAX_LAST_BYTES:
            yield last[:-MAX_LAST_BYTES]
            last = last[-MAX_LAST_BYTES:]
        self._resources.release_permits()
        if last:
            yield last


def _is_writable(sock: Any) -> bool:
    poll = select.poll()
    try:
        poll.register(sock, select.POLLOUT)
    except (OSError, ValueError):  # closed
        return True
    return bool(poll.poll(0))
