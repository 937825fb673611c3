"""Request ids, records and the log line of each request."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask, request

from opendify.api.streaming_response import StreamingBody
from opendify.observability.logs import log_fields, request_id
from opendify.observability.record import (
    CLIENT_DISCONNECTED,
    OK,
    UNKNOWN_MODEL,
    Record,
)
from opendify.observability.request_ids import parse_request_id
from opendify.streaming import (
    BLOCKING,
    ResumableBody,
    ResumableBodyWithTail,
    WaitFor,
)

log = logging.getLogger("opendify.requests")

_KEY = "opendify.record"

# Requested every few seconds by machines; not worth a line in the log.
_PROBES = ("/healthz", "/readyz", "/metrics")


class Observer(Protocol):
    """Receives records of requests."""

    def stream_began(self, record: Record) -> None: ...

    def request_ended(self, record: Record) -> None: ...


def record_requests(
    app: Flask, observer: Observer, models: Collection[str], new_id: Callable[[], str]
) -> None:
    """Records every request of the application, including streams until they end."""
    app.url_value_preprocessor(_note_route)  # runs before any check can reject the request
    recording = _RequestRecorder(app.wsgi_app, observer, models, new_id)
    app.wsgi_app = recording  # type: ignore[method-assign]


def current_record() -> Record:
    """The record of the current request; a dummy if the request is not recorded."""
    record: Record = request.environ.get(_KEY) or Record("", request.method, 0.0)
    return record


def until_first_byte(
    steps: ResumableBodyWithTail[bytes], record: Record, keep_alive: bytes
) -> ResumableBody[bytes]:
    """Yields the steps up to the first byte of the answer (``keep_alive`` comments do not count).
    Needs a thread. Take the rest directly from ``steps``."""
    for step in steps:
        if isinstance(step, WaitFor):
            yield BLOCKING
        elif step == keep_alive:
            yield step
        else:
            mark_first_byte(record)
            yield step
            return


def mark_first_byte(record: Record) -> None:
    """Records the time of the first byte, unless that was done before."""
    record.first_byte_at = record.first_byte_at or time.monotonic()


def _note_route(endpoint: str | None, values: Any) -> None:
    current_record().route = request.url_rule.rule if request.url_rule else ""


class _RequestRecorder:
    def __init__(
        self,
        app: WSGIApplication,
        observer: Observer,
        models: Collection[str],
        new_id: Callable[[], str],
    ) -> None:
        self._app = app
        self._observer = observer
        self._models = models
        self._new_id = new_id

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = environ.get("HTTP_X_REQUEST_ID", ""), environ.get("HTTP_TRACEPARENT", "")
        name = parse_request_id(*headers) or self._new_id()
        record = Record(name, environ["REQUEST_METHOD"], time.monotonic())
        record.ip, record.path = environ.get("REMOTE_ADDR", ""), environ.get("PATH_INFO", "")
        environ[_KEY] = record
        request_id.set(name)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            record.status = int(status[:3])
            return start_response(status, [*headers, ("X-Request-Id", name)], exc_info)

        try:
            body = self._app(environ, start)
        except BaseException:
            record.ended = "aborted"
            self._end(record)
            raise
        if record.is_streaming:
            _notify(self._observer.stream_began, record)
        if isinstance(body, StreamingBody):
            return _StreamBody(body, record, self._end)
        return _Body(body, record, self._end)

    def _end(self, record: Record) -> None:
        record.ended_at = time.monotonic()
        record.ended = record.ended or OK
        if record.model and record.model not in self._models:
            record.model = UNKNOWN_MODEL
        log_fields(log, _level(record), "request", record.fields())
        _notify(self._observer.request_ended, record)
        request_id.set("")


def _level(record: Record) -> int:
    if record.is_failure and record.route not in _PROBES:
        return logging.WARNING
    return logging.DEBUG if record.route in _PROBES else logging.INFO


def _notify(observer: Callable[[Record], None], record: Record) -> None:
    """Responses must not fail because they could not be counted."""
    try:
        observer(record)
    except Exception:
        log.exception("a request was not counted")


class _Body:
    """A response body. The server must close it; if it is closed before its end, the client has
    disconnected."""

    def __init__(
        self, body: Iterable[bytes], record: Record, end: Callable[[Record], None]
    ) -> None:
        self._body = body
        self._record = record
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._body:
            mark_first_byte(self._record)
            yield chunk
        self._record.is_complete = True

    def close(self) -> None:
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            if not self._record.is_complete:
                self._record.ended = self._record.ended or CLIENT_DISCONNECTED
            self._end(self._record)


class _StreamBody(_Body):
    """A body whose steps update the record themselves, so that chunks cost nothing here."""

    def __init__(self, body: StreamingBody, record: Record, end: Callable[[Record], None]) -> None:
        super().__init__(body, record, end)
        self.steps = body.steps

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)
