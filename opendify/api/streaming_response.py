"""Responses whose body can be driven step by step (``steps``) as well as iterated as WSGI
requires."""

from collections.abc import Callable, Iterable, Iterator
from wsgiref.types import WSGIEnvironment

from flask import Response

from opendify.streaming import ResumableBody, run_blocking


class StreamingBody:
    """A body for any WSGI server, which blocks between chunks. A server that knows ``steps`` may
    drive these instead, and resume them on any thread."""

    def __init__(self, steps: ResumableBody[bytes], close: Callable[[], None]) -> None:
        self.steps = steps
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return run_blocking(self.steps)


class StreamingResponse(Response):
    """A response made of steps, which are closed with it."""

    def __init__(self, steps: ResumableBody[bytes], headers: dict[str, str]) -> None:
        super().__init__(steps, headers=headers)  # type: ignore[arg-type]  # never iterated as such
        self._steps = steps

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        return StreamingBody(self._steps, self.close)
