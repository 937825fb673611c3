"""The answer to a question as it arrives: bytes from the wire, events to whoever asked."""

import logging
import time
from collections.abc import Callable

import httpcore

from opendify import errors, sse
from opendify.dify.failures import parse_refusal, to_error
from opendify.steps import AT_ONCE, Wait
from opendify.upstream.http1 import Answer, BadAnswer
from opendify.upstream.kept import Loan
from opendify.upstream.watch import UNWATCHED, Watch

log = logging.getLogger(__name__)

MAX_REFUSAL_BYTES = 64 * 1024

# An answer that has said its last word is read on for this long, so that its connection can be
# used again; Dify 1.13 holds chatflow streams open for a second, which is not worth a thread.
DRAIN_SECONDS = 0.05

# How long after a question the end of a kept connection can still mean that Dify had closed it
# before the question came.
REUSE_RACE_SECONDS = 1.0

_BROKEN_OFF = "The connection to Dify broke in the answer."


class EventStream:
    """The events of one answer, read until what is in its ``watch`` ends it. Whoever gets one must
    close it. ``send`` puts the question on its way, with True a second time.

    ``wait`` is what ``read`` waits for, but that it also ends at ``dead_at``, a time of
    ``time.monotonic``; where it ``is_at_hand``, there is nothing to wait for, or nothing that shows
    on the descriptor.
    """

    def __init__(
        self,
        send: Callable[[bool], Loan],
        model: str,
        read_timeout: float,
        watch: Watch,
    ) -> None:
        self._send = send
        self._model = model
        self._read_timeout = read_timeout
        self.watch = watch
        self._connect(is_repeat=False)

    def _connect(self, is_repeat: bool) -> None:
        loan = self._send(is_repeat)
        self._loan: Loan | None = loan
        self._wire = loan.wire
        self._is_secure = loan.wire.get_extra_info("ssl_object") is not None
        self._answer = Answer()
        self._is_events = False
        self._decoder = sse.Decoder()
        self._refusal = b""
        self._failure: errors.DifyError | None = None
        self._may_reconnect = True
        self.is_at_hand = False
        self.dead_at = time.monotonic() + self._read_timeout
        self.wait = Wait(loan.wire.fileno(), self.dead_at)

    def read(self, until: float) -> list[bytes] | None:
        """The payloads of the events that arrive next, an empty list when none came by ``until``.

        ``until`` is a time of ``time.monotonic``. None is the end of the stream. Raises
        CallerGone, ServerStopping, and DifyError for every other way in which an answer can fail
        to come; what came before a fault is handed out first.
        """
        while self._failure is None and not self._answer.complete:
            data = self._receive(min(until, self.dead_at))
            now = time.monotonic()
            if data is not None:
                self.dead_at = now + self._read_timeout
                if payloads := self._events(data):
                    return payloads
            elif now >= self.dead_at:
                raise errors.DifyTimeout(
                    f"Dify has sent nothing for {self._read_timeout:g} seconds; "
                    "the answer was given up."
                )
            if now >= until:
                return []
        if self._failure is not None:
            raise self._failure
        return None

    def take(self) -> list[bytes] | None:
        """What ``read`` gives, to one who has polled: who is in ``watch`` is not looked at."""
        try:
            data = self._wire.take()
        except (httpcore.ReadError, OSError) as exc:
            raise errors.DifyBroken(_BROKEN_OFF) from exc
        if not data:
            return self.read(AT_ONCE)
        self.dead_at = time.monotonic() + self._read_timeout
        return self._events(data)

    def _receive(self, until: float) -> bytes | None:
        try:
            data = self._wire.receive(until, self.watch)
        except (httpcore.ReadError, OSError) as exc:
            if self._reconnect():
                return b""
            raise errors.DifyBroken(_BROKEN_OFF) from exc
        if data == b"":
            if self._reconnect():
                return b""
            try:
                self._answer.end()
            except BadAnswer as exc:
                raise self._broken(exc) from exc
        elif data is not None:
            self._may_reconnect = False
        return data

    def _reconnect(self) -> bool:
        """Sends the question again where a kept connection turned out to be closed.

        Dify (or a proxy before it) closes idle connections; when the question crosses that, no
        byte of an answer comes and nothing was begun. Only a connection that has carried an
        answer before can be in that state, and it shows at once: a Dify that dies later may have
        begun the run.
        """
        waited = time.monotonic() - (self.dead_at - self._read_timeout)
        if not (self._may_reconnect and self._wire.has_answered and waited < REUSE_RACE_SECONDS):
            return False
        self.close()
        self._connect(is_repeat=True)
        self._may_reconnect = False
        return True

    def _events(self, data: bytes) -> list[bytes]:
        self.is_at_hand = self._is_secure and not self._wire.is_told_by_poll
        body = self._body(data) if data else b""
        if self._answer.complete or self._failure is not None:
            self.is_at_hand = True
        if not self._answer.status:
            return []
        if not self._is_events:
            self._is_events = self._is_event_stream()
        if not self._is_events:
            self._refusal = (self._refusal + body)[:MAX_REFUSAL_BYTES]
            if self._answer.complete or len(self._refusal) == MAX_REFUSAL_BYTES:
                raise self._refused()
            return []
        try:
            return self._decoder.feed(body)
        except sse.EventTooLarge as exc:
            raise errors.DifyBroken(f"Dify sent an event that is unreadable ({exc}).") from exc

    def _body(self, data: bytes) -> bytes:
        try:
            return self._answer.feed(data)
        except BadAnswer as exc:
            self._failure = self._broken(exc)
            return exc.body

    def _is_event_stream(self) -> bool:
        media_type = self._answer.headers.get("content-type", "")
        coding = self._answer.headers.get("content-encoding", "identity")
        return (
            self._answer.status == 200
            and media_type.lower().startswith("text/event-stream")
            and coding.strip().lower() == "identity"
        )

    def _refused(self) -> errors.DifyError:
        answer = self._answer
        if answer.status == 200:
            return errors.DifyBroken(
                f"Dify answered model '{self._model}' with something that is no event stream. "
                "Is DIFY_API_BASE the address of its API, ending in /v1?"
            )
        return to_error(parse_refusal(answer.status, answer.headers, self._refusal), self._model)

    def _broken(self, exc: BadAnswer) -> errors.DifyError:
        if self._answer.status not in (0, 200):
            return self._refused()
        return errors.DifyBroken(f"Dify's answer is broken: {exc}.")

    def fileno(self) -> int:
        """The descriptor to poll for what comes next."""
        return self._wire.fileno()

    def drain(self) -> None:
        """Reads a finished answer to the end of its body for a moment, then closes."""
        until = time.monotonic() + DRAIN_SECONDS
        self.watch = UNWATCHED
        try:
            while not self._answer.complete and self.read(until):
                pass
        except errors.OpenDifyError:
            log.debug("the rest of a finished answer was unreadable")
        self.close()

    def close(self) -> None:
        """Frees the connection: for reuse when the answer was read to its end, else for good."""
        loan, self._loan = self._loan, None
        if loan is not None:
            loan.end(self._answer.complete and self._answer.reusable)
