"""Answers whose body a server can also take step by step (``steps``), besides as WSGI has it."""

from collections.abc import Callable, Iterable, Iterator
from wsgiref.types import WSGIEnvironment

from flask import Response

from opendify.streaming import Steps, without_waits


class SteppedBody:
    """The body of an answer, for any WSGI server: its waits are waited for between two pieces. A
    server that knows of ``steps`` may take these instead, and go on with them on any thread."""

    def __init__(self, steps: Steps[bytes], close: Callable[[], None]) -> None:
        self.steps = steps
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return without_waits(self.steps)


class SteppedResponse(Response):
    """A response made of steps; they are closed with it."""

    def __init__(self, steps: Steps[bytes], headers: dict[str, str]) -> None:
        super().__init__(steps, headers=headers)  # type: ignore[arg-type]  # never iterated as such
        self._steps = steps

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        return SteppedBody(self._steps, self.close)
