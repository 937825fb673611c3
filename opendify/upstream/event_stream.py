"""The event stream of a response: bytes from the connection in, payloads of events out."""

import logging
import time

import httpx

from opendify import errors, sse
from opendify.config.models import Model
from opendify.dify.error_mapping import (
    compressed_response_error,
    parse_error_response,
    to_error,
    unexpected_content_error,
)
from opendify.streaming import NO_WAIT, WaitFor
from opendify.upstream import causes
from opendify.upstream.cancellation import NEVER, Cancellation
from opendify.upstream.network_errors import to_network_error
from opendify.upstream.transport.pending_response import PendingResponse
from opendify.upstream.unpacking import (
    BadPacking,
    UnknownCoding,
    Unpacker,
    new_unpacker,
)

log = logging.getLogger(__name__)

MAX_ERROR_BYTES = 64 * 1024

# After its last event a response is read on for this long, so that its connection can be reused.
# Dify 1.13 keeps chatflow streams open for a second, which is not worth blocking a thread.
DRAIN_SECONDS = 0.05


class EventStream:
    """The events of one response; reading can be cancelled by ``cancellation``. Must be closed.

    ``wait`` describes what ``read`` waits for; in addition ``read`` times out at ``times_out_at``,
    a time of ``time.monotonic``. Where ``is_ready``, there is nothing to wait for, or nothing that
    makes the descriptor readable.
    """

    def __init__(
        self,
        pending: PendingResponse,
        model: Model,
        read_timeout: float,
        cancellation: Cancellation,
    ) -> None:
        self._pending = pending
        self._model = model
        self._read_timeout = read_timeout
        self.cancellation = cancellation
        self._has_begun = False
        self._error_body_deadline = 0.0
        self._is_stream = False
        self._unpacker: Unpacker | None = None
        self._decoder = sse.Decoder()
        self._error_body = b""
        self.is_ready = False
        self.times_out_at = time.monotonic() + read_timeout
        self.wait = WaitFor(pending.fileno(), self.times_out_at)

    def read(self, until: float) -> list[bytes] | None:
        """The payloads of the events that arrive next, an empty list when none arrived by
        ``until``, a time of ``time.monotonic``. None is the end of the stream.

        Raises ClientDisconnected, ServerStopping, and DifyError for every other failure; what
        arrived before a failure is returned first.
        """
        while not self._is_complete():
            body = b"" if self._has_compressed() else self._receive(min(until, self.times_out_at))
            now = time.monotonic()
            if body is not None:
                self.times_out_at = now + self._read_timeout
                if payloads := self._events(body):
                    return payloads
            elif now >= self.times_out_at:
                silence = f"nothing came for {self._read_timeout:g} s"
                raise self._with_cause(
                    errors.UpstreamTimeout(
                        f"Dify has sent nothing for {self._read_timeout:g} seconds; "
                        "the answer was given up."
                    ),
                    silence,
                )
            if now >= until:
                return []
        if self._unpacker is not None and not self._unpacker.is_complete:
            raise errors.BadUpstreamResponse("Dify's answer is broken: it ends in the middle.")
        return None

    def read_available(self) -> list[bytes] | None:
        """As ``read``, for a caller that has polled: does not wait, ignores ``cancellation``."""
        if self._has_compressed():
            return self.read(NO_WAIT)
        try:
            body = self._pending.read_available()
        except httpx.HTTPError as exc:
            raise self._to_error(exc) from exc
        if body is None:
            return self.read(NO_WAIT)
        self.times_out_at = time.monotonic() + self._read_timeout
        return self._events(body)

    def _receive(self, until: float) -> bytes | None:
        try:
            return self._pending.read(until, self.cancellation)
        except httpx.HTTPError as exc:
            raise self._to_error(exc) from exc

    def _events(self, body: bytes) -> list[bytes]:
        pending = self._pending
        if not pending.status:
            self.is_ready = pending.is_ready
            self.wait = WaitFor(pending.fileno(), self.times_out_at)  # new after a resend
            return []
        if not self._has_begun:
            self._begin()
        if self._unpacker is not None:
            body = self._decompress(self._unpacker, body)
        self.is_ready = pending.is_ready or self._has_compressed()
        if not self._is_stream:
            self._error_body = (self._error_body + body)[:MAX_ERROR_BYTES]
            is_late = time.monotonic() > self._error_body_deadline
            if is_late or self._is_complete() or len(self._error_body) == MAX_ERROR_BYTES:
                raise self._error_from_response()
            return []
        try:
            return self._decoder.feed(body)
        except sse.EventTooLarge as exc:
            raise errors.BadUpstreamResponse(
                f"Dify sent an event that is unreadable ({exc})."
            ) from exc

    def _begin(self) -> None:
        """Evaluates the head of the response."""
        response = self._pending
        media_type = response.headers.get("content-type", "").lower()
        self._has_begun = True
        self._error_body_deadline = (
            time.monotonic() + self._read_timeout
        )  # for a body that trickles in
        self._is_stream = response.status == 200 and media_type.startswith("text/event-stream")
        try:
            self._unpacker = new_unpacker(response.headers)
        except UnknownCoding as exc:
            raise self._with_response_details(
                compressed_response_error(self._model.name, str(exc))
            ) from exc

    def _has_compressed(self) -> bool:
        """Whether received bytes remain to be decompressed."""
        return self._unpacker is not None and self._unpacker.has_more

    def _is_complete(self) -> bool:
        return self._pending.is_complete and not self._has_compressed()

    def _decompress(self, unpacker: Unpacker, body: bytes) -> bytes:
        """The next piece of the decompressed body: few bytes may decompress to very many."""
        try:
            if body:
                unpacker.feed(body)
            return unpacker.take() if unpacker.has_more else b""
        except BadPacking as exc:
            raise errors.BadUpstreamResponse(f"Dify's answer is unreadable: {exc}.") from exc

    def _error_from_response(self) -> errors.DifyError:
        status, headers = self._pending.status, self._pending.headers
        if status == 200:
            return self._with_response_details(
                unexpected_content_error(self._model.name, headers, "no event stream")
            )
        error_response = parse_error_response(status, headers, self._error_body)
        return self._with_response_details(to_error(error_response, self._model.name))

    def _to_error(self, exc: httpx.HTTPError) -> errors.OpenDifyError:
        """The error for a failure of the connection, before or within the response."""
        status, cause = self._pending.status, causes.find_cause(exc)
        if not isinstance(exc, httpx.ReadError | httpx.RemoteProtocolError):
            return to_network_error(exc, self._model)
        if isinstance(exc, httpx.ReadError):
            cause = cause or causes.DISCONNECTED
            shown = causes.DISCONNECTED if status else cause
            return self._with_cause(errors.BadUpstreamResponse(shown.message), cause.log)
        if status not in (0, 200):
            return self._error_from_response()
        if not status and self._pending.has_ended:
            cause = causes.CLOSED
        if cause is not None:
            return self._with_cause(errors.BadUpstreamResponse(cause.message), cause.log)
        return self._with_cause(
            errors.BadUpstreamResponse(f"Dify's answer is broken: {exc}."), str(exc)
        )

    def _with_cause(self, error: errors.DifyError, cause: str) -> errors.DifyError:
        """The error with its cause for the log."""
        error.details = causes.describe(self._model, cause)
        return error

    def _with_response_details(self, error: errors.DifyError) -> errors.DifyError:
        """The error with the details of the response for the log."""
        status, headers = self._pending.status, self._pending.headers
        return causes.with_response_details(error, self._model, status, headers)

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._pending.fileno()

    def drain(self) -> None:
        """Reads a finished response to the end of its body, at most DRAIN_SECONDS, then closes."""
        until = time.monotonic() + DRAIN_SECONDS
        self.cancellation = NEVER
        try:
            while not self._is_complete() and self.read(until):
                pass
        except errors.OpenDifyError:
            log.debug("the rest of a finished response was unreadable")
        self.close()

    def close(self) -> None:
        """Releases the connection if the response was read to its end, else closes it."""
        self._pending.close()
