"""A response on its way to its caller: driven by a thread, which may block, or by the event loop.

A body may have ``steps`` (``opendify.streaming``). While such a response waits for something that
shows on a descriptor, it needs no thread: the loop drives it. Its beginning, its end, and all that
may block are done in a thread.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from datetime import datetime
from typing import Any

from opendify.streaming import BLOCKING, READY, WaitFor
from opendify.worker.connection import Connection
from opendify.worker.gunicorn_api import Config, Logger, Request, Response, create
from opendify.worker.write_buffer import WriteBuffer

_NO_STEPS: Iterator[bytes | WaitFor] = iter(())


class ResponseDriver:
    """The answer to one request. ``wait`` is what it waits for while it has no thread. ``end`` is
    called once, when it is over, with the WSGI environment and Gunicorn's response."""

    def __init__(
        self,
        req: Request,
        conn: Connection,
        cfg: Config,
        log: Logger,
        end: Callable[[dict[str, Any], Response], None],
        may_leave_thread: bool = True,
    ) -> None:
        self.conn = conn
        self._may_leave_thread = may_leave_thread
        self.wait = BLOCKING
        self._req = req
        self._log = log
        self._end = end
        self._began = datetime.now()
        self._context = copy_context()
        self._body: Any = None
        self._steps = _NO_STEPS
        self._is_stepped = False
        self._failure: Exception | None = None
        self._outlet = WriteBuffer(conn.sock)
        _, self._environ = create(req, conn.sock, conn.client, conn.server, cfg)
        self._environ["wsgi.multithread"] = True
        self.resp = Response(req, self._outlet, cfg)

    def start(self, application: Callable[..., Any]) -> bool:
        """Asks the application, and gives as much as ``go_on``. Raises what that raises."""
        return self._given(lambda: self._ask(application))

    def resume(self) -> bool:
        """In a thread: gives all that comes before the next wait for a descriptor; the rest is for
        the loop. Returns whether it was given whole. Raises what the application raises, and
        OSError; then it is over too."""
        return self._given(lambda: None)

    def step(self) -> bool:
        """In the loop, when what it waits for is there: gives that, and never waits. Returns
        whether the loop may go on with it; else it needs a thread."""
        try:
            step = self._steps.send(READY)  # type: ignore[attr-defined]
            while not isinstance(step, WaitFor):
                if step:
                    self.resp.sent += len(step)
                    self._outlet.offer(_in_chunk(step) if self.resp.chunked else step)
                step = next(self._steps)
            self.wait = step
            return step.descriptor >= 0 and not self._outlet.held
        except StopIteration:
            self.wait = BLOCKING
        except Exception as exc:  # noqa: BLE001 the thread raises it; the loop has others to look after
            self._failure = exc
        return False

    def _ask(self, application: Callable[..., Any]) -> None:
        self._body = application(self._environ, self.resp.start_response)
        self._is_stepped = hasattr(self._body, "steps")
        self._steps = iter(self._body.steps if self._is_stepped else self._body)

    def _given(self, first: Callable[[], None]) -> bool:
        is_over = True  # which it also is when it broke
        try:
            is_over = self._context.run(self._give, first)
        finally:
            if is_over:
                self._context.run(self._finish)
        return is_over

    def _give(self, first: Callable[[], None]) -> bool:
        if self._failure is not None:
            raise self._failure
        if self._outlet.held:  # the caller had no place for what the loop gave
            self._outlet.flush()
            if not self.wait.needs_thread:
                return False
        first()
        for step in self._steps:
            if not isinstance(step, WaitFor):
                self.resp.write(step)
                if self._is_stepped:  # a wait comes before what may take long
                    continue
            self._outlet.flush()
            if isinstance(step, WaitFor) and self._may_leave(step):
                self.wait = step
                return False
        self.resp.close()
        self._outlet.flush()
        return True

    def _may_leave(self, step: WaitFor) -> bool:
        is_framed = self.resp.response_length is None
        return self._may_leave_thread and is_framed and not step.needs_thread

    def _finish(self) -> None:
        try:
            if self._body is None:
                return
            with suppress(OSError):  # what was given before it broke
                self._outlet.flush()
            self._log.access(self.resp, self._req, self._environ, datetime.now() - self._began)
        finally:
            try:
                if hasattr(self._body, "close"):
                    self._body.close()
            finally:
                self._end(self._environ, self.resp)


def _in_chunk(piece: bytes) -> bytes:
    return b"%X\r\n%b\r\n" % (len(piece), piece)
