"""Gunicorn's threaded worker, changed so that threads serve complete requests only.

The main loop reads each request without a thread, so that slow clients cost memory and nothing
else; it drives responses that wait for data; and it accepts a connection only while fewer requests
are being served than there are threads, so that the next one goes to another worker. The last
threads are used only when no worker has others. Requests are parsed, and responses framed, by
Gunicorn.
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
from opendify.worker.connection import HEAD_TIMEOUT, Connection
from opendify.worker.connection_set import PendingConnections
from opendify.worker.gunicorn_api import (
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
from opendify.worker.request_log import log_rejected
from opendify.worker.response_driver import ResponseDriver
from opendify.worker.scoreboard import Scoreboard
from opendify.worker.shutdown import DrainSignal, GracefulShutdown, socket_inodes
from opendify.worker.stream_loop import new_stream_loop
from opendify.worker.thread_pool import ThreadPool

_DEFAULT_MAX_BODY_BYTES = 64 * 1024 * 1024
# Request bodies that are being received take at most this many times the largest size.
_MAX_FULL_SIZE_BODIES = 2
_RESOURCE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_PAUSE_SECONDS = 0.25
# How often a worker without capacity checks whether the others are full too.
_CAPACITY_POLL_SECONDS = 0.05
# How often the main loop tells the master that it is alive, and checks that the master is.
_HEARTBEAT_SECONDS = 0.25
# How long a stopping worker keeps idle connections open, for a request that may be on its way.
_IDLE_LINGER_SECONDS = 2.0
_DRAIN_POLL_SECONDS = 0.25


class Worker(ThreadWorker):
    """Serves plain HTTP/1; for anything else (TLS, HTTP/2, uWSGI, the PROXY protocol), creating one
    gives Gunicorn's own threaded worker.

    ``worker_connections`` minus ``threads`` connections may wait without a thread. The head of a
    request may take ``head_timeout`` seconds.
    """

    poller: selectors.BaseSelector
    tpool: ThreadPool
    head_timeout: ClassVar[float] = HEAD_TIMEOUT
    _recycling_lock: ClassVar[ExclusiveLock | None] = None
    _shared_scoreboard: ClassVar[Scoreboard | None] = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        cfg = kwargs["cfg"] if "cfg" in kwargs else args[5]
        return super().__new__(cls) if _is_plain(cfg) else ThreadWorker(*args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Runs in the master, before the fork: what is shared by the workers is made here."""
        super().__init__(*args, **kwargs)
        self._active: set[Connection] = set()
        self._accept_paused_until = 0.0
        self._next_heartbeat = 0.0
        if self.cfg.max_requests and self.cfg.workers > 1 and Worker._recycling_lock is None:
            Worker._recycling_lock = ExclusiveLock(self.cfg.worker_tmp_dir)
        self._recycler = WorkerRecycler(self.max_requests, self._recycling_lock, self.log)
        if Worker._shared_scoreboard is None:
            Worker._shared_scoreboard = Scoreboard(self.cfg.workers)
        self._scoreboard = Worker._shared_scoreboard
        self._slot = self._scoreboard.claim_slot()
        # sendfile has no timeout: a client that does not read would hold its thread for ever.
        self.cfg.set("sendfile", False)

    @classmethod
    def check_config(cls, cfg: Config, log: Logger) -> None:
        if not _is_plain(cfg):
            log.warning(
                "With TLS, HTTP/2, uWSGI or the PROXY protocol, slow clients are not kept from "
                "holding threads: leave these to a reverse proxy."
            )

    def init_process(self) -> None:
        self._drain_signal = DrainSignal()
        self._shutdown = GracefulShutdown(
            self.cfg.graceful_timeout,
            self.ppid,
            socket_inodes(listener.fileno() for listener in self.sockets),
        )
        os_limits.raise_descriptor_limit()
        for listener in self.sockets:
            os_limits.defer_accept(listener.sock)
        super().init_process()

    def get_thread_pool(self) -> ThreadPool:
        return ThreadPool(self.cfg.threads)

    def load_wsgi(self) -> None:
        """Reads the limits of the application from its ``config``, as Flask has one:
        ``MAX_CONTENT_LENGTH``; ``MAX_CONCURRENT_STREAMS``, the number of responses that it sends at
        once, so that the remaining threads can reject more; ``ACCEPTS_BODY``, whether it will read
        the body of a request; and ``BEFORE_SERVING``, to be called before the first connection is
        accepted."""
        super().load_wsgi()
        application = self.wsgi
        config = getattr(application, "config", {})
        threads = self.cfg.threads
        self._max_body_bytes = config.get("MAX_CONTENT_LENGTH") or _DEFAULT_MAX_BODY_BYTES
        self._max_streams = min(config.get("MAX_CONCURRENT_STREAMS") or threads, threads)
        self._before_serving = config.get("BEFORE_SERVING") or (lambda: None)
        self._application_accepts_body = config.get("ACCEPTS_BODY") or (lambda environ: True)

        def with_drain_signal(environ: dict[str, Any], start_response: Any) -> Any:
            environ["opendify.ending"] = self._drain_signal
            return application(environ, start_response)

        self.wsgi = with_drain_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._shutdown.on_sigterm()
        super().handle_exit(sig, frame)

    def run(self) -> None:
        queue = self.method_queue
        self.poller.register(queue.fileno(), selectors.EVENT_READ, queue.run_callbacks)
        self._pending = self._new_pending_connections()
        self._stream_loop = new_stream_loop(self._resume, self.poller)
        self._before_serving()
        self._server_addresses = {listener: listener.getsockname() for listener in self.sockets}
        while self.alive and self._master_is_alive():
            has_capacity = self._has_capacity(self._max_streams)
            self._scoreboard.publish(self._slot, has_capacity=has_capacity)
            accepts = self._may_accept()
            self.set_accept_enabled(accepts)
            polls = not accepts and self._has_capacity(self.cfg.threads)
            self._run_once(_CAPACITY_POLL_SECONDS if polls else 1.0)
            if self._recycler.is_due(self.nr, not (self._pending or self._active)):
                self.alive = False
        self._scoreboard.publish(self._slot, has_capacity=False)
        self.alive = False
        self.set_accept_enabled(False)
        self._drain()
        self._clean_up()

    def _new_pending_connections(self) -> PendingConnections:
        max_connections = self.cfg.worker_connections - self.cfg.threads
        max_connections = max(1, min(max_connections, os_limits.descriptor_limit() // 4))
        max_body_bytes = _MAX_FULL_SIZE_BODIES * self._max_body_bytes
        return PendingConnections(
            self.poller, self.log, self._start, max_connections, max_body_bytes
        )

    def _accepts_body(self, conn: Connection, request: RequestHead) -> bool:
        """Whether to wait for the body of a request. If not, the application responds without it,
        and the connection is closed."""
        try:
            _, environ = create(request, conn.sock, conn.client, conn.server, self.cfg)
            return bool(self._application_accepts_body(environ))
        except Exception:
            self.log.exception("The application cannot tell whether it reads the body of a request")
            return False

    def _master_is_alive(self) -> bool:
        """Notifies the master, too. Both cost more than many iterations of the main loop, so they
        are done at intervals."""
        now = time.monotonic()
        if now < self._next_heartbeat:
            return True
        self._next_heartbeat = now + _HEARTBEAT_SECONDS
        self.notify()
        return bool(self.is_parent_alive())

    def _run_once(self, timeout: float) -> None:
        timeout = min(self._pending.poll_timeout, timeout)
        if not self._stream_loop:
            self.wait_for_and_dispatch_events(timeout)
        elif self._stream_loop.run_until(time.monotonic() + timeout):
            self.wait_for_and_dispatch_events(0)
        self._pending.close_expired()

    def _has_capacity(self, max_requests: int) -> bool:
        is_full = len(self._active) + self._pending.count_fresh() >= max_requests
        return not is_full and time.monotonic() >= self._accept_paused_until

    def _may_accept(self) -> bool:
        """A connection whose request this worker could only reject is left to one that can serve
        it."""
        is_full = not self._has_capacity(self._max_streams)
        others_have = is_full and self._scoreboard.any_has_capacity()
        # 0 closes connections after their responses: the next request may reach another worker.
        keeps_alive = not (others_have or self._recycler.is_recycling)
        self.max_keepalived = self.cfg.worker_connections if keeps_alive else 0
        return not others_have and self._has_capacity(self.cfg.threads)

    def accept(self, listener: socket.socket) -> None:
        if not self._may_accept():
            return
        try:
            sock, client = listener.accept()
        except OSError as exc:
            self._on_accept_error(exc)
            return
        server, temp_dir = self._server_addresses[listener], self.cfg.worker_tmp_dir
        try:
            conn = Connection(
                self.cfg,
                sock,
                client,
                server,
                self._max_body_bytes,
                temp_dir,
                self._accepts_body,
                self.head_timeout,
            )
        except OSError:  # closed by the client meanwhile
            sock.close()
            return
        self._pending.add_new(conn)

    def _on_accept_error(self, exc: OSError) -> None:
        """Running streams go on: raising here would end the worker."""
        if exc.errno in _RESOURCE_ERRORS:
            self.log.error("No connection can be accepted: %s", exc.strerror)
            self._accept_paused_until = time.monotonic() + _ACCEPT_PAUSE_SECONDS
            self._pending.evict_one()

    def _start(self, conn: Connection) -> None:
        try:
            conn.prepare_for_thread()
        except OSError:
            conn.close()
            return
        self._active.add(conn)
        self.enqueue_req(conn)

    def _resume(self, response: ResponseDriver) -> None:
        """Hands a response from the stream loop to a thread."""
        fs = self.tpool.submit(self._resume_in_thread, response)
        fs.add_done_callback(
            lambda fut: self.method_queue.defer(self.finish_request, response.conn, fut)
        )

    def finish_request(self, conn: Connection, fs: "Future[bool | ResponseDriver]") -> None:
        failure = None if fs.cancelled() else fs.exception()
        if (
            not fs.cancelled()
            and failure is None
            and isinstance(response := fs.result(), ResponseDriver)
        ):
            self._hand_to_loop(response)
            return
        self._active.discard(conn)
        if failure is not None:
            self.log.error("Unexpected exception from a request thread", exc_info=failure)
        if fs.cancelled() or failure is not None or not fs.result():
            self._pending.close(conn)
            return
        seconds = self.cfg.keepalive if self.alive else _IDLE_LINGER_SECONDS
        try:
            received = conn.await_next_request(seconds)
        except OSError:
            conn.close()
            return
        self._pending.add_idle(conn, received)

    def _hand_to_loop(self, response: ResponseDriver) -> None:
        if self._stream_loop is None or self._drain_signal.is_set():
            self._resume(response)
        else:
            self._stream_loop.add(response)

    def handle_request(self, req: Request, conn: Connection) -> bool | ResponseDriver:
        """Serves a request, in a thread. Returns a ResponseDriver that the stream loop is to
        continue, or whether the connection may carry another request."""
        self.cfg.pre_request(self, req)
        self.nr += 1
        may_leave_thread = self._stream_loop is not None
        on_end = partial(self._call_post_request, req)
        response = ResponseDriver(req, conn, self.cfg, self.log, on_end, may_leave_thread)
        keeps_alive = self.alive and self.cfg.keepalive and self.max_keepalived
        if not keeps_alive or not conn.buffer.is_complete:
            response.resp.force_close()
        return self._drive(response, lambda: response.start(self.wsgi))

    def _resume_in_thread(self, response: ResponseDriver) -> bool | ResponseDriver:
        try:
            return self._drive(response, response.resume)
        except OSError as exc:
            self.log.debug("A client disconnected in the middle of its response: %s", exc)
            return False

    def _drive(
        self, response: ResponseDriver, advance: Callable[[], bool]
    ) -> bool | ResponseDriver:
        """``advance`` returns whether the response is complete."""
        try:
            if not advance():
                return response
        except BlockingIOError:  # after SO_SNDTIMEO
            self.log.info("Disconnecting a client that does not read its response")
            return False
        except OSError:
            raise
        except (Exception, SystemExit):
            if not response.resp.headers_sent:
                raise
            self.log.exception("Error handling request")
            return False
        return not response.resp.should_close()

    def _call_post_request(self, req: Request, environ: dict[str, Any], resp: Response) -> None:
        try:
            self.cfg.post_request(self, req, environ, resp)
        except Exception:
            self.log.exception("Exception in post_request hook")

    def _keepalive_after(
        self, conn: Connection, outcome: bool | ResponseDriver
    ) -> bool | ResponseDriver:
        """No body is left to be read from the socket: the request was received before."""
        return outcome

    def handle_error(
        self, req: Request | None, client: socket.socket, addr: Any, exc: BaseException
    ) -> None:
        """Responds in OpenAI's format. Nothing that the client sent is in the response or the
        log."""
        started_at = datetime.now()
        status, request_id = error_responses.status_of(exc), uuid.uuid4().hex
        if status == 500:
            self.log.error("Error handling a request id=%s", request_id, exc_info=exc)
        environ = default_environ(req, client, self.cfg) if req is not None else None
        log_rejected(status, request_id, addr, environ)
        if environ is not None:
            environ["REMOTE_ADDR"] = addr[0] if isinstance(addr, tuple) else ""
            resp = Response(req, client, self.cfg)
            resp.status = str(status)
            self.log.access(resp, req, environ, datetime.now() - started_at)
        with contextlib.suppress(OSError):
            client.sendall(error_responses.render(status, request_id))

    def _drain(self) -> None:
        for listener in self.sockets:  # else the kernel accepts connections that are never served
            listener.close()
        self._pending.expire_idle_by(time.monotonic() + _IDLE_LINGER_SECONDS)
        if not (self._shutdown.was_signalled or self._recycler.is_recycling):
            self._shutdown.start_deadline()
        while (self._pending or self._active) and not self._shutdown.must_exit:
            self.notify()
            self._shutdown.handle_signals()
            if self._shutdown.must_drain and self._active:
                self._end_responses()
            self._run_once(_DRAIN_POLL_SECONDS)

    def _end_responses(self) -> None:
        if not self._drain_signal.is_set():
            self.log.info("Ending the requests that still run: %d", len(self._active))
            self._drain_signal.set()
        if self._stream_loop:
            self._stream_loop.release_all()
        if self._shutdown.must_disconnect:
            for conn in self._active:
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RDWR)

    def _clean_up(self) -> None:
        self.tpool.shutdown(wait=False, cancel_futures=True)
        for conn in self._pending:
            self._pending.drop(conn)
        if self._stream_loop is not None:
            self._stream_loop.close()
        self.poller.close()
        if not self._active:  # else threads will still write to it
            self.method_queue.close()


def _is_plain(cfg: Config) -> bool:
    return not (
        cfg.is_ssl
        or cfg.protocol != "http"
        or "h2" in cfg.http_protocols
        or cfg.proxy_protocol != "off"
    )
