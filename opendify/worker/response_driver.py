"""Sends a response: driven by a thread, which may block, or by the event loop, which may not.

A WSGI response body may have ``steps`` (see ``opendify.streaming``). While it waits for a
descriptor, the response needs no thread and the event loop drives it. Its start, its end, and
everything that may block run in a thread.
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
    """The response to one request. ``wait`` is what it waits for while it has no thread. ``on_end``
    is called once, when it is complete or has failed, with the WSGI environment and Gunicorn's
    response. Where ``may_leave_thread`` is false, one thread drives all of it."""

    def __init__(
        self,
        req: Request,
        conn: Connection,
        cfg: Config,
        log: Logger,
        on_end: Callable[[dict[str, Any], Response], None],
        may_leave_thread: bool = True,
    ) -> None:
        self.conn = conn
        self._may_leave_thread = may_leave_thread
        self.wait = BLOCKING
        self._req = req
        self._log = log
        self._on_end = on_end
        self._started_at = datetime.now()
        self._context = copy_context()
        self._body: Any = None
        self._steps = _NO_STEPS
        self._is_resumable = False
        self._failure: Exception | None = None
        self._buffer = WriteBuffer(conn.sock)
        _, self._environ = create(req, conn.sock, conn.client, conn.server, cfg)
        self._environ["wsgi.multithread"] = True
        self.resp = Response(req, self._buffer, cfg)

    def start(self, application: Callable[..., Any]) -> bool:
        """In a thread: calls the application, then continues as ``resume``."""
        return self._run(lambda: self._call_application(application))

    def resume(self) -> bool:
        """In a thread: sends everything up to the next wait for a descriptor, which is left to the
        event loop. Returns whether the response is complete. Raises what the application raises,
        and OSError; then the response has ended too."""
        return self._run(lambda: None)

    def step(self) -> bool:
        """In the event loop, when ``wait`` is over: sends what is available, and never blocks.
        Returns whether the event loop may continue with it; if not, it needs a thread."""
        try:
            step = self._steps.send(READY)  # type: ignore[attr-defined]
            while not isinstance(step, WaitFor):
                if step:
                    self.resp.sent += len(step)
                    self._buffer.try_send(_as_chunk(step) if self.resp.chunked else step)
                step = next(self._steps)
            self.wait = step
            return step.descriptor >= 0 and not self._buffer.pending
        except StopIteration:
            self.wait = BLOCKING
        except Exception as exc:  # noqa: BLE001 the thread raises it; the event loop must go on
            self._failure = exc
        return False

    def _call_application(self, application: Callable[..., Any]) -> None:
        self._body = application(self._environ, self.resp.start_response)
        self._is_resumable = hasattr(self._body, "steps")
        self._steps = iter(self._body.steps if self._is_resumable else self._body)

    def _run(self, first: Callable[[], None]) -> bool:
        has_ended = True  # also after an exception
        try:
            has_ended = self._context.run(self._drive, first)
        finally:
            if has_ended:
                self._context.run(self._finish)
        return has_ended

    def _drive(self, first: Callable[[], None]) -> bool:
        if self._failure is not None:
            raise self._failure
        if self._buffer.pending:  # the client did not read what the event loop sent
            self._buffer.flush()
            if not self.wait.needs_thread:
                return False
        first()
        for step in self._steps:
            if not isinstance(step, WaitFor):
                self.resp.write(step)
                if self._is_resumable:  # flushed at the next wait: nothing before it takes long
                    continue
            self._buffer.flush()
            if isinstance(step, WaitFor) and self._may_leave_thread_at(step):
                self.wait = step
                return False
        self.resp.close()
        self._buffer.flush()
        return True

    def _may_leave_thread_at(self, step: WaitFor) -> bool:
        has_no_length = self.resp.response_length is None
        return self._may_leave_thread and has_no_length and not step.needs_thread

    def _finish(self) -> None:
        try:
            if self._body is None:
                return
            with suppress(OSError):  # what was written before an exception
                self._buffer.flush()
            duration = datetime.now() - self._started_at
            self._log.access(self.resp, self._req, self._environ, duration)
        finally:
            try:
                if hasattr(self._body, "close"):
                    self._body.close()
            finally:
                self._on_end(self._environ, self.resp)


def _as_chunk(data: bytes) -> bytes:
    return b"%X\r\n%b\r\n" % (len(data), data)
