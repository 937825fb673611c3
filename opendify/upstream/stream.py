"""The answer to a question as it arrives: bytes from the wire, events to whoever asked."""

import logging
import time
from collections.abc import Callable

import httpcore

from opendify import errors, sse
from opendify.config.models import Model
from opendify.dify.failures import packed, parse_refusal, to_error, wrong_kind
from opendify.steps import AT_ONCE, Wait
from opendify.upstream import causes
from opendify.upstream.http1 import Answer, BadAnswer
from opendify.upstream.kept import Loan
from opendify.upstream.unpacking import BadPacking, UnknownCoding, Unpacker, new_unpacker
from opendify.upstream.watch import UNWATCHED, Watch

log = logging.getLogger(__name__)

MAX_REFUSAL_BYTES = 64 * 1024

# An answer that has said its last word is read on for this long, so that its connection can be
# used again; Dify 1.13 holds chatflow streams open for a second, which is not worth a thread.
DRAIN_SECONDS = 0.05

# How long after a question the end of a kept connection can still mean that Dify had closed it
# before the question came.
REUSE_RACE_SECONDS = 1.0


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
        model: Model,
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
        self._has_begun = False
        self._refused_by = 0.0
        self._is_stream = False
        self._unpacker: Unpacker | None = None
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
        while self._failure is None and not self._is_over():
            data = b"" if self._is_packed() else self._receive(min(until, self.dead_at))
            now = time.monotonic()
            if data is not None:
                self.dead_at = now + self._read_timeout
                if payloads := self._events(data):
                    return payloads
            elif now >= self.dead_at:
                silence = f"nothing came for {self._read_timeout:g} s"
                raise self._explained(
                    errors.DifyTimeout(
                        f"Dify has sent nothing for {self._read_timeout:g} seconds; "
                        "the answer was given up."
                    ),
                    silence,
                )
            if now >= until:
                return []
        if self._failure is not None:
            raise self._failure
        if self._unpacker is not None and not self._unpacker.is_whole:
            raise errors.DifyBroken("Dify's answer is broken: it ends in the middle.")
        return None

    def take(self) -> list[bytes] | None:
        """What ``read`` gives, to one who has polled: who is in ``watch`` is not looked at."""
        try:
            data = self._wire.take()
        except (httpcore.ReadError, OSError) as exc:
            raise self._broken_off(exc) from exc
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
            raise self._broken_off(exc) from exc
        if data == b"":
            if self._reconnect():
                return b""
            try:
                self._answer.end()
            except BadAnswer as exc:
                raise self._ended_early(exc) from exc
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
        if self._answer.status and not self._has_begun:
            self._begin()
        body = self._unpacked(body)
        if self._answer.complete or self._failure is not None or self._is_packed():
            self.is_at_hand = True
        if not self._answer.status:
            return []
        if not self._is_stream:
            self._refusal = (self._refusal + body)[:MAX_REFUSAL_BYTES]
            is_late = time.monotonic() > self._refused_by
            if is_late or self._is_over() or len(self._refusal) == MAX_REFUSAL_BYTES:
                raise self._refused()
            return []
        try:
            return self._decoder.feed(body)
        except sse.EventTooLarge as exc:
            raise errors.DifyBroken(f"Dify sent an event that is unreadable ({exc}).") from exc

    def _begin(self) -> None:
        """The head of the answer is there."""
        answer = self._answer
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
        return self._answer.complete and not self._is_packed()

    def _unpacked(self, body: bytes) -> bytes:
        """The next piece of what the body holds: a little of it may unpack to very much."""
        if self._unpacker is None:
            return body
        try:
            if body:
                self._unpacker.feed(body)
            return self._unpacker.take() if self._unpacker.has_more else b""
        except BadPacking as exc:
            raise errors.DifyBroken(f"Dify's answer is unreadable: {exc}.") from exc

    def _body(self, data: bytes) -> bytes:
        try:
            return self._answer.feed(data)
        except BadAnswer as exc:
            self._failure = self._broken(exc)
            if not self._answer.status and causes.is_alert(data):
                wants_tls = causes.WANTS_TLS
                self._failure = self._explained(errors.DifyBroken(wants_tls.message), wants_tls.log)
            return exc.body

    def _refused(self) -> errors.DifyError:
        answer = self._answer
        if answer.status == 200:
            return self._of_answer(wrong_kind(self._model.name, answer.headers, "no event stream"))
        refusal = parse_refusal(answer.status, answer.headers, self._refusal)
        return self._of_answer(to_error(refusal, self._model.name))

    def _broken(self, exc: BadAnswer) -> errors.DifyError:
        if self._answer.status not in (0, 200):
            return self._refused()
        return self._explained(errors.DifyBroken(f"Dify's answer is broken: {exc}."), str(exc))

    def _ended_early(self, exc: BadAnswer) -> errors.DifyError:
        closed = causes.CLOSED
        if not self._answer.status:
            return self._explained(errors.DifyBroken(closed.message), closed.log)
        return self._broken(exc)

    def _broken_off(self, exc: BaseException) -> errors.DifyError:
        cause = causes.find_cause(exc) or causes.BROKEN_OFF
        if self._answer.status:
            return self._explained(errors.DifyBroken(causes.BROKEN_OFF.message), cause.log)
        return self._explained(errors.DifyBroken(cause.message), cause.log)

    def _explained(self, error: errors.DifyError, cause: str) -> errors.DifyError:
        """The error, with its cause for the log."""
        error.details = causes.describe(self._model, cause)
        return error

    def _of_answer(self, error: errors.DifyError) -> errors.DifyError:
        """The error, with what the log is to say of the answer."""
        answer = self._answer
        content_type = answer.headers.get("content-type", "")
        error.details = causes.describe_answer(self._model, answer.status, content_type)
        return error

    def fileno(self) -> int:
        """The descriptor to poll for what comes next."""
        return self._wire.fileno()

    def drain(self) -> None:
        """Reads a finished answer to the end of its body for a moment, then closes."""
        until = time.monotonic() + DRAIN_SECONDS
        self.watch = UNWATCHED
        try:
            while not self._is_over() and self.read(until):
                pass
        except errors.OpenDifyError:
            log.debug("the rest of a finished answer was unreadable")
        self.close()

    def close(self) -> None:
        """Frees the connection: for reuse when the answer was read to its end, else for good."""
        loan, self._loan = self._loan, None
        if loan is not None:
            loan.end(self._answer.complete and self._answer.reusable)
