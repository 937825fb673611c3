"""One question to Dify and its answer, event by event, whatever shape the answer's end has."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress

from opendify import errors
from opendify.config.models import Model
from opendify.dify import endpoints
from opendify.dify.error_mapping import ErrorResponse, to_error
from opendify.dify.events import (
    AgentStep,
    Event,
    Failed,
    FileGenerated,
    HumanInputNeeded,
    Ids,
    MessageEnded,
    NodeFinished,
    NodeStarted,
    Paused,
    Reasoning,
    Replaced,
    RunFinished,
    Text,
)
from opendify.dify.parser import (
    NotAnEvent,
    Payload,
    collect_ids,
    parse_event,
    parse_payload,
)
from opendify.streaming import BLOCKING, IMMEDIATELY, WaitFor
from opendify.upstream import causes
from opendify.upstream.background_reader import Steps
from opendify.upstream.cancellation import NEVER
from opendify.upstream.client import DifyClient
from opendify.upstream.event_stream import EventStream

log = logging.getLogger(__name__)

# Dify 1.11 sends ``message_end`` (usage, sources) right after ``workflow_finished``, 1.13.0 never.
SECONDS_FOR_MESSAGE_END = 2.0

# A run can be stopped only once Dify has named it; a chat's first word may take long.
SECONDS_TO_NAME_A_RUN = 60.0

# Dify 1.13 keeps the partial answer of a stopped chat only where it is read to its end.
SECONDS_AFTER_STOP = 2.0

# What an event takes beside its texts, so that endlessly many empty ones are too long as well.
_SIZE_OF_OBJECT = 200


class DifyRun:
    """The answer to one question.

    ``next`` gives its events; the last one is a MessageEnded. ``ids`` grows as Dify tells its
    names for the answer; ``begun_at`` is when (``time.monotonic``) Dify first said anything but
    that it is alive, ``has_run`` whether that was more than a refusal. ``close`` belongs to every
    turn, also to one that failed: it stops a run that nobody listens to any more.
    """

    def __init__(
        self, client: DifyClient, model: Model, mode: str, user: str, stream: EventStream
    ) -> None:
        self.ids = Ids()
        self.begun_at: float | None = None
        self.has_run = False
        self.ended = False
        self._client = client
        self._model = model
        self._mode = mode
        self._user = user
        self._stream = stream
        self._failure: errors.DifyError | None = None
        self._is_named = False
        self._run_finished = False
        self._has_failed = False
        self._is_stopped = False
        self._is_closed = False
        self._over: Future[None] = Future()
        self._deadline = float("inf")
        self._size = 0

    def next_events(self, until: float) -> list[Event]:
        """The events that came next, together; none when none came by ``until``, a time of
        ``time.monotonic`` or AT_ONCE for one who has polled, and also earlier, when Dify has only
        shown that it works.

        Not to be called after the last one. Raises CallerGone, ServerStopping and DifyError; what
        came before a failure is handed out first.
        """
        events: list[Event] = []
        if self._failure is None:
            try:
                payloads = (
                    self._stream.take()
                    if until == IMMEDIATELY
                    else self._stream.read(min(until, self._deadline))
                )
            except errors.DifyError as exc:
                self._has_failed = True
                self._explain(exc)
                raise
            if payloads is None or (not payloads and time.monotonic() >= self._deadline):
                return [self._without_message_end()]
            self._take_all(payloads, events)
            if self._size > self._client.max_answer:
                self._fail(_too_long(self._client.max_answer))
        if self._failure is not None and not events:
            raise self._failure
        return events

    def wait(self, until: float) -> WaitFor:
        """What ``next`` waits for, until then at most."""
        stream = self._stream
        if self._failure is not None or stream.is_at_hand:
            return BLOCKING
        stream.wait.until = min(until, self._deadline, stream.dead_at)
        return stream.wait

    def close(self, afterwards: Callable[[], None] | None = None) -> None:
        """Frees the connection, and stops the run where its end was not seen.

        ``afterwards`` is called when the run is over, and may take its time. Where nothing is
        wrong but that nobody listens, the thread is not kept for that: the watcher listens, until
        Dify has named the run, and for a moment after the stop where Dify would else not keep what
        it said. Twice is harmless.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if not self.ended:
            self._stop()
            if not self._has_failed:
                self._client.watcher.add(self._leave(afterwards))
                return
        self._finish()
        if afterwards:
            afterwards()

    def when_over(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` once, on any thread, when the run is over in Dify as far as can be
        known: it has ended or failed, Dify has answered the stop, or it is not read any more."""
        if self.ended:
            self._set_over()
        self._over.add_done_callback(lambda _: callback())

    def await_end(self, seconds: float) -> None:
        """Waits, for so long at most, until the run is over."""
        wait([self._over], seconds)

    def _finish(self) -> None:
        """Frees the connection. The run is over, unless Dify has still to answer its stop."""
        try:
            self._release()
        finally:
            if self.ended or not self._is_stopped:
                self._set_over()

    def _set_over(self) -> None:
        with suppress(InvalidStateError):  # it has ended and was stopped, for example
            self._over.set_result(None)

    def _release(self) -> None:
        if self.ended:
            self._stream.drain()
        else:
            self._stream.close()

    def _leave(self, afterwards: Callable[[], None] | None) -> Steps:
        self._stream.watch = NEVER
        try:
            if not self._is_stopped:
                yield from self._listen(SECONDS_TO_NAME_A_RUN, lambda: bool(self.ids.task_id))
                if not self.ended:
                    self._stop()
            if endpoints.keeps_only_what_is_read(self._mode):
                yield from self._listen(SECONDS_AFTER_STOP, lambda: False)
        finally:
            self._finish()
            if afterwards:  # the watcher has others to look after meanwhile
                threading.Thread(target=afterwards, name="afterwards", daemon=True).start()

    def _listen(self, seconds: float, is_enough: Callable[[], bool]) -> Steps:
        until = time.monotonic() + seconds
        try:
            while not (self._has_failed or self.ended or is_enough()) and time.monotonic() < until:
                yield WaitFor(self._stream.fileno(), until)
                self.next_events(time.monotonic())
        except errors.OpenDifyError:
            log.debug("an answer failed after its caller had left")

    def _stop(self) -> None:
        if self.ids.task_id:
            self._is_stopped = True
            path = endpoints.stop_path(self._mode, self.ids.task_id)
            self._client.stop(self._model, path, self._user, self._set_over)

    def _take_all(self, payloads: list[bytes], events: list[Event]) -> None:
        """Adds what the payloads ask of us to ``events``, to the end of the answer."""
        for raw in payloads:
            if self.ended or self._failure is not None:
                return
            if raw.strip():  # else a ping, where a gateway writes it out as an event of no data
                self._take_raw(raw, events)

    def _take_raw(self, raw: bytes, events: list[Event]) -> None:
        try:
            self._take(parse_payload(raw), len(raw), events)
        except NotAnEvent as exc:
            self._fail(
                errors.BadUpstreamResponse(f"Dify sent an event that is unreadable ({exc}).")
            )

    def _fail(self, error: errors.DifyError) -> None:
        self._has_failed = True
        self._failure = self._explain(error)

    def _explain(self, error: errors.DifyError) -> errors.DifyError:
        """The error, for whose cause in the log its own sentence is used where there is no
        other: it is ours, and holds no words of Dify."""
        error.details = error.details or causes.describe(self._model, error.message)
        return error

    def _take(self, payload: Payload, length: int, events: list[Event]) -> None:
        if self.begun_at is None:
            self.begun_at = time.monotonic()
        if not self._is_named:
            self.ids = collect_ids(self.ids, payload)
            self._is_named = self._has_all_names()
        event = parse_event(payload)
        if isinstance(event, Failed):
            self.ended = True
            refusal = ErrorResponse(event.status, event.code, event.message)
            self._failure = to_error(refusal, self._model.name)
            told = f"Dify tells of a failure with status {event.status}"
            self._failure.details = causes.describe(self._model, told)
            return
        self.has_run = True
        if isinstance(event, RunFinished | MessageEnded) and length > self._client.max_answer:
            self._fail(_too_long(self._client.max_answer))
            return
        if event is not None:
            events.append(event)
            self._size += _size(event)
        if isinstance(event, RunFinished):
            self._run_finished = True
            self._deadline = time.monotonic() + SECONDS_FOR_MESSAGE_END
        if isinstance(event, Paused) or (self._run_finished and self._mode == "workflow"):
            events.append(MessageEnded())
        self.ended = bool(events) and isinstance(events[-1], MessageEnded)

    def _has_all_names(self) -> bool:
        """Whether further events can tell nothing that matters of what Dify calls the answer."""
        ids = self.ids
        if endpoints.has_conversations(self._mode):
            return bool(ids.task_id and ids.conversation_id)
        return bool(ids.task_id and (ids.message_id or ids.workflow_run_id))

    def _without_message_end(self) -> Event:
        if not self._run_finished:
            self._has_failed = True
            raise self._explain(
                errors.BadUpstreamResponse("Dify closed the stream before the end of the answer.")
            )
        self.ended = True
        return MessageEnded()


def _size(event: Event) -> int:
    """How much of an event is kept to the end of the answer, in characters and about."""
    match event:
        case Text() | Reasoning():
            return len(event.text) or _SIZE_OF_OBJECT
        case Replaced():
            return len(event.text)
        case NodeStarted():
            return _SIZE_OF_OBJECT + len(event.title + event.kind)
        case AgentStep():
            return _SIZE_OF_OBJECT + len(event.thought + event.tool_input + event.observation)
        case FileGenerated():
            return _SIZE_OF_OBJECT + len(event.url + event.name)
        case HumanInputNeeded():
            return _SIZE_OF_OBJECT + len(event.form) + sum(map(len, event.actions))
        case NodeFinished():
            return _SIZE_OF_OBJECT + len(event.reasoning)
    return 0


def _too_long(limit: int) -> errors.AnswerTooLong:
    return errors.AnswerTooLong(
        f"The answer of Dify is longer than {limit / 1024**2:g} MB and was stopped. The operator "
        "of OpenDify can allow more with MAX_ANSWER_MB."
    )
