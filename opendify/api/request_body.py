"""Reading the body of a request."""

from collections.abc import Mapping
from typing import Any

from flask import abort, current_app, request

from opendify import errors
from opendify.protocols.json_object import JsonObject, parse_object
from opendify.worker.gunicorn_api import ParseException

_JSON_TYPES = ("", "application/json")
# Python refuses to parse numbers with thousands of digits.
_MAX_DIGITS = 18


def json_body(may_be_empty: bool = False) -> JsonObject:
    """The JSON object in the body; with ``may_be_empty``, an empty body is an empty object.

    Raises InvalidRequest, RequestTooLarge, UnsupportedMediaType, and an HTTPException if the body
    is larger than MAX_CONTENT_LENGTH.
    """
    environ = request.environ
    data = _read_body(environ)
    max_text_bytes: int = current_app.config["MAX_TEXT_BYTES"]
    if may_be_empty and not data.strip():
        return parse_object(b"{}", max_text_bytes)
    _require_plain_json(environ)
    return parse_object(data, max_text_bytes)


def _read_body(environ: Mapping[str, Any]) -> bytes:
    limit = request.max_content_length
    length = _plain_length(environ, limit)
    try:
        if length is not None:
            data = _read_up_to(environ["wsgi.input"], length)
        else:
            data, length = request.get_data(cache=False), request.content_length
    except (OSError, ParseException) as exc:
        raise errors.InvalidRequest(
            "The request body ended too early, or its chunks are malformed."
        ) from exc
    if length is not None and len(data) < length:
        raise errors.InvalidRequest("The request body is shorter than its Content-Length.")
    if length is None and limit is not None and len(data) >= limit:  # Werkzeug truncates silently
        abort(413)
    return data


def _plain_length(environ: Mapping[str, Any], limit: int | None) -> int | None:
    """The length of a body that is within the limit, not chunked, and from a server that terminates
    the stream. None for any other body, which Werkzeug reads: it wraps the stream and takes four
    times as long."""
    header = environ.get("CONTENT_LENGTH", "")
    if not header.isdecimal() or len(header) > _MAX_DIGITS or "HTTP_TRANSFER_ENCODING" in environ:
        return None
    length = int(header)
    is_plain = "wsgi.input_terminated" in environ and limit is not None and length <= limit
    return length if is_plain else None


def _read_up_to(stream: Any, length: int) -> bytes:
    """Reads up to ``length`` bytes. Errors of the stream are handled as Werkzeug handles them."""
    data = b""
    try:
        while len(data) < length and (chunk := stream.read(length - len(data))):
            data += chunk
    except (OSError, ValueError):
        abort(400)
    return data


def _require_plain_json(environ: Mapping[str, Any]) -> None:
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise errors.UnsupportedMediaType("Send the body uncompressed, without Content-Encoding.")
    if environ.get("CONTENT_TYPE", "") in _JSON_TYPES:
        return
    if request.mimetype and not request.mimetype.endswith("json"):
        raise errors.UnsupportedMediaType(
            "Send JSON, with the header Content-Type: application/json."
        )
