"""Reading the body of a request."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from flask import abort, request
from gunicorn.http.errors import ParseException

from opendify import errors

# Deeper than any client means it, and less deep than Python can follow in every room.
MAX_DEPTH = 100

_USUAL_TYPES = ("", "application/json")
# Of a length that is not absurd: Python refuses to read a number of thousands of digits.
_MOST_DIGITS = 18


def json_body(or_else: Any = None) -> Any:
    """The decoded body; ``or_else``, where it is given, for none.

    Raises InvalidRequest, UnsupportedMediaType, and an HTTPException where it is too large.
    """
    environ = request.environ
    data = _received(environ)
    if not data.strip() and or_else is not None:
        return or_else
    _require_plain_json(environ)
    try:
        return _decoded(data.decode("utf-8-sig"))
    except UnicodeError as exc:
        raise errors.InvalidRequest("The request body is not valid UTF-8 text.") from exc
    except RecursionError as exc:
        raise errors.InvalidRequest("The request body is nested too deeply.") from exc
    except ValueError as exc:
        raise errors.InvalidRequest("The request body is not valid JSON.") from exc


def _received(environ: Mapping[str, Any]) -> bytes:
    limit = request.max_content_length
    length = _usual_length(environ, limit)
    try:
        if length is not None:
            data = _read(environ["wsgi.input"], length)
        else:
            data, length = request.get_data(cache=False), request.content_length
    except (OSError, ParseException) as exc:
        raise errors.InvalidRequest(
            "The request body ended too early, or its chunks are malformed."
        ) from exc
    if length is not None and len(data) < length:
        raise errors.InvalidRequest("The request body is shorter than its Content-Length.")
    if length is None and limit is not None and len(data) >= limit:  # cut off there in silence
        abort(413)
    return data


def _usual_length(environ: Mapping[str, Any], limit: int | None) -> int | None:
    """Of a body that is not too long, without chunks, from a server that ends it; None for any
    other, which Werkzeug reads: it wraps the stream, and takes four times as long."""
    told = environ.get("CONTENT_LENGTH", "")
    if not told.isdecimal() or len(told) > _MOST_DIGITS or "HTTP_TRANSFER_ENCODING" in environ:
        return None
    length = int(told)
    is_usual = "wsgi.input_terminated" in environ and limit is not None and length <= limit
    return length if is_usual else None


def _read(stream: Any, length: int) -> bytes:
    """As much as there is of so many bytes. What the stream raises is what Werkzeug makes of it."""
    data = b""
    try:
        while len(data) < length and (piece := stream.read(length - len(data))):
            data += piece
    except (OSError, ValueError):
        abort(400)
    return data


def _require_plain_json(environ: Mapping[str, Any]) -> None:
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise errors.UnsupportedMediaType("Send the body as it is, without Content-Encoding.")
    if environ.get("CONTENT_TYPE", "") in _USUAL_TYPES:
        return
    if request.mimetype and not request.mimetype.endswith("json"):
        raise errors.UnsupportedMediaType(
            "Send JSON, with the header Content-Type: application/json."
        )


def _decoded(text: str) -> Any:
    body = _decoder.decode(text)
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(body):
        raise RecursionError
    if "\\u" in text:
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is not text
    return body


def _is_deep(body: Any) -> bool:
    level = [body]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # 1e999, which no JSON to Dify could carry
        raise ValueError(text)
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


# json.loads makes one for each call that asks for anything unusual.
_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
