"""Gunicorn's threaded worker, which here gives threads to whole requests only.

The main loop collects each request without a thread, so that slow callers hold memory for a while
and nothing else; gives on what an answer waits for; and accepts a connection only when fewer are
answered than there are threads, so that the next one goes to another worker. The last threads are
for when no worker has others. The parser and the form of answers are Gunicorn's.
"""

import contextlib
import errno
import selectors
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from types import FrameType
from typing import Any, ClassVar

from opendify.worker import error_responses, os_limits
from opendify.worker.connection import Connection
from opendify.worker.connection_set import PendingConnections
from opendify.worker.gunicorn_api import (
    STOP_KEEPALIVE_LINGER,
    Config,
    Logger,
    Request,
    Response,
    ThreadWorker,
    create,
    default_environ,
)
from opendify.worker.head import RequestHead
from opendify.worker.recycling import ExclusiveLock, WorkerRecycler
from opendify.worker.request_log import log_refusal
from opendify.worker.response_driver import ResponseDriver
from opendify.worker.scoreboard import Scoreboard
from opendify.worker.shutdown import DrainSignal, GracefulShutdown, inodes
from opendify.worker.stream_loop import new_stream_loop
from opendify.worker.thread_pool import ThreadPool

_DEFAULT_BODY_LIMIT = 64 * 1024 * 1024
# Bodies are collected up to so many of the largest size at a time.
_LARGEST_BODIES = 2
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_REST_SECONDS = 0.25
# How often a worker looks whether all others are full too.
_LOOK_SECONDS = 0.05
# How often the main loop tells the master that it turns, and looks whether there is one.
_SIGN_SECONDS = 0.25


class Worker(ThreadWorker):
    """Serves plain HTTP/1; for anything else (TLS, HTTP/2, uWSGI, the PROXY protocol) Gunicorn's
    own threaded worker takes its place.

    ``worker_connections`` less ``threads`` is how many connections may wait without a thread.
    """

    poller: selectors.BaseSelector
    tpool: ThreadPool
    _leaves: ClassVar[ExclusiveLock | None] = None
    _common_board: ClassVar[Scoreboard | None] = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        cfg = kwargs["cfg"] if "cfg" in kwargs else args[5]
        return super().__new__(cls) if _is_plain(cfg) else ThreadWorker(*args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._busy: set[Connection] = set()
        self._rests_until = 0.0
        self._signs_at = 0.0
        if self.cfg.max_requests and self.cfg.workers > 1 and Worker._leaves is None:
            Worker._leaves = ExclusiveLock(self.cfg.worker_tmp_dir)  # in the master
        self._retirement = WorkerRecycler(self.max_requests, self._leaves, self.log)
        Worker._common_board = self._board = Worker._common_board or Scoreboard(self.cfg.workers)
        self._row = self._board.claim()
        # With sendfile, a caller that does not read holds its thread for ever.
        self.cfg.set("sendfile", False)

    @classmethod
    def check_config(cls, cfg: Config, log: Logger) -> None:
        if not _is_plain(cfg):
            log.warning(
                "With TLS, HTTP/2, uWSGI or the PROXY protocol, slow clients are not kept from "
                "holding threads: leave these to a reverse proxy."
            )

    def init_process(self) -> None:
        self._ending = DrainSignal()
        self._departure = GracefulShutdown(
            self.cfg.graceful_timeout,
            self.ppid,
            inodes(listener.fileno() for listener in self.sockets),
        )
        os_limits.raise_descriptor_limit()
        for listener in self.sockets:
            os_limits.let_accept_wait_for_data(listener.sock)
        super().init_process()

    def get_thread_pool(self) -> ThreadPool:
        return ThreadPool(self.cfg.threads)

    def load_wsgi(self) -> None:
        super().load_wsgi()
        application = self.wsgi
        # A Flask application says how large its bodies may be; ours, how many answers it gives at
        # once, so that the threads beyond are there to refuse more, and of which requests it reads
        # the body.
        told = getattr(application, "config", {})
        self._body_limit = told.get("MAX_CONTENT_LENGTH") or _DEFAULT_BODY_LIMIT
        self._wanted = min(told.get("MAX_CONCURRENT_STREAMS") or self.cfg.threads, self.cfg.threads)

        self._application_accepts_body = told.get("ACCEPTS_BODY") or (lambda environ: True)

        def with_ending(environ: dict[str, Any], start_response: Any) -> Any:
            environ["opendify.ending"] = self._ending
            return application(environ, start_response)

        self.wsgi = with_ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._departure.tell()
        super().handle_exit(sig, frame)

    def run(self) -> None:
        queue = self.method_queue
        self.poller.register(queue.fileno(), selectors.EVENT_READ, queue.run_callbacks)
        self._waiting = self._new_waiting()
        self._moving = new_stream_loop(self._resume, self.poller)
        self._names = {listener: listener.getsockname() for listener in self.sockets}
        while self.alive and self._has_master():
            self._board.tell(self._row, has_room=self._has_room(self._wanted))
            accepts = self._accepts()
            self.set_accept_enabled(accepts)
            looks = not accepts and self._has_room(self.cfg.threads)
            self._take_turn(_LOOK_SECONDS if looks else 1.0)
            if self._retirement.is_due(self.nr, not (self._waiting or self._busy)):
                self.alive = False
        self._board.tell(self._row, has_room=False)
        self.alive = False
        self.set_accept_enabled(False)
        self._drain()
        self._clean_up()

    def _new_waiting(self) -> PendingConnections:
        most = self.cfg.worker_connections - self.cfg.threads
        most = min(most, os_limits.descriptor_limit() // 4)
        max_body_bytes = _LARGEST_BODIES * self._body_limit
        return PendingConnections(self.poller, self.log, self._start, max(1, most), max_body_bytes)

    def _accepts_body(self, conn: Connection, request: RequestHead) -> bool:
        """Whether to wait for the rest of a request. The application answers it without the body
        otherwise, and the connection is closed."""
        try:
            _, environ = create(request, conn.sock, conn.client, conn.server, self.cfg)
            return bool(self._application_accepts_body(environ))
        except Exception:
            self.log.exception("It is not known whether the body of a request is of use")
            return False

    def _has_master(self) -> bool:
        """Gives a sign of life, too, which costs more than many turns of the loop do."""
        now = time.monotonic()
        if now < self._signs_at:
            return True
        self._signs_at = now + _SIGN_SECONDS
        self.notify()
        return bool(self.is_parent_alive())

    def _take_turn(self, patience: float) -> None:
        patience = min(self._waiting.patience, patience)
        if not self._moving:
            self.wait_for_and_dispatch_events(patience)
        elif self._moving.turn(time.monotonic() + patience):
            self.wait_for_and_dispatch_events(0)
        self._waiting.sweep()

    def _has_room(self, places: int) -> bool:
        is_full = len(self._busy) + self._waiting.fresh() >= places
        return not is_full and time.monotonic() >= self._rests_until

    def _accepts(self) -> bool:
        """A connection that this worker can only refuse to serve goes to one that can serve it."""
        is_full = not self._has_room(self._wanted)
        others_do = is_full and self._board.has_room()
        # At 0, answers close their connections: the next request may come where there is room.
        keeps = not (others_do or self._retirement.has_begun)
        self.max_keepalived = self.cfg.worker_connections if keeps else 0
        return not others_do and self._has_room(self.cfg.threads)

    def accept(self, listener: socket.socket) -> None:
        if not self._accepts():
            return
        try:
            sock, client = listener.accept()
        except OSError as exc:
            self._mind_failed_accept(exc)
            return
        server, folder = self._names[listener], self.cfg.worker_tmp_dir
        try:
            conn = Connection(
                self.cfg, sock, client, server, self._body_limit, folder, self._accepts_body
            )
        except OSError:  # gone already
            sock.close()
            return
        self._waiting.welcome(conn)

    def _mind_failed_accept(self, exc: OSError) -> None:
        """Nothing that keeps this worker from accepting is a reason to end its streams."""
        if exc.errno in _EXHAUSTED:
            self.log.error("No connection can be accepted: %s", exc.strerror)
            self._rests_until = time.monotonic() + _REST_SECONDS
            self._waiting.give_up_one()

    def _start(self, conn: Connection) -> None:
        try:
            conn.start()
        except OSError:
            conn.close()
            return
        self._busy.add(conn)
        self.enqueue_req(conn)

    def _resume(self, answer: ResponseDriver) -> None:
        """Gives an answer that the loop had moved to a thread again."""
        fs = self.tpool.submit(self._go_on, answer)
        fs.add_done_callback(
            lambda fut: self.method_queue.defer(self.finish_request, answer.conn, fut)
        )

    def finish_request(self, conn: Connection, fs: "Future[bool | ResponseDriver]") -> None:
        failure = None if fs.cancelled() else fs.exception()
        if (
            not fs.cancelled()
            and failure is None
            and isinstance(answer := fs.result(), ResponseDriver)
        ):
            self._move(answer)
            return
        self._busy.discard(conn)
        if failure is not None:
            self.log.error("A request ended its thread", exc_info=failure)
        if fs.cancelled() or failure is not None or not fs.result():
            self._waiting.close(conn)
            return
        seconds = self.cfg.keepalive if self.alive else STOP_KEEPALIVE_LINGER
        try:
            left = conn.await_next(seconds)
        except OSError:
            conn.close()
            return
        self._waiting.keep(conn, left)

    def _move(self, answer: ResponseDriver) -> None:
        if self._moving is None or self._ending.has_come():
            self._resume(answer)
        else:
            self._moving.add(answer)

    def handle_request(self, req: Request, conn: Connection) -> bool | ResponseDriver:
        """Answers a request, in a thread. An Answer is what the loop is to go on with, a truth
        value whether the connection may carry another request."""
        self.cfg.pre_request(self, req)
        self.nr += 1
        is_possible, end = self._moving is not None, partial(self._end, req)
        answer = ResponseDriver(req, conn, self.cfg, self.log, end, is_possible)
        keeps = self.alive and self.cfg.keepalive and self.max_keepalived
        if not keeps or not conn.intake.is_whole:
            answer.resp.force_close()
        return self._outcome(answer, lambda: answer.start(self.wsgi))

    def _go_on(self, answer: ResponseDriver) -> bool | ResponseDriver:
        try:
            return self._outcome(answer, answer.resume)
        except OSError as exc:
            self.log.debug("A caller has gone in the middle of its answer: %s", exc)
            return False

    def _outcome(self, answer: ResponseDriver, give: Callable[[], bool]) -> bool | ResponseDriver:
        try:
            if not give():
                return answer
        except BlockingIOError:
            self.log.info("A client that does not read its answer is left")
            return False
        except OSError:
            raise
        except (Exception, SystemExit):
            if not answer.resp.headers_sent:
                raise
            self.log.exception("Error handling request")
            return False
        return not answer.resp.should_close()

    def _end(self, req: Request, environ: dict[str, Any], resp: Response) -> None:
        try:
            self.cfg.post_request(self, req, environ, resp)
        except Exception:
            self.log.exception("Exception in post_request hook")

    def _keepalive_after(
        self, conn: Connection, outcome: bool | ResponseDriver
    ) -> bool | ResponseDriver:
        """There is nothing to be read after an answer: the request was collected before it."""
        return outcome

    def handle_error(
        self, req: Request | None, client: socket.socket, addr: Any, exc: BaseException
    ) -> None:
        """Answers in OpenAI's form. Nothing of what was sent goes into the answer or the log."""
        begun = datetime.now()
        status, request_id = error_responses.status_of(exc), uuid.uuid4().hex
        if status == 500:
            self.log.error("Error handling a request id=%s", request_id, exc_info=exc)
        environ = default_environ(req, client, self.cfg) if req is not None else None
        log_refusal(status, request_id, addr, environ)
        if environ is not None:
            environ["REMOTE_ADDR"] = addr[0] if isinstance(addr, tuple) else ""
            resp = Response(req, client, self.cfg)
            resp.status = str(status)
            self.log.access(resp, req, environ, datetime.now() - begun)
        with contextlib.suppress(OSError):
            client.sendall(error_responses.page(status, request_id))

    def _drain(self) -> None:
        for listener in self.sockets:  # else the kernel takes connections that nobody accepts
            listener.close()
        self._waiting.hasten(time.monotonic() + STOP_KEEPALIVE_LINGER)
        if not (self._departure.was_told or self._retirement.has_begun):
            self._departure.hasten()
        while (self._waiting or self._busy) and not self._departure.is_over:
            self.notify()
            self._departure.look()
            if self._departure.must_end and self._busy:
                self._end_answers()
            self._take_turn(_REST_SECONDS)

    def _end_answers(self) -> None:
        if not self._ending.has_come():
            self.log.info("Ending the requests that still run: %d", len(self._busy))
            self._ending.come()
        if self._moving:
            self._moving.release_all()
        if self._departure.must_cut:
            for conn in self._busy:
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RDWR)

    def _clean_up(self) -> None:
        self.tpool.shutdown(wait=False, cancel_futures=True)
        for conn in self._waiting:
            self._waiting.drop(conn)
        if self._moving is not None:
            self._moving.close()
        self.poller.close()
        if not self._busy:  # else threads will still write to it
            self.method_queue.close()


def _is_plain(cfg: Config) -> bool:
    return not (
        cfg.is_ssl
        or cfg.protocol != "http"
        or "h2" in cfg.http_protocols
        or cfg.proxy_protocol != "off"
    )
