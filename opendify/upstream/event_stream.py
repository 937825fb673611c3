"""The answer to a question as it arrives: bytes from the connection, events to whoever asked."""

import logging
import time

import httpx

from opendify import errors, sse
from opendify.config.models import Model
from opendify.dify.error_mapping import (
    packed,
    parse_error_response,
    to_error,
    wrong_kind,
)
from opendify.streaming import IMMEDIATELY, WaitFor
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

MAX_REFUSAL_BYTES = 64 * 1024

# An answer that has said its last word is read on for this long, so that its connection can be
# used again; Dify 1.13 holds chatflow streams open for a second, which is not worth a thread.
DRAIN_SECONDS = 0.05


class EventStream:
    """The events of one answer, read until what is in its ``watch`` ends it. Whoever gets one must
    close it.

    ``wait`` is what ``read`` waits for, but that it also ends at ``dead_at``, a time of
    ``time.monotonic``; where it ``is_at_hand``, there is nothing to wait for, or nothing that shows
    on the descriptor.
    """

    def __init__(
        self, pending: PendingResponse, model: Model, read_timeout: float, watch: Cancellation
    ) -> None:
        self._pending = pending
        self._model = model
        self._read_timeout = read_timeout
        self.watch = watch
        self._has_begun = False
        self._refused_by = 0.0
        self._is_stream = False
        self._unpacker: Unpacker | None = None
        self._decoder = sse.Decoder()
        self._refusal = b""
        self.is_at_hand = False
        self.dead_at = time.monotonic() + read_timeout
        self.wait = WaitFor(pending.fileno(), self.dead_at)

    def read(self, until: float) -> list[bytes] | None:
        """The payloads of the events that arrive next, an empty list when none came by ``until``.

        ``until`` is a time of ``time.monotonic``. None is the end of the stream. Raises
        CallerGone, ServerStopping, and DifyError for every other way in which an answer can fail
        to come; what came before a fault is handed out first.
        """
        while not self._is_over():
            body = b"" if self._is_packed() else self._receive(min(until, self.dead_at))
            now = time.monotonic()
            if body is not None:
                self.dead_at = now + self._read_timeout
                if payloads := self._events(body):
                    return payloads
            elif now >= self.dead_at:
                silence = f"nothing came for {self._read_timeout:g} s"
                raise self._explained(
                    errors.UpstreamTimeout(
                        f"Dify has sent nothing for {self._read_timeout:g} seconds; "
                        "the answer was given up."
                    ),
                    silence,
                )
            if now >= until:
                return []
        if self._unpacker is not None and not self._unpacker.is_whole:
            raise errors.BadUpstreamResponse("Dify's answer is broken: it ends in the middle.")
        return None

    def take(self) -> list[bytes] | None:
        """What ``read`` gives, to one who has polled: who is in ``watch`` is not looked at."""
        if self._is_packed():
            return self.read(IMMEDIATELY)
        try:
            body = self._pending.read_available()
        except httpx.HTTPError as exc:
            raise self._failed(exc) from exc
        if body is None:
            return self.read(IMMEDIATELY)
        self.dead_at = time.monotonic() + self._read_timeout
        return self._events(body)

    def _receive(self, until: float) -> bytes | None:
        try:
            return self._pending.read(until, self.watch)
        except httpx.HTTPError as exc:
            raise self._failed(exc) from exc

    def _events(self, body: bytes) -> list[bytes]:
        pending = self._pending
        if not pending.status:
            self.is_at_hand = pending.is_ready
            self.wait = WaitFor(pending.fileno(), self.dead_at)  # it may have been sent again
            return []
        if not self._has_begun:
            self._begin()
        body = self._unpacked(body)
        self.is_at_hand = pending.is_ready or self._is_packed()
        if not self._is_stream:
            self._refusal = (self._refusal + body)[:MAX_REFUSAL_BYTES]
            is_late = time.monotonic() > self._refused_by
            if is_late or self._is_over() or len(self._refusal) == MAX_REFUSAL_BYTES:
                raise self._refused()
            return []
        try:
            return self._decoder.feed(body)
        except sse.EventTooLarge as exc:
            raise errors.BadUpstreamResponse(
                f"Dify sent an event that is unreadable ({exc})."
            ) from exc

    def _begin(self) -> None:
        """The head of the answer is there."""
        answer = self._pending
        media_type = answer.headers.get("content-type", "").lower()
        self._has_begun = True
        self._refused_by = time.monotonic() + self._read_timeout  # for one that comes in drops
        self._is_stream = answer.status == 200 and media_type.startswith("text/event-stream")
        try:
            self._unpacker = new_unpacker(answer.headers)
        except UnknownCoding as exc:
            raise self._of_answer(packed(self._model.name, str(exc))) from exc

    def _is_packed(self) -> bool:
        """Whether there is more in what was received by now."""
        return self._unpacker is not None and self._unpacker.has_more

    def _is_over(self) -> bool:
        return self._pending.is_complete and not self._is_packed()

    def _unpacked(self, body: bytes) -> bytes:
        """The next piece of what the body holds: a little of it may unpack to very much."""
        if self._unpacker is None:
            return body
        try:
            if body:
                self._unpacker.feed(body)
            return self._unpacker.take() if self._unpacker.has_more else b""
        except BadPacking as exc:
            raise errors.BadUpstreamResponse(f"Dify's answer is unreadable: {exc}.") from exc

    def _refused(self) -> errors.DifyError:
        status, headers = self._pending.status, self._pending.headers
        if status == 200:
            return self._of_answer(wrong_kind(self._model.name, headers, "no event stream"))
        refusal = parse_error_response(status, headers, self._refusal)
        return self._of_answer(to_error(refusal, self._model.name))

    def _failed(self, exc: httpx.HTTPError) -> errors.OpenDifyError:
        """What ended the answer, which may have begun."""
        status, cause = self._pending.status, causes.find_cause(exc)
        if not isinstance(exc, httpx.ReadError | httpx.RemoteProtocolError):
            return to_network_error(exc, self._model)
        if isinstance(exc, httpx.ReadError):
            cause = cause or causes.BROKEN_OFF
            told = causes.BROKEN_OFF if status else cause
            return self._explained(errors.BadUpstreamResponse(told.message), cause.log)
        if status not in (0, 200):
            return self._refused()
        if not status and self._pending.has_ended:
            cause = causes.CLOSED
        if cause is not None:
            return self._explained(errors.BadUpstreamResponse(cause.message), cause.log)
        return self._explained(
            errors.BadUpstreamResponse(f"Dify's answer is broken: {exc}."), str(exc)
        )

    def _explained(self, error: errors.DifyError, cause: str) -> errors.DifyError:
        """The error, with its cause for the log."""
        error.details = causes.describe(self._model, cause)
        return error

    def _of_answer(self, error: errors.DifyError) -> errors.DifyError:
        """The error, with what the log is to say of the answer."""
        content_type = self._pending.headers.get("content-type", "")
        error.details = causes.describe_answer(self._model, self._pending.status, content_type)
        return error

    def fileno(self) -> int:
        """The descriptor to poll for what comes next."""
        return self._pending.fileno()

    def drain(self) -> None:
        """Reads a finished answer to the end of its body for a moment, then closes."""
        until = time.monotonic() + DRAIN_SECONDS
        self.watch = NEVER
        try:
            while not self._is_over() and self.read(until):
                pass
        except errors.OpenDifyError:
            log.debug("the rest of a finished answer was unreadable")
        self.close()

    def close(self) -> None:
        """Frees the connection: for reuse when the answer was read to its end, else for good."""
        self._pending.close()
