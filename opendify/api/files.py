"""The route of file links. It requires no key, because browsers send none for images: the link is
signed instead."""

import logging
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote

from flask import Flask, Response, request
from werkzeug.http import dump_options_header
from werkzeug.wsgi import FileWrapper

from opendify.api.middleware.request_log import current_record
from opendify.api.pacing import SlowReaderError, paced, writable_waiter
from opendify.api.resources import current_resources
from opendify.limits.capacity import ServerCapacity
from opendify.observability.record import SLOW_READER, Record
from opendify.upstream.file_proxy import FileProxy, ServedFile

log = logging.getLogger(__name__)

ENDPOINT = "file_content"

# A file comes from an app and may be from an untrusted source: nothing in it may run here.
_SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Referrer-Policy": "no-referrer",
}


def add_file_routes(app: Flask, file_proxy: FileProxy, capacity: ServerCapacity) -> None:
    """Serves the links that ``file_proxy`` makes, under the endpoint ``ENDPOINT``."""

    @app.get("/v1/files/<token>/content", endpoint=ENDPOINT)
    def file_content(token: str) -> Response:
        resources = current_resources()
        resources.add_permit(capacity.acquire_file())
        served = file_proxy.open(token, request.args.get("sig", ""))
        resources.add(served.file.close)
        return _response(served)


def _response(served: ServedFile) -> Response:
    response = Response(FileWrapper(served.file), mimetype=served.media_type, headers=_SAFE_HEADERS)
    response.content_length = served.size
    response.headers["Content-Disposition"] = _disposition(served)
    response.headers["Cache-Control"] = f"private, max-age={served.max_age}"
    response.set_etag(served.tag)
    if _has_single_range():
        response.make_conditional(request, accept_ranges=True, complete_length=served.size)
    else:
        response.make_conditional(request)
    response.headers["Accept-Ranges"] = "bytes"
    wait_writable = writable_waiter(
        request.environ.get("gunicorn.socket"), response.content_length or 0
    )
    chunks: Iterable[bytes] = response.response  # type: ignore[assignment]  # bytes only
    response.response = _paced_body(chunks, wait_writable, current_record())
    return response


def _has_single_range() -> bool:
    """Whether the Range header can be served. Others are ignored, as RFC 9110, section 14.2,
    requires for unknown units and allows for malformed or multiple ranges."""
    header = request.range
    return header is not None and header.units == "bytes" and len(header.ranges) == 1


def _paced_body(
    chunks: Iterable[bytes], wait_writable: Callable[[float], bool], record: Record
) -> Iterator[bytes]:
    try:
        yield from paced(chunks, wait_writable)
    except SlowReaderError:
        record.ended = SLOW_READER
        log.warning("a file was not sent completely: its caller reads too slowly")
        raise


def _disposition(served: ServedFile) -> str:
    """Non-ASCII names are encoded as in RFC 6266: Gunicorn rejects headers that are not Latin-1."""
    header = "inline" if served.is_inline else "attachment"
    if served.name.isascii():
        return dump_options_header(header, {"filename": served.name})
    return f"{header}; filename*=UTF-8''{quote(served.name)}"
