"""Reading the body of a request."""

import json
import math
from collections.abc import Iterable
from typing import Any

from flask import abort, request
from gunicorn.http.errors import ParseException

from opendify import errors

# Deeper than any client means it, and less deep than Python can follow in every room.
MAX_DEPTH = 100


def json_body(or_else: Any = None) -> Any:
    """The decoded body; ``or_else``, where it is given, for none.

    Raises InvalidRequest, UnsupportedMediaType, and an HTTPException where it is too large.
    """
    data = _received()
    if not data.strip() and or_else is not None:
        return or_else
    _require_plain_json()
    try:
        return _decoded(data.decode("utf-8-sig"))
    except UnicodeError as exc:
        raise errors.InvalidRequest("The request body is not valid UTF-8 text.") from exc
    except RecursionError as exc:
        raise errors.InvalidRequest("The request body is nested too deeply.") from exc
    except ValueError as exc:
        raise errors.InvalidRequest("The request body is not valid JSON.") from exc


def _received() -> bytes:
    try:
        data = request.get_data(cache=False)
    except (OSError, ParseException) as exc:
        raise errors.InvalidRequest(
            "The request body ended too early, or its chunks are malformed."
        ) from exc
    length, limit = request.content_length, request.max_content_length
    if length is not None and len(data) < length:
        raise errors.InvalidRequest("The request body is shorter than its Content-Length.")
    if length is None and limit is not None and len(data) >= limit:  # cut off there in silence
        abort(413)
    return data


def _require_plain_json() -> None:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise errors.UnsupportedMediaType("Send the body as it is, without Content-Encoding.")
    if request.mimetype and not request.mimetype.endswith("json"):
        raise errors.UnsupportedMediaType(
            "Send JSON, with the header Content-Type: application/json."
        )


def _decoded(text: str) -> Any:
    body = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
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
