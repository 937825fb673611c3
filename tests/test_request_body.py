"""The usual body is read by a shorter way, which says and raises what Werkzeug's does."""

from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from gunicorn.http.errors import NoMoreData
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException

from opendify import errors
from opendify.api import request_body
from opendify.api.request_body import json_body

LIMIT = 40
FAULTS = st.none() | st.sampled_from([OSError("gone"), ValueError("closed"), NoMoreData(b"")])
BODIES = st.sampled_from(
    [b'{"a": 1}', b'{"a": 1e999}', b"[1]", b"NaN", b"\xff", b"", b'"\\ud800"', b" " * 99]
)


class Stream(BytesIO):
    """A body of ``ends`` that comes in pieces, at the end of which there may be a fault."""

    def __init__(self, content: bytes, most: int, fault: Exception | None) -> None:
        super().__init__(content)
        self._most, self._fault = most, fault

    def read(self, size: int | None = -1) -> bytes:
        size = self._most if size is None or size < 0 else min(size, self._most)
        piece = super().read(size)
        if not piece and self._fault is not None:
            raise self._fault
        return piece

    def readinto(self, buffer: Any) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def environment(**more: Any) -> dict[str, Any]:
    plain = {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "SERVER_NAME": "x", "SERVER_PORT": "80"}
    return {**plain, "wsgi.url_scheme": "http", **more}


def outcome(environ: dict[str, Any], stream: Stream) -> object:
    app = Flask("body")
    app.config |= {"MAX_CONTENT_LENGTH": LIMIT, "MAX_TEXT_BYTES": LIMIT}
    with app.request_context(environ | {"wsgi.input": stream}):
        try:
            return dict(json_body())
        except HTTPException as exc:
            return exc.code, exc.description
        except errors.InvalidRequest as exc:
            return exc.message
        except errors.UnsupportedMediaType as exc:
            return exc.message


LENGTHS = ["", "-1", "+8", " 8 ", "8_0", "²", "8", "x", "41", "40", "9" * 19, "9" * 5000]


@given(
    content=BODIES,
    told=st.none() | st.sampled_from(LENGTHS) | st.integers(0, 50).map(str),
    headers=st.fixed_dictionaries(
        {},
        optional={
            "wsgi.input_terminated": st.just(True),
            "HTTP_TRANSFER_ENCODING": st.sampled_from(["chunked", "gzip", ""]),
            "HTTP_CONTENT_ENCODING": st.sampled_from(["identity", "Identity", "gzip", ""]),
            "CONTENT_TYPE": st.sampled_from(
                ["", "application/json", "application/json; charset=utf-8", "text/json", ";;;="]
            ),
        },
    ),
    most=st.integers(1, 50),
    fault=FAULTS,
)
@example(b'{"a": 1}', "8", {"wsgi.input_terminated": True}, 3, None)
@example(b'{"a"', "8", {"wsgi.input_terminated": True}, 3, None)
@example(b'{"a"', "8", {"wsgi.input_terminated": True}, 3, OSError())
@example(b'{"a"', "8", {"wsgi.input_terminated": True}, 3, ValueError())
@example(b'{"a"', "8", {"wsgi.input_terminated": True}, 3, NoMoreData())
def test_a_body_is_read_as_werkzeug_reads_it(
    content: bytes, told: str | None, headers: dict[str, Any], most: int, fault: Exception | None
) -> None:
    environ = environment(**headers) | ({} if told is None else {"CONTENT_LENGTH": told})
    if "wsgi.input_terminated" in environ and told and told.isdecimal() and len(told) < 5:
        content = content[: int(told)]  # what a server that ends bodies hands out
        fault = fault if len(content) < int(told) else None  # nor does it look for what is behind
    ours = outcome(environ, Stream(content, most, fault))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_body, "_plain_length", lambda environ, limit: None)
        patch.setattr(request_body, "_JSON_TYPES", ())
        assert ours == outcome(environ, Stream(content, most, fault))


def test_the_usual_body_goes_the_short_way() -> None:
    environ = environment(CONTENT_LENGTH="8") | {"wsgi.input_terminated": True}
    assert request_body._plain_length(environ, LIMIT) == 8
    assert outcome(environ, Stream(b'{"a": 1}', 3, None)) == {"a": 1}
