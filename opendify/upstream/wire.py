"""The connection to Dify: bytes, read in large pieces by a thread that is never deaf.

A thread that is blocked in a read can neither see its caller leave nor tell it that the answer is
still to come. So the answer to a request that accepts an event stream is *handed over*: httpx and
its pool choose the connection, make TLS, go through proxies and write the request; then they are
given a stand-in head at once, and the real bytes, head included, are read from the Wire by
whoever asked, with one ``poll`` for Dify, the caller and the clock. Then further questions can be
written to it (``ask``); ``give_back`` lets the pool have the connection again. All other requests
pass through unchanged.

httpcore's pool may close a connection that it takes for idle while another thread begins to use
it: it looks, and closes a moment later. So a Wire that is handed over does not heed it, and one
that was closed before it could be written to says so, that the request is sent on another.
"""

import select
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

from opendify.upstream.watch import Watch

READ_BYTES = 64 * 1024

# How long the rest of a TLS record may take before the rest is looked at again.
_RECORD_SECONDS = 0.05

# The least that can be waited for: no time at all would end the read with an error.
_MOMENT = 0.001

_MARK = b"\r\naccept: text/event-stream\r\n"
_STAND_IN_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
_STAND_IN_END = b"0\r\n\r\n"


class StaleConnection(httpcore.ReadError):
    """A kept connection had ended before the request came: nothing of an answer was heard."""


class Wire(httpcore.NetworkStream):
    """One connection, as httpcore's network stream and as the place where answers are read.

    ``idle_seconds`` is how long it may be kept between two questions, 0 where that is httpcore's
    business only: a proxy that is asked with whole addresses, and TLS inside TLS.
    """

    def __init__(self, stream: httpcore.NetworkStream, idle_seconds: float) -> None:
        self.idle_seconds = idle_seconds
        self._stream = stream
        self._stand_in = b""
        self._unsent_head = b""
        self._was_asked = False
        self._has_heard = False
        self._answering: _Answering | None = None
        self._is_handed_over = False
        self._is_closed = False
        self.has_answered = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._stand_in:
            data, self._stand_in = self._stand_in, b""
            return data
        try:
            data = self._stream.read(max_bytes, timeout)
        except httpcore.ReadError as exc:
            if self.has_answered and not self._has_heard:
                raise StaleConnection from exc
            raise
        if not data and self.has_answered and not self._has_heard:
            raise StaleConnection
        self._has_heard = True
        # What comes before the first request is a proxy's greeting (SOCKS), and no answer.
        self.has_answered = self.has_answered or (self._was_asked and bool(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Sends the bytes; the head of a question only with what follows it, at least an empty
        write: two sends would wake Dify twice."""
        self._has_heard = False
        self._was_asked = self._was_asked or buffer.startswith((b"POST ", b"GET "))
        is_first = buffer.startswith(b"POST ") and _MARK in buffer[:4096].lower()
        if is_first:
            self._stand_in = _STAND_IN_HEAD
            self._is_handed_over = True  # before it is looked whether it is closed: see close
            if not buffer.startswith(b"POST /"):
                self.idle_seconds = 0.0
        if self._is_closed and (is_first or not self._is_handed_over):
            self._stand_in = b""
            self.let_go()
            raise httpcore.WriteError("the pool has closed the connection")
        if is_first:
            self._unsent_head = buffer
            return
        self._answering = None
        whole, self._unsent_head = self._unsent_head + buffer, b""
        try:
            self._stream.write(whole, timeout)
        except (httpcore.NetworkError, httpcore.TimeoutException):
            self._is_handed_over = False
            raise

    def is_quiet(self) -> bool:
        """Whether a connection that is not asked is as the last answer left it: neither at its end
        nor with bytes that nobody asked for."""
        tls = self.get_extra_info("ssl_object")
        if self._is_closed or (tls is not None and tls.pending()):
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return not poll.poll(0)

    def ask(self, question: bytes, timeout: float | None) -> None:
        """Writes a further question, head and body, after an answer that was read to its end.

        Mostly the system takes it whole; else httpcore waits for it. Raises httpcore.WriteTimeout.
        A connection that has ended says so when it is read, as after httpcore's own writing: what
        Dify said before it closed is an answer.
        """
        self.has_answered = True
        self._answering = None
        try:
            sent = _send_at_once(self.get_extra_info("socket"), question)
            if sent < len(question):
                self._stream.write(question[sent:], timeout)
        except (httpcore.WriteError, OSError):
            pass

    def close(self) -> None:
        self._is_closed = True
        self.idle_seconds = 0.0
        if not self._is_handed_over:
            self._stream.close()

    def let_go(self) -> None:
        """An answer that was handed over is not read on: the connection is the pool's again, which
        closes it."""
        self._is_handed_over = False
        if self._is_closed:
            self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> "Wire":
        stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
        is_nested = self.get_extra_info("ssl_object") is not None
        return Wire(stream, 0.0 if is_nested else self.idle_seconds)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def fileno(self) -> int:
        """The descriptor to poll for an answer that was handed over."""
        return int(self._stream.get_extra_info("socket").fileno())

    @property
    def is_told_by_poll(self) -> bool:
        """Whether its descriptor shows everything that can be received next."""
        return self._answering is not None and self._answering.is_told_by_poll

    def take(self) -> bytes | None:
        """What ``receive`` has found before, or polled for: nothing else is looked at, and nothing
        waited for."""
        return None if self._answering is None else self._answering.take()

    def receive(self, until: float, watch: Watch) -> bytes | None:
        """The next bytes of an answer that was handed over.

        ``until`` is a time of ``time.monotonic``. Returns None when nothing came in time, or only a
        part of a TLS record, and b"" at the end of the connection. Raises CallerGone and
        ServerStopping when ``watch`` tells that first, and httpcore.ReadError.
        """
        answering = self._answering
        if answering is None or answering.watch is not watch:
            answering = self._answering = _Answering(self._stream, watch)
        return answering.receive(until)

    def give_back(self) -> None:
        """Ends the stand-in answer, so that closing the response frees the connection for reuse.

        Only after the real answer was read to its end.
        """
        self.has_answered = True
        self._stand_in = _STAND_IN_END
        self.let_go()


def _send_at_once(sock: socket.socket, data: bytes) -> int:
    """Returns how many bytes a socket takes without waiting. Raises OSError."""
    try:
        return sock.send(data)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return 0


class _Answering:
    """The connection while an answer comes in: what is the same for all reads is done once.

    Its socket does not block. httpcore's own way of reading would set a timeout and wait for it
    at every read, two further calls of the system; only TLS inside TLS has no other.
    """

    def __init__(self, stream: httpcore.NetworkStream, watch: Watch) -> None:
        self.watch = watch
        self._stream = stream
        self._socket = stream.get_extra_info("socket")
        self._tls = stream.get_extra_info("ssl_object")
        self._is_nested = self._tls is not getattr(self._socket, "_sslobj", None)
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), select.POLLIN)
        watch.register(self._poll)

    def receive(self, until: float) -> bytes | None:
        if self._is_nested and (ahead := self._read_ahead()) is not None:
            return ahead
        if not self._is_pending() and not self._wait(until):
            return None
        return self.take()

    def take(self) -> bytes | None:
        try:
            if self._is_nested:
                return self._stream.read(READ_BYTES, timeout=_RECORD_SECONDS)
            data: bytes = self._socket.recv(READ_BYTES)
            return data
        except (BlockingIOError, ssl.SSLWantReadError, httpcore.ReadTimeout):
            return None  # half a TLS record

    def _read_ahead(self) -> bytes | None:
        """What either layer of TLS inside TLS has taken from below and not yet handed out, which
        no poll shows."""
        try:
            return self._stream.read(READ_BYTES, timeout=_MOMENT)
        except httpcore.ReadTimeout:
            return None

    @property
    def is_told_by_poll(self) -> bool:
        return not (self._is_nested or self._is_pending())

    def _is_pending(self) -> bool:
        return self._tls is not None and self._tls.pending() > 0

    def _wait(self, until: float) -> bool:
        ready = self._poll.poll(max(0.0, until - time.monotonic()) * 1000)
        self.watch.check(ready)
        return bool(ready)


class Backend(httpcore.NetworkBackend):
    """Opens connections as httpcore does, each as a Wire."""

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Wire:
        stream = self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        return Wire(stream, self._idle_seconds)


class Transport(httpx.HTTPTransport):
    """httpx's own transport, pool and proxies included, over Wires."""

    def __init__(
        self,
        *,
        limits: httpx.Limits,
        proxy: str | None = None,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        super().__init__(limits=limits, proxy=proxy, verify=verify)
        # httpcore's pools take a backend; httpx's transport, which makes the pool, does not pass
        # one on.
        self._pool._network_backend = Backend(limits.keepalive_expiry or 0.0)
