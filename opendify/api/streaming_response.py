"""Answers whose body a server can also take step by step (``steps``), besides as WSGI has it."""

from collections.abc import Callable, Iterable, Iterator
from wsgiref.types import WSGIEnvironment

from flask import Response

from opendify.streaming import ResumableBody, run_blocking


class StreamingBody:
    """The body of an answer, for any WSGI server: its waits are waited for between two pieces. A
    server that knows of ``steps`` may take these instead, and go on with them on any thread."""

    def __init__(self, steps: ResumableBody[bytes], close: Callable[[], None]) -> None:
        self.steps = steps
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return run_blocking(self.steps)


class StreamingResponse(Response):
    """A response made of steps; they are closed with it."""

    def __init__(self, steps: ResumableBody[bytes], headers: dict[str, str]) -> None:
        super().__init__(steps, headers=headers)  # type: ignore[arg-type]  # never iterated as such
        self._steps = steps

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        return StreamingBody(self._steps, self.close)
