"""Who owns what a request holds, at the border to the WSGI server."""

import socket
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

import pytest
from flask import Flask, Response
from werkzeug.test import EnvironBuilder
from werkzeug.wsgi import FileWrapper

from opendify.api.resources import MAX_LAST_BYTES, current_resources, track_resources
from opendify.api.streaming_response import StreamingResponse

CONTENT = b"x" * (3 * MAX_LAST_BYTES)
KINDS: dict[str, Callable[[], Response]] = {
    "whole": lambda: Response(CONTENT),
    "empty": lambda: Response(status=204),
    "generated": lambda: Response(piece for piece in [CONTENT, b"", CONTENT]),
    "stepped": lambda: StreamingResponse((piece for piece in [CONTENT]), {}),
    "passed through": lambda: Response(FileWrapper(BytesIO(CONTENT)), direct_passthrough=True),
}


class Held:
    """What the routes of ``app`` hold; the names of what was given back, in order."""

    def __init__(self) -> None:
        self.released: list[str] = []
        self.app = Flask(__name__)
        track_resources(self.app)
        for name, kind in KINDS.items():
            self.app.add_url_rule(f"/{name}", name, lambda kind=kind: self._answer(kind))
        self.app.add_url_rule("/raises", "raises", lambda: self._answer(self._raise))

    def _answer(self, kind: Callable[[], Response]) -> Response:
        resources = current_resources()
        for name in ("file", "connection"):
            resources.add(lambda name=name: self.released.append(name))
        resources.add_permit(lambda: self.released.append("permit"))
        return kind()

    def _raise(self) -> Response:
        raise SystemExit("of the test")

    def called(self, name: str, start: Callable[..., Any], **environ: Any) -> Any:
        base = EnvironBuilder(path=f"/{name}").get_environ()
        body: Iterable[bytes] = self.app.wsgi_app(base | environ, start)
        return body


ALL = ["connection", "file", "permit"]


def start(*arguments: Any) -> None:
    """Takes the head of a response."""


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_everything_is_released_once_when_the_body_is_closed(name: str, method: str) -> None:
    held = Held()
    for is_iterated in (True, False):
        held.released.clear()
        body = held.called(name, start, REQUEST_METHOD=method)
        if is_iterated:
            assert b"".join(body) or method != "GET" or name == "empty"
        body.close()
        body.close()
        expected = [] if method == "OPTIONS" else ALL
        assert sorted(held.released) == sorted(expected)
        assert is_iterated or held.released == expected


@pytest.mark.parametrize("name", KINDS)
def test_a_body_that_is_closed_in_the_middle_releases_everything(name: str) -> None:
    held = Held()
    body = held.called(name, start)
    next(iter(body), None)
    body.close()
    assert sorted(held.released) == sorted(ALL)


@pytest.mark.parametrize("name", KINDS)
def test_a_head_that_cannot_be_sent_releases_everything(name: str) -> None:
    def failing_start(*arguments: Any) -> None:
        raise ConnectionResetError

    held = Held()
    with pytest.raises(ConnectionResetError):
        held.called(name, failing_start)
    assert held.released == ALL


def test_a_route_that_raises_releases_everything() -> None:
    held = Held()
    with pytest.raises(SystemExit):
        held.called("raises", start)
    assert held.released == ALL


def test_what_cannot_be_closed_keeps_nothing_else() -> None:
    held = Held()

    def fail() -> None:
        raise RuntimeError("of the test")

    def answer() -> Response:
        response = held._answer(KINDS["whole"])
        current_resources().add(fail)
        return response

    held.app.add_url_rule("/fails", "fails", answer)
    body = held.called("fails", start)
    with pytest.raises(RuntimeError, match="of the test"):
        body.close()
    assert held.released == ALL


@pytest.mark.parametrize("name", ["whole", "generated", "passed through"])
def test_a_permit_is_released_before_the_last_bytes_but_not_earlier(name: str) -> None:
    held = Held()
    pieces = [(list(held.released), piece) for piece in held.called(name, start)]
    assert all(piece for _, piece in pieces)
    assert [released for released, _ in pieces] == [[]] * (len(pieces) - 1) + [["permit"]]
    assert len(pieces[-1][1]) <= MAX_LAST_BYTES


def test_a_caller_who_does_not_read_keeps_its_permit_to_the_end() -> None:
    held = Held()
    ours, callers = socket.socketpair()
    with ours, callers:
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        body = held.called("whole", start, **{"gunicorn.socket": ours})
        assert b"".join(body) == CONTENT
        assert held.released == []
        body.close()
        assert held.released == ALL
