"""One chat request: finds its conversation, sends it to Dify, and retries once where that helps."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Self, TypeVar

from opendify import errors
from opendify.chat import dify_request
from opendify.chat.context import RequestContext, Services
from opendify.chat.form_inputs import TemplateVars
from opendify.config.models import Model
from opendify.conversations import fingerprint
from opendify.conversations.branches import ChatPosition
from opendify.conversations.resolver import ChatOwner, ConversationResolver
from opendify.conversations.unsettled import Outcome
from opendify.dify import endpoints
from opendify.dify.apps import App
from opendify.dify.events import (
    Event,
    Ids,
    NodeFinished,
    NodeStarted,
    RunFinished,
    Usage,
)
from opendify.files.attachments import PreparedFiles
from opendify.protocols.base import ChatPrompt, Message
from opendify.rendering import citations
from opendify.rendering.renderer import ResponseRenderer
from opendify.streaming import BLOCKING, NO_WAIT, WaitFor
from opendify.upstream.client import STOP_TIMEOUT
from opendify.upstream.conversation_probe import DifyConversationProbe, PresenceCheck
from opendify.upstream.disposal import delete_conversation
from opendify.upstream.run import DifyRun

log = logging.getLogger(__name__)

T = TypeVar("T")

# How long the status of a streamed response is still held back once a chatflow runs: a failure of
# its first node usually arrives within this time.
RUNNING_STATUS_HOLD_SECONDS = 1.0

# Failures after which Dify may have run the turn and stored it in the conversation. Envoy also
# answers 503 when a connection broke after the request was forwarded.
_MAY_HAVE_RUN = (
    errors.BadUpstreamResponse,
    errors.UpstreamTimeout,
    errors.UpstreamUnavailable,
    errors.RunFailed,
)


class ChatTurn:
    """One request and its response from Dify. Created by ``start``; must be closed.

    With ``is_throwaway`` nothing is stored: the turn neither continues the caller's chat nor can be
    continued, and a conversation that it created is deleted in Dify on ``close``.
    """

    def __init__(
        self,
        prompt: ChatPrompt,
        model: Model,
        context: RequestContext,
        services: Services,
        app: App,
        is_throwaway: bool = False,
    ) -> None:
        self.prompt = prompt
        self.usage: Usage | None = None  # set once the response is complete
        self._model = model
        self._context = context
        self._services = services
        self._app = app
        self._dify_prompt = dify_request.to_prompt(prompt.messages, model.history_words)
        self._is_throwaway = is_throwaway
        self._may_retry = True
        self._is_open = False
        self._is_closed = False
        self._outcome = Outcome.CALLER_GONE
        self._pending_events: list[Event] = []
        self._deadline = 0.0
        self._prepared: PreparedFiles
        self._conversation: ConversationResolver
        self._conversation_id = ""
        self._query = ""
        self._presence: PresenceCheck | None = None
        self._run: DifyRun

    @classmethod
    def start(
        cls,
        prompt: ChatPrompt,
        model: Model,
        context: RequestContext,
        services: Services,
        is_throwaway: bool = False,
    ) -> Self:
        """Uploads the files, claims the conversation and sends the request to Dify; does not wait
        for the response. Raises ClientDisconnected, CallerError and DifyError."""
        app = services.app_registry.app(model)
        turn = cls(prompt, model, context, services, app, is_throwaway)
        turn._prepared = turn._with_refreshed_app(turn._prepare_files)
        turn._conversation = turn._new_resolver()
        with ExitStack() as on_error:
            on_error.callback(turn._conversation.release, Outcome.NOT_RUN)
            turn._conversation_id = turn._find_conversation()
            turn._with_refreshed_app(turn._send)
            on_error.pop_all()
        return turn

    @property
    def ids(self) -> Ids:
        """Dify's ids of the response, as far as Dify has sent them."""
        return self._run.ids

    @property
    def continuity(self) -> str:
        """Why the turn went to its conversation; "" for an app without conversations."""
        if not endpoints.has_conversations(self._app.mode):
            return ""
        return self._conversation.reason.value

    @property
    def has_started(self) -> bool:
        """Whether Dify has sent an event other than a ping."""
        return self._run.started_at is not None

    @property
    def ignored(self) -> tuple[str, ...]:
        """The fields of the request that have no effect because the operator has reserved them."""
        return dify_request.ignored_inputs(self.prompt.options, self._model)

    def new_renderer(self) -> ResponseRenderer:
        """A renderer for the events of this turn."""
        streamed, context = self.prompt.stream, self._context
        return ResponseRenderer(
            self._model,
            self._app.mode,
            self.prompt.stop,
            citations.choose_format(self._model.citations, context.in_open_webui, streamed),
        )

    def link(self, url: str, name: str, kind: str) -> str:
        """The URL under which callers can fetch a file of Dify's. May download it, and block."""
        return self._services.file_proxy.link(self._model, url, name, kind)

    def await_status(self, seconds: float) -> None:
        """Waits, at most ``seconds``, for an event that decides the status of the response.

        Raises ClientDisconnected and DifyError.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not any(map(_decides_status, self._pending_events)):
            self._pending_events += self._next(deadline)
            if self._run.started_at is not None:
                deadline = min(deadline, self._run.started_at + RUNNING_STATUS_HOLD_SECONDS)

    def wait(self, seconds: float) -> WaitFor:
        """What ``next_events`` will wait for, at most ``seconds``."""
        self._deadline = self._deadline or time.monotonic() + seconds
        if self._pending_events or not self._is_open:  # the first events store the conversation
            return BLOCKING
        return self._run.wait(self._deadline)

    def next_events(self, is_readable: bool | None = None) -> list[Event]:
        """The events that arrived together. Empty when the time given to ``wait`` has passed, or
        where the bytes behind ``is_readable`` hold no event. Raises ClientDisconnected and
        DifyError."""
        deadline, self._deadline = self._deadline, 0.0
        if self._pending_events:
            events, self._pending_events = self._pending_events, []
            return events
        if is_readable:
            events = self._next(NO_WAIT)
            self._deadline = 0.0 if events else deadline  # the same wait continues
            return events
        while time.monotonic() < deadline:
            if events := self._next(deadline):
                return events
        return []

    def commit(self, text: str, usage: Usage | None, is_cut: bool) -> None:
        """The response is complete: stores which history its conversation now has. Stores nothing
        where ``is_cut``, since Dify's memory of a response cut at a stop sequence differs: it holds
        more text, or no response at all."""
        self.usage = usage
        if is_cut:
            return
        prompt = self._dify_prompt
        begun = [message.text for message in prompt.history[-1:] if prompt.is_continuation]
        exchange = [*prompt.messages, Message("assistant", "".join([*begun, text]))]
        self._conversation.commit(
            exchange, self.ids.message_id, prompt.is_continuation, self._new_system_digest()
        )

    def close(self) -> None:
        """Releases the connection and the conversation, and stops a run that has not ended.
        Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._run.close(
                self._delete_conversation if self._creates_throwaway_conversation() else None
            )
        finally:
            self._conversation.release(Outcome.STARTED if self.has_started else self._outcome)

    @property
    def has_ended(self) -> bool:
        """Whether Dify has sent the end of the response; else its run may continue."""
        return self._run.has_ended

    def stop_and_wait(self) -> None:
        """Stops a run that may continue, and waits at most STOP_TIMEOUT until Dify confirms it.

        Call it before the last bytes of a response that failed or was cut at a stop sequence: its
        run must not count towards the limits of the caller's next request.
        """
        if not self.has_ended:
            self.close()
            self._run.await_end(STOP_TIMEOUT)

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` once, on any thread, when the run is over in Dify: it has ended, has
        failed, or was stopped after ``close``. Calls it immediately if it is over already."""
        self._run.add_done_callback(callback)

    def _delete_conversation(self) -> None:
        if self.ids.conversation_id:
            delete_conversation(
                self._services.client, self._model, self.ids.conversation_id, self._context.user
            )

    def _creates_throwaway_conversation(self) -> bool:
        has_conversations = endpoints.has_conversations(self._app.mode)
        return self._is_throwaway and has_conversations and not self._conversation_id

    def _with_refreshed_app(self, action: Callable[[], T]) -> T:
        """The result of an action that validates the request against the cached app; repeated once
        with refreshed data where the cache was out of date."""
        try:
            return action()
        except errors.CallerError:
            app = self._services.app_registry.refreshed(self._model)
            if app == self._app:
                raise
            self._app = app
            return action()

    def _next(self, deadline: float) -> list[Event]:
        presence = self._presence
        try:
            events = self._run.next_events(presence.next_look(deadline) if presence else deadline)
            if presence and not events and not self.has_started:
                presence.raise_if_missing()
        except errors.DifyError as exc:
            if not self._run.has_run and self._can_recover(exc):
                self._retry()
                return []
            may_have_run = isinstance(exc, _MAY_HAVE_RUN)
            self._outcome = Outcome.FAILED if may_have_run else Outcome.NOT_RUN
            exc.retryable = exc.retryable and not self.has_started
            if isinstance(exc, errors.RejectedByDify | errors.UpstreamTimeout):
                self._services.app_registry.mark_stale(self._model)
            raise
        if events and not self._is_open:
            self._is_open = True
            self._presence = None
            self._conversation.on_created(self.ids.conversation_id, self._query)
        return events

    def _send(self) -> None:
        context, model, client = self._context, self._model, self._services.client
        request = dify_request.to_dify_request(
            self.prompt.options,
            self._dify_prompt,
            model,
            self._app,
            TemplateVars(context.user, context.role, context.chat_id, self._dify_prompt.system),
            self._conversation_id,
            self._prepared,
            self._services.files_only_query,
            self._conversation.sent_system_digest,
        )
        self._query = str(request.body.get("query", ""))
        context.cancellation.raise_if_cancelled()  # uploads may have taken long
        trace_id = self.prompt.options.trace_id or context.trace_id
        stream = client.stream(model, request.path, request.body, context.cancellation, trace_id)
        self._run = DifyRun(client, model, self._app.mode, context.user, stream)
        self._presence = self._new_presence_check()

    def _retry(self) -> None:
        log.info("a request is sent to Dify again model=%s", self._model.name)
        self._run.discard()
        self._send()

    def _can_recover(self, exc: errors.DifyError) -> bool:
        """Removes the cause of the error where that is possible: once, or once for each branch of
        the chat."""
        if isinstance(exc, errors.ConversationNotFound):
            return self._find_another_conversation()
        may_retry, self._may_retry = self._may_retry, False
        match exc:
            case errors.UpstreamConfigError():
                return may_retry and self._find_another_mode()
            case errors.RejectedByDify() if "Invalid upload file" in exc.message:
                return may_retry and self._upload_again()
        return False

    def _find_another_conversation(self) -> bool:
        if not self._conversation_id or self.prompt.options.conversation_id:
            return False
        self._conversation.on_missing()
        self._conversation_id = self._find_conversation()
        return True

    def _find_another_mode(self) -> bool:
        if self._model.type:
            return False
        previous, registry = self._app.mode, self._services.app_registry
        registry.forget(self._model)
        self._app = registry.app(self._model)
        return self._app.mode != previous

    def _upload_again(self) -> bool:
        if not self._prepared.ids:
            return False
        self._services.uploads.forget(self._model, self._context.user, self._prepared.ids)
        self._prepared = self._prepare_files()
        return True

    def _prepare_files(self) -> PreparedFiles:
        return self._services.uploads.prepare(
            self._model,
            self._context.user,
            self._dify_prompt.attachments,
            self._app.files,
            self._app.speech_to_text,
            self._context.cancellation,
        )

    def _new_resolver(self) -> ConversationResolver:
        context, model = self._context, self._model
        is_recorded = endpoints.has_conversations(self._app.mode) and not self._is_throwaway
        is_continued = is_recorded and model.continuity != "always-new"
        return ConversationResolver(
            self._services.conversations,
            self._services.processes,
            owner_of(context, model),
            ChatPosition(
                context.chat_id if is_continued else "",
                self._dify_prompt.history,
                self._dify_prompt.messages,
                context.answer_id,
                self._previous_answer_id(),
                _min_exchanges(context),
                may_omit_history=not context.sends_whole_history,
                is_auxiliary=self._dify_prompt.is_auxiliary,
            ),
            finds_by_history=is_continued and model.continuity == "auto",
            is_recorded=is_recorded,
        )

    def _previous_answer_id(self) -> str | None:
        """The client's id of the response before this turn; where a response is to be continued,
        the id of that response itself."""
        context = self._context
        if self._dify_prompt.is_continuation:
            return context.answer_id or None
        return context.parent_answer_id

    def _find_conversation(self) -> str:
        if not endpoints.has_conversations(self._app.mode):
            return ""
        context, services = self._context, self._services
        if explicit := self.prompt.options.conversation_id:
            self._conversation.use_explicit(explicit, self._model.conversation_ids == "any")
            return explicit

        def query(sent_system: str) -> str:
            return dify_request.to_query(
                self._dify_prompt,
                self._model,
                self._prepared,
                services.files_only_query,
                sent_system,
            )

        found = self._conversation.resolve(self._raise_if_cancelled, self._probe(), query)
        is_alone = not found and not context.chat_id and not self._is_throwaway
        if is_alone and self._model.continuity == "off":
            self._dify_prompt = replace(self._dify_prompt, history=())
        return found

    def _new_system_digest(self) -> str | None:
        """The digest of the system prompt that the conversation knows after the turn; None where
        that has not changed."""
        sent = self._conversation.sent_system_digest
        is_new = not self._conversation_id
        if dify_request.includes_system(self._dify_prompt, self._model, is_new, sent) or not sent:
            return fingerprint.system_digest(self._dify_prompt.instructions)
        return None

    def _probe(self) -> DifyConversationProbe:
        services = self._services
        return DifyConversationProbe(services.client, self._model, self._context.user, services.now)

    def _new_presence_check(self) -> PresenceCheck | None:
        """A chatflow may wait for minutes in a conversation that was deleted in Dify."""
        if self._app.mode != "advanced-chat" or not self._conversation_id:
            return None
        return PresenceCheck(self._probe(), self._conversation_id)

    def _raise_if_cancelled(self) -> None:
        self._context.cancellation.raise_if_cancelled()


def owner_of(context: RequestContext, model: Model) -> ChatOwner:
    """The owner of this caller's chats with this model."""
    return ChatOwner(context.name, model.name, context.user)


def _min_exchanges(context: RequestContext) -> int:
    """How many exchanges a partial history must hold to continue a chat; 0 where none may.

    Open WebUI always sends the whole history, so a partial one there is an edit. Without a chat id,
    the chats of two people may end in the same words: only chats of one named user may match, and
    not by a mere "Thanks!".
    """
    if context.chat_id:
        return 0 if context.sends_whole_history else 1
    return 2 if context.is_named_user else 0


def _decides_status(event: Event) -> bool:
    """Whether the response has progressed so far that its status can only be 200."""
    return not isinstance(event, NodeStarted | NodeFinished | RunFinished)
