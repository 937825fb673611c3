"""The route of file links. It asks for no key, since browsers send none with images: the link is
signed instead."""

from contextlib import ExitStack
from urllib.parse import quote

from flask import Flask, Response, request
from werkzeug.http import dump_options_header
from werkzeug.wsgi import wrap_file

from opendify.capacity import Capacity
from opendify.upstream.relay import Relay, Served

ENDPOINT = "file_content"

# A file comes from an app, and may have come from anybody before: it is to run nothing here.
_HARMLESS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Referrer-Policy": "no-referrer",
}


def add_file_routes(app: Flask, relay: Relay, capacity: Capacity) -> None:
    """Serves the links that ``relay`` makes, under the endpoint ``ENDPOINT``."""

    @app.get("/v1/files/<token>/content", endpoint=ENDPOINT)
    def file_content(token: str) -> Response:
        with ExitStack() as held:
            held.enter_context(capacity.place())
            served = relay.open(token, request.args.get("sig", ""))
            held.callback(served.file.close)
            response = _response(served)
            response.call_on_close(held.pop_all().close)
        return response


def _response(served: Served) -> Response:
    response = Response(
        wrap_file(request.environ, served.file),
        mimetype=served.media_type,
        headers=_HARMLESS,
        direct_passthrough=True,
    )
    response.content_length = served.size
    response.headers["Content-Disposition"] = _disposition(served)
    response.headers["Cache-Control"] = f"private, max-age={served.max_age}"
    response.set_etag(served.tag)
    response.make_conditional(request, accept_ranges=True, complete_length=served.size)
    return response


def _disposition(served: Served) -> str:
    """Names beyond ASCII as RFC 6266 has it: Gunicorn refuses a header that is not Latin-1."""
    header = "inline" if served.is_shown else "attachment"
    if served.name.isascii():
        return dump_options_header(header, {"filename": served.name})
    return f"{header}; filename*=UTF-8''{quote(served.name)}"
