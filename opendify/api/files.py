"""The route of file links. It asks for no key, since browsers send none with images: the link is
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
from opendify.upstream.file_proxy import FileProxy, Served

log = logging.getLogger(__name__)

ENDPOINT = "file_content"

# A file comes from an app, and may have come from anybody before: it is to run nothing here.
_SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Referrer-Policy": "no-referrer",
}


def add_file_routes(app: Flask, relay: FileProxy, capacity: ServerCapacity) -> None:
    """Serves the links that ``relay`` makes, under the endpoint ``ENDPOINT``."""

    @app.get("/v1/files/<token>/content", endpoint=ENDPOINT)
    def file_content(token: str) -> Response:
        resources = current_resources()
        resources.add_permit(capacity.take_file())
        served = relay.open(token, request.args.get("sig", ""))
        resources.add(served.file.close)
        return _response(served)


def _response(served: Served) -> Response:
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
    room = writable_waiter(request.environ.get("gunicorn.socket"), response.content_length or 0)
    pieces: Iterable[bytes] = response.response  # type: ignore[assignment]  # never text here
    response.response = _paced_body(pieces, room, current_record())
    return response


def _has_single_range() -> bool:
    """Whether the Range is one that can be answered. Any other is ignored, as RFC 9110, section
    14.2, has it of unknown units, and allows it of what is malformed or several ranges."""
    asked = request.range
    return asked is not None and asked.units == "bytes" and len(asked.ranges) == 1


def _paced_body(
    pieces: Iterable[bytes], room: Callable[[float], bool], record: Record
) -> Iterator[bytes]:
    try:
        yield from paced(pieces, room)
    except SlowReaderError:
        record.ended = SLOW_READER
        log.warning("a file was not sent completely: its caller reads too slowly")
        raise


def _disposition(served: Served) -> str:
    """Names beyond ASCII as RFC 6266 has it: Gunicorn refuses a header that is not Latin-1."""
    header = "inline" if served.is_shown else "attachment"
    if served.name.isascii():
        return dump_options_header(header, {"filename": served.name})
    return f"{header}; filename*=UTF-8''{quote(served.name)}"
