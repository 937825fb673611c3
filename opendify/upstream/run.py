"""One run in Dify: the events of its response, however the response ends, and how it is stopped."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from enum import Enum, auto

from opendify import errors
from opendify.config.models import Model
from opendify.dify import endpoints
from opendify.dify.error_mapping import ErrorResponse, to_error
from opendify.dify.events import (
    AgentStep,
    AgentThought,
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
from opendify.streaming import BLOCKING, NO_WAIT, WaitFor
from opendify.upstream import causes
from opendify.upstream.background_reader import Steps
from opendify.upstream.cancellation import NEVER
from opendify.upstream.client import DifyClient
from opendify.upstream.event_stream import EventStream

log = logging.getLogger(__name__)

# Dify 1.11 sends ``message_end`` (usage, sources) right after ``workflow_finished``, 1.13.0 never.
SECONDS_FOR_MESSAGE_END = 2.0

# A run can be stopped only once Dify has sent its task id, which may take long.
SECONDS_TO_NAME_A_RUN = 60.0

# Dify 1.13 stores the partial answer of a stopped chat only if its stream is read to the end.
SECONDS_AFTER_STOP = 2.0

# The events that may hold the whole answer once more.
_WITH_WHOLE_ANSWER = (RunFinished, MessageEnded)

# What an event weighs besides its texts, so that endless empty events are too long as well.
_SIZE_OF_OBJECT = 200


class RunState(Enum):
    """How far a run has come, as far as its events tell."""

    SENT = auto()
    """The request was sent. Dify has sent pings at most."""
    RUNNING = auto()
    """Dify has sent an event of the run."""
    FINISHED = auto()
    """Dify has sent the end of the response or an error: nothing is left to stop."""
    FAILED = auto()
    """The response cannot be read any further; in Dify the run may continue."""
    STOPPED = auto()
    """Dify was asked to stop the run, and the end of the response was not seen."""


class DifyRun:
    """One run of an app.

    ``next_events`` returns its events; the last one is a MessageEnded. ``ids`` fills up as Dify
    sends them; ``started_at`` is the time (``time.monotonic``) of Dify's first event other than a
    ping, and ``has_run`` is true once there was an event other than an error, unless Dify has
    refused the request. Every run must be
    closed, also one that failed: ``close`` stops a run that has not ended.
    """

    def __init__(
        self, client: DifyClient, model: Model, mode: str, user: str, stream: EventStream
    ) -> None:
        self.ids = Ids()
        self.started_at: float | None = None
        self.has_run = False
        self._state = RunState.SENT
        self._client = client
        self._model = model
        self._mode = mode
        self._user = user
        self._stream = stream
        self._failure: errors.DifyError | None = None
        self._has_all_ids = False
        self._is_closed = False
        self._over: Future[None] = Future()
        self._message_end_by = float("inf")  # finite once the graph of the app has finished
        self._size = 0

    @property
    def has_ended(self) -> bool:
        """Whether Dify has sent the end of the response or an error."""
        return self._state is RunState.FINISHED

    def next_events(self, until: float) -> list[Event]:
        """The events that arrived together. Empty when none arrived by ``until``, a time of
        ``time.monotonic`` or NO_WAIT for a caller that has polled, and possibly earlier, when
        Dify has only shown that it is alive.

        Must not be called after the last event. Raises ClientDisconnected, ServerStopping and
        DifyError; events before a failure are returned first.
        """
        events: list[Event] = []
        if self._failure is None:
            try:
                payloads = (
                    self._stream.read_available()
                    if until == NO_WAIT
                    else self._stream.read(min(until, self._message_end_by))
                )
            except errors.DifyError as exc:
                self._set_failed()
                self._explain(exc)
                raise
            if payloads is None or (not payloads and time.monotonic() >= self._message_end_by):
                return [self._without_message_end()]
            self._handle_all(payloads, events)
            if self._size > self._client.max_answer:
                self._fail(_too_long(self._client.max_answer))
        if self._failure is not None and not events:
            raise self._failure
        return events

    def wait(self, until: float) -> WaitFor:
        """What ``next_events`` waits for, at most until ``until``."""
        stream = self._stream
        if self._failure is not None or stream.is_ready:
            return BLOCKING
        stream.wait.deadline = min(until, self._message_end_by, stream.times_out_at)
        return stream.wait

    def close(self, afterwards: Callable[[], None] | None = None) -> None:
        """Releases the connection, and stops the run where its end was not seen. Idempotent.

        ``afterwards`` is called when the run is over, and may block. Where the response is readable
        and merely not wanted any more, the background reader takes it over, so that this thread is
        free: it reads until Dify has sent the task id, and for a moment after the stop where Dify
        would otherwise not store the partial answer.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if not self.has_ended:
            is_readable = self._state is not RunState.FAILED
            self._stop()
            if is_readable:
                self._client.background_reader.add(self._read_in_background(afterwards))
                return
        self._finish()
        if afterwards:
            afterwards()

    def discard(self) -> None:
        """Releases the connection of a request that Dify has refused: there is no run to stop."""
        self._state = RunState.FINISHED
        self.close()

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` once, on any thread, when the run is over in Dify as far as can be
        known: it has ended or failed, Dify has answered the stop, or it is not read any more."""
        if self.has_ended:
            self._set_over()
        self._over.add_done_callback(lambda _: callback())

    def await_end(self, seconds: float) -> None:
        """Waits, at most ``seconds``, until the run is over."""
        wait([self._over], seconds)

    def _finish(self) -> None:
        """Releases the connection. The run is over, unless Dify has still to answer its stop."""
        try:
            self._release()
        finally:
            if self._state is not RunState.STOPPED:
                self._set_over()

    def _set_over(self) -> None:
        with suppress(InvalidStateError):  # a run may both end and be stopped
            self._over.set_result(None)

    def _release(self) -> None:
        if self.has_ended:
            self._stream.drain()
        else:
            self._stream.close()

    def _read_in_background(self, afterwards: Callable[[], None] | None) -> Steps:
        self._stream.cancellation = NEVER
        try:
            if self._state is not RunState.STOPPED:
                yield from self._read_until(SECONDS_TO_NAME_A_RUN, lambda: bool(self.ids.task_id))
            is_readable = not self._is_unreadable()
            if self._state is not RunState.STOPPED and not self.has_ended:
                self._stop()
            if is_readable and endpoints.must_drain_after_stop(self._mode):
                yield from self._read_until(SECONDS_AFTER_STOP, lambda: False)
        finally:
            self._finish()
            if afterwards:  # it may block, and the background reader must not
                threading.Thread(target=afterwards, name="afterwards", daemon=True).start()

    def _read_until(self, seconds: float, is_enough: Callable[[], bool]) -> Steps:
        deadline = time.monotonic() + seconds
        try:
            while not (self._is_unreadable() or is_enough()) and time.monotonic() < deadline:
                yield WaitFor(self._stream.fileno(), deadline)
                self.next_events(time.monotonic())
        except errors.OpenDifyError:
            log.debug("an answer failed after its caller had disconnected")

    def _is_unreadable(self) -> bool:
        return self.has_ended or self._state is RunState.FAILED or self._failure is not None

    def _stop(self) -> None:
        if self.ids.task_id:
            self._state = RunState.STOPPED
            path = endpoints.stop_path(self._mode, self.ids.task_id)
            self._client.stop(self._model, path, self._user, self._set_over)

    def _handle_all(self, payloads: list[bytes], events: list[Event]) -> None:
        """Appends the events of the payloads to ``events``, up to the end of the response."""
        try:
            for raw in payloads:
                if self._state is RunState.FINISHED or self._failure is not None:
                    return
                if raw.strip():  # a gateway may write a ping as an event without data
                    self._handle(parse_payload(raw), len(raw), events)
        except NotAnEvent as exc:
            self._fail(
                errors.BadUpstreamResponse(f"Dify sent an event that is unreadable ({exc}).")
            )

    def _set_failed(self) -> None:
        if self._state is not RunState.STOPPED:  # Dify has still to answer the stop
            self._state = RunState.FAILED

    def _fail(self, error: errors.DifyError) -> None:
        self._set_failed()
        self._failure = self._explain(error)

    def _explain(self, error: errors.DifyError) -> errors.DifyError:
        """The error with a cause for the log. Its own message is the cause where it has no other:
        these messages are ours and quote nothing of Dify."""
        error.details = error.details or causes.describe(self._model, error.message)
        return error

    def _handle(self, payload: Payload, length: int, events: list[Event]) -> None:
        if self.started_at is None:
            self.started_at = time.monotonic()
        if not self._has_all_ids:
            self.ids = collect_ids(self.ids, payload)
            self._has_all_ids = self._is_fully_named()
        event = parse_event(payload)
        if isinstance(event, Failed):
            self._handle_failure(event)
            return
        self.has_run = True
        if self._state is RunState.SENT:
            self._state = RunState.RUNNING
        if isinstance(event, Text):
            events.append(event)
            self._size += len(event.text) or _SIZE_OF_OBJECT
        elif isinstance(event, _WITH_WHOLE_ANSWER) and length > self._client.max_answer:
            self._fail(_too_long(self._client.max_answer))
        elif event is not None:
            self._append(event, events)

    def _handle_failure(self, event: Failed) -> None:
        self._state = RunState.FINISHED
        self.has_run = self.has_run and not event.was_refused
        response = ErrorResponse(event.status, event.code, event.message)
        self._failure = to_error(response, self._model.name)
        cause = f"Dify reports a failure with status {event.status}"
        self._failure.details = causes.describe(self._model, cause)

    def _append(self, event: Event, events: list[Event]) -> None:
        events.append(event)
        self._size += _size(event)
        if isinstance(event, RunFinished):
            self._message_end_by = time.monotonic() + SECONDS_FOR_MESSAGE_END
        if isinstance(event, Paused) or (self._has_graph_finished and self._mode == "workflow"):
            events.append(MessageEnded())
        if isinstance(events[-1], MessageEnded):
            self._state = RunState.FINISHED

    @property
    def _has_graph_finished(self) -> bool:
        return self._message_end_by != float("inf")

    def _is_fully_named(self) -> bool:
        """Whether all ids that matter are known."""
        ids = self.ids
        if endpoints.has_conversations(self._mode):
            return bool(ids.task_id and ids.conversation_id)
        return bool(ids.task_id and (ids.message_id or ids.workflow_run_id))

    def _without_message_end(self) -> Event:
        if not self._has_graph_finished:
            self._set_failed()
            raise self._explain(
                errors.BadUpstreamResponse("Dify closed the stream before the end of the answer.")
            )
        self._state = RunState.FINISHED
        return MessageEnded()


def _size(event: Event) -> int:
    """Roughly how many characters of an event stay in memory to the end of the response."""
    match event:
        case Reasoning() | AgentThought():
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
