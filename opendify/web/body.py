"""Reading the body of a request."""

import json
import math
from typing import Any

from flask import request

from opendify import errors


def json_body(or_else: Any = None) -> Any:
    """The decoded body; ``or_else``, where it is given, for none.

    Raises InvalidRequest and UnsupportedMediaType.
    """
    data = request.get_data(cache=False)
    length = request.content_length
    if length is not None and len(data) < length:
        raise errors.InvalidRequest("The request body is shorter than its Content-Length.")
    if not data.strip() and or_else is not None:
        return or_else
    if request.mimetype and not request.mimetype.endswith("json"):
        raise errors.UnsupportedMediaType(
            "Send JSON, with the header Content-Type: application/json."
        )
    try:
        text = data.decode("utf-8-sig")
        body = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\u" in text:
            json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except UnicodeError as exc:
        raise errors.InvalidRequest("The request body is not valid UTF-8 text.") from exc
    except RecursionError as exc:
        raise errors.InvalidRequest("The request body is nested too deeply.") from exc
    except ValueError as exc:
        raise errors.InvalidRequest("The request body is not valid JSON.") from exc
    return body


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # 1e999, which no JSON to Dify could carry
        raise ValueError(text)
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
