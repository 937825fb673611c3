"""One question to Dify and its answer, event by event, whatever shape the answer's end has."""

import logging
import time
from collections import deque

from opendify import errors
from opendify.config.models import Model
from opendify.dify import routes
from opendify.dify.events import (
    Event,
    Failed,
    Ids,
    MessageEnded,
    Paused,
    RunFinished,
)
from opendify.dify.failures import Refusal, to_error
from opendify.dify.payloads import Payload, collect_ids, parse_event
from opendify.upstream.client import DifyClient
from opendify.upstream.stream import EventStream

log = logging.getLogger(__name__)

# Dify 1.11 sends ``message_end`` (usage, sources) right after ``workflow_finished``, 1.13.0 never.
SECONDS_FOR_MESSAGE_END = 2.0


class Turn:
    """The answer to one question.

    ``next`` gives its events; the last one is a MessageEnded. ``ids`` grows as Dify tells its
    names for the answer; ``begun_at`` is when (``time.monotonic``) Dify first said anything but
    that it is alive. ``close`` belongs to every turn, also to one that failed: it stops a run that
    nobody listens to any more.
    """

    def __init__(
        self, client: DifyClient, model: Model, mode: str, user: str, stream: EventStream
    ) -> None:
        self.ids = Ids()
        self.begun_at: float | None = None
        self.ended = False
        self._client = client
        self._model = model
        self._mode = mode
        self._user = user
        self._stream = stream
        self._events: deque[Event] = deque()
        self._run_finished = False
        self._deadline = float("inf")

    def next(self, until: float) -> Event | None:
        """The next event; None when none came by ``until`` (a time of ``time.monotonic``), and
        also earlier, when Dify has only shown that it works.

        Not to be called after the last one. Raises CallerGone and DifyError.
        """
        if not self._events:
            payloads = self._stream.read(min(until, self._deadline))
            if payloads is None or (not payloads and time.monotonic() >= self._deadline):
                return self._without_message_end()
            for payload in payloads:
                self._take(payload)
        return self._hand_out(self._events.popleft()) if self._events else None

    def learn_ids(self, until: float) -> None:
        """Listens, for a caller that has left, until Dify has told its names for the answer, the
        answer is over, or it is that time (of ``time.monotonic``)."""
        self._stream.caller = None
        try:
            while not (self.ended or self.ids.conversation_id) and time.monotonic() < until:
                self.next(until)
        except errors.OpenDifyError:
            log.debug("an answer failed before it had a name")

    def close(self) -> None:
        """Frees the connection; stops the run where its end was not seen."""
        if self.ended:
            self._stream.drain()
            return
        try:
            if self.ids.task_id:
                path = routes.stop_path(self._mode, self.ids.task_id)
                self._client.stop(self._model, path, self._user)
        finally:
            self._stream.close()

    def _take(self, payload: Payload) -> None:
        if self.begun_at is None:
            self.begun_at = time.monotonic()
        if not (self.ids.conversation_id and self.ids.task_id):
            self.ids = collect_ids(self.ids, payload)
        event = parse_event(payload)
        if event is not None:
            self._events.append(event)
        if isinstance(event, RunFinished):
            self._run_finished = True
            self._deadline = time.monotonic() + SECONDS_FOR_MESSAGE_END
        if isinstance(event, Paused) or (self._run_finished and self._mode == "workflow"):
            self._events.append(MessageEnded())

    def _hand_out(self, event: Event) -> Event:
        if isinstance(event, Failed):
            self.ended = True
            raise to_error(Refusal(event.status, event.code, event.message), self._model.name)
        if isinstance(event, MessageEnded):
            self.ended = True
        return event

    def _without_message_end(self) -> Event:
        if not self._run_finished:
            raise errors.DifyBroken("Dify closed the stream before the end of the answer.")
        self.ended = True
        return MessageEnded()
