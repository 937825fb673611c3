"""One request to Dify and what comes back: whose conversation, what is asked, what is mended."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from opendify import errors
from opendify.chat import dify_request
from opendify.chat.form_inputs import TemplateVars
from opendify.config.models import Model
from opendify.conversations.locks.files import TurnLocks
from opendify.conversations.processes import Processes
from opendify.conversations.resolver import ChatOwner, ChatPosition, ConversationResolver
from opendify.conversations.store.base import ConversationStore
from opendify.conversations.unsettled import Outcome
from opendify.dify import endpoints
from opendify.dify.events import (
    Event,
    Ids,
    NodeFinished,
    NodeStarted,
    RunFinished,
    Usage,
)
from opendify.files.attachments import Prepared
from opendify.protocols.base import ChatPrompt, Message
from opendify.rendering import citations
from opendify.rendering.renderer import ResponseRenderer
from opendify.streaming import BLOCKING, IMMEDIATELY, WaitFor
from opendify.upstream.app_registry import AppRegistry
from opendify.upstream.cancellation import Cancellation
from opendify.upstream.client import STOP_TIMEOUT, DifyClient
from opendify.upstream.conversation_probe import DifyConversationProbe
from opendify.upstream.disposal import delete_conversation
from opendify.upstream.file_proxy import FileProxy
from opendify.upstream.run import DifyRun
from opendify.upstream.uploads import Uploads

log = logging.getLogger(__name__)

T = TypeVar("T")

# How long the status of a streamed answer is still held back once a chatflow has shown that it
# runs: what fails at its first node mostly fails within this time.
RUNNING_STATUS_HOLD_SECONDS = 1.0

# Failures that leave it open whether Dify runs the turn: it may be in the conversation for good.
# Envoy answers 503 also where the connection broke after it had passed the question on.
_MAY_HAVE_RUN = (
    errors.BadUpstreamResponse,
    errors.UpstreamTimeout,
    errors.UpstreamUnavailable,
    errors.RunFailed,
)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who asks. ``name`` stands for the caller's key and never is the key; ``models`` are those
    that the caller may use; ``is_named_user`` is false where all callers without a user share one
    name; ``chat_id`` is empty for a request that belongs to no chat, and
    ``is_temporary_chat`` is whether the client itself does not keep the chat; ``watch``
    tells when to wait no longer; ``task`` is what the request's header says of a background task;
    ``trace_id`` names the request in Dify's traces. ``answer_id`` is the client's name for the
    answer, and ``follows`` for the one before, None where it does not tell."""

    name: str
    models: Mapping[str, Model]
    user: str
    chat_id: str
    cancellation: Cancellation
    role: str = ""
    in_open_webui: bool = False
    task: str = ""
    trace_id: str = ""
    answer_id: str = ""
    parent_answer_id: str | None = None
    is_named_user: bool = False
    is_temporary_chat: bool = False


@dataclass(frozen=True, slots=True)
class Services:
    """What exchanges work with; the same for all requests of a process. ``now`` gives epoch
    seconds; ``files_only_query`` is asked for a message of nothing but files."""

    client: DifyClient
    directory: AppRegistry
    conversations: ConversationStore
    uploads: Uploads
    locks: TurnLocks
    relay: FileProxy
    now: Callable[[], float]
    files_only_query: str
    processes: Processes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "processes", Processes(self.locks))


class ChatTurn:
    """One request and the turn that answers it; asked anew, once, where what went wrong can be
    put right. Whoever gets one must close it.

    Of one that ``is_throwaway`` nothing is remembered: it neither continues the caller's chat nor
    is continued, and a conversation that it began is deleted in Dify when it is closed.
    """

    def __init__(
        self,
        prompt: ChatPrompt,
        model: Model,
        caller: RequestContext,
        parts: Services,
        is_throwaway: bool = False,
    ) -> None:
        self.prompt = prompt
        self.usage: Usage | None = None  # of the answer, once it is complete
        self._model = model
        self._caller = caller
        self._parts = parts
        self._dialogue = dify_request.to_prompt(prompt.messages)
        self._is_throwaway = is_throwaway
        self._may_retry = True
        self._is_open = False
        self._is_closed = False
        self._outcome = Outcome.LEFT
        self._pending_events: list[Event] = []
        self._until = 0.0
        self._app = parts.directory.app(model)
        self._prepared = self._with_refreshed_app(self._prepare)
        self._chat = self._new_chat()
        try:
            self._conversation_id = self._find_conversation()
            self._with_refreshed_app(self._ask)
        except BaseException:
            self._chat.release(Outcome.NOT_RUN)
            raise

    @property
    def ids(self) -> Ids:
        """Dify's names for the answer, as far as it has told them."""
        return self._turn.ids

    @property
    def has_begun(self) -> bool:
        """Whether Dify has said anything but that it is alive."""
        return self._turn.begun_at is not None

    @property
    def ignored(self) -> tuple[str, ...]:
        """What of the request has no effect, because the operator has reserved it."""
        return dify_request.ignored_inputs(self.prompt.options, self._model)

    def new_renderer(self) -> ResponseRenderer:
        """Renders the events of this exchange for its caller."""
        streamed, caller = self.prompt.stream, self._caller
        return ResponseRenderer(
            self._model,
            self._app.mode,
            self.prompt.stop,
            citations.form_for(self._model.citations, caller.in_open_webui, streamed),
        )

    def link(self, url: str, name: str, kind: str) -> str:
        """The address under which callers reach a file of Dify's; may fetch it, and block."""
        return self._parts.relay.link(self._model, url, name, kind)

    def await_status(self, seconds: float) -> None:
        """Waits until Dify has said what decides the status of the answer, at most so long.

        Raises CallerGone and DifyError.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until and not any(map(_decides, self._pending_events)):
            self._pending_events += self._next(until)
            if self._turn.begun_at is not None:
                until = min(until, self._turn.begun_at + RUNNING_STATUS_HOLD_SECONDS)

    def wait(self, seconds: float) -> WaitFor:
        """What ``take`` is going to wait for: the next events, for so long at most."""
        self._until = self._until or time.monotonic() + seconds
        if (
            self._pending_events or not self._is_open
        ):  # with the first of them, the chat is remembered
            return BLOCKING
        return self._turn.wait(self._until)

    def next_events(self, is_readable: bool | None = None) -> list[Event]:
        """The events that came next, together; none when none came for as long as ``wait`` said, or
        where what ``is_readable`` are none. Raises CallerGone and DifyError."""
        until, self._until = self._until, 0.0
        if self._pending_events:
            events, self._pending_events = self._pending_events, []
            return events
        if is_readable:
            events = self._next(IMMEDIATELY)
            self._until = 0.0 if events else until  # the wait goes on
            return events
        while time.monotonic() < until:
            if events := self._next(until):
                return events
        return []

    def commit(self, said: str, usage: Usage | None, is_cut: bool) -> None:
        """The answer is complete: remembers what its conversation has heard by now. One that
        ``is_cut`` at a stop sequence goes on in Dify's memory, or is not there at all."""
        self.usage = usage
        if is_cut:
            return
        last = dify_request.without_system(self.prompt.messages)[-1]
        if last.role == "assistant":
            turn = [Message("assistant", last.text + said)]
        else:
            turn = [last, Message("assistant", said)]
        self._chat.commit(turn, self.ids.message_id)

    def close(self) -> None:
        """Frees what the request holds; stops a run that has not ended. Twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._turn.close(
                self._delete_conversation if self._begins_throwaway_conversation() else None
            )
        finally:
            self._chat.release(Outcome.RUN if self.has_begun else self._outcome)

    @property
    def has_ended(self) -> bool:
        """Whether Dify has sent the end of the answer; else its run may go on."""
        return self._turn.ended

    def end(self) -> None:
        """Stops a run that may go on, and waits until Dify has confirmed it, for STOP_TIMEOUT at
        most. To be called before the last bytes of an answer that failed, or that was cut at a
        stop sequence: its run must not count beside the caller's next."""
        if not self.has_ended:
            self.close()
            self._turn.await_end(STOP_TIMEOUT)

    def when_over(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` once, on any thread, when the run is over in Dify: it has ended, has
        failed, or was stopped after ``close``. At once where that is so by now."""
        self._turn.when_over(callback)

    def _delete_conversation(self) -> None:
        if self.ids.conversation_id:
            delete_conversation(
                self._parts.client, self._model, self.ids.conversation_id, self._caller.user
            )

    def _begins_throwaway_conversation(self) -> bool:
        remembers = endpoints.has_conversations(self._app.mode)
        return self._is_throwaway and remembers and not self._conversation_id

    def _with_refreshed_app(self, do: Callable[[], T]) -> T:
        """Does what may be refused by what is known of the app; again where that was outdated."""
        try:
            return do()
        except errors.CallerError:
            app = self._parts.directory.refreshed(self._model)
            if app == self._app:
                raise
            self._app = app
            return do()

    def _next(self, until: float) -> list[Event]:
        try:
            events = self._turn.next_events(until)
        except errors.DifyError as exc:
            if self._may_retry and not self._turn.has_run and self._can_recover(exc):
                self._retry()
                return []
            may_have_run = isinstance(exc, _MAY_HAVE_RUN)
            self._outcome = Outcome.FAILED if may_have_run else Outcome.NOT_RUN
            exc.retryable = exc.retryable and not self.has_begun
            if isinstance(exc, errors.RejectedByDify | errors.UpstreamTimeout):
                self._parts.directory.mark_stale(self._model)
            raise
        if events and not self._is_open:
            self._is_open = True
            self._chat.on_created(self.ids.conversation_id)
        return events

    def _ask(self) -> None:
        caller, model, client = self._caller, self._model, self._parts.client
        question = dify_request.to_dify_request(
            self.prompt.options,
            self._dialogue,
            model,
            self._app,
            TemplateVars(caller.user, caller.role, caller.chat_id, self._dialogue.system),
            self._conversation_id,
            self._prepared,
            self._parts.files_only_query,
        )
        caller.cancellation.raise_if_cancelled()  # files can take long
        trace_id = self.prompt.options.trace_id or caller.trace_id
        stream = client.stream(model, question.path, question.body, caller.cancellation, trace_id)
        self._turn = DifyRun(client, model, self._app.mode, caller.user, stream)

    def _retry(self) -> None:
        log.info("a question is asked anew model=%s", self._model.name)
        self._may_retry = False
        self._turn.ended = True
        self._turn.close()
        self._ask()

    def _can_recover(self, exc: errors.DifyError) -> bool:
        match exc:
            case errors.ConversationNotFound():
                return self._forget_conversation()
            case errors.UpstreamConfigError():
                return self._find_another_mode()
            case errors.RejectedByDify() if "Invalid upload file" in exc.message:
                return self._upload_again()
        return False

    def _forget_conversation(self) -> bool:
        if not self._conversation_id or self.prompt.options.conversation_id:
            return False
        self._chat.on_missing()
        self._conversation_id = ""
        return True

    def _find_another_mode(self) -> bool:
        if self._model.type:
            return False
        known, directory = self._app.mode, self._parts.directory
        directory.forget(self._model)
        self._app = directory.app(self._model)
        return self._app.mode != known

    def _upload_again(self) -> bool:
        if not self._prepared.ids:
            return False
        self._parts.uploads.forget(self._model, self._caller.user, self._prepared.ids)
        self._prepared = self._prepare()
        return True

    def _prepare(self) -> Prepared:
        return self._parts.uploads.prepare(
            self._model,
            self._caller.user,
            self._dialogue.attachments,
            self._app.files,
            self._app.speech_to_text,
            self._caller.cancellation,
        )

    def _new_chat(self) -> ConversationResolver:
        caller, model = self._caller, self._model
        remembers = endpoints.has_conversations(self._app.mode) and not self._is_throwaway
        is_kept = remembers and model.continuity != "always-new"
        return ConversationResolver(
            self._parts.conversations,
            self._parts.locks,
            self._parts.processes,
            owner_of(caller, model),
            ChatPosition(
                caller.chat_id if is_kept else "",
                self._dialogue.history,
                caller.answer_id,
                self._followed_answer(),
                _min_exchanges(caller),
            ),
            finds_by_history=is_kept and model.continuity == "auto",
            is_recorded=remembers,
        )

    def _followed_answer(self) -> str | None:
        """The client's name for the answer before the turn: where one is to be continued, its
        own."""
        caller = self._caller
        is_continuation = dify_request.without_system(self.prompt.messages)[-1].role == "assistant"
        return caller.answer_id or None if is_continuation else caller.parent_answer_id

    def _find_conversation(self) -> str:
        if not endpoints.has_conversations(self._app.mode):
            return ""
        caller, parts = self._caller, self._parts
        presence = DifyConversationProbe(
            parts.client, self._model, self._app.mode, caller.user, parts.now
        )
        if explicit := self.prompt.options.conversation_id:
            self._chat.use_explicit(explicit, self._model.conversation_ids == "any")
            if not presence.of_used(explicit, 0):
                raise errors.ConversationNotFound("Dify does not know this conversation.")
            return explicit
        until = time.monotonic() + parts.client.read_timeout
        query = dify_request.to_query(
            self._dialogue, self._model, self._prepared, parts.files_only_query
        )
        found = self._chat.resolve(until, self._is_left, presence, query)
        if not found and not caller.chat_id and self._model.continuity == "off":
            self._dialogue = replace(self._dialogue, history=())
        return found

    def _is_left(self) -> bool:
        self._caller.cancellation.raise_if_cancelled()
        return False


def owner_of(caller: RequestContext, model: Model) -> ChatOwner:
    """Whom the chats of this caller with this model belong to."""
    return ChatOwner(caller.name, model.name, caller.user)


def _min_exchanges(caller: RequestContext) -> int:
    """How many exchanges the end of a chat must hold to continue it; 0 where no end does.

    Open WebUI always sends the whole history, so there an end is an edit. Where no chat is named,
    two people may have ended theirs with the same words: only those of one user may be taken for
    each other, and not after a mere "Thanks!".
    """
    if caller.chat_id:
        return 0 if caller.in_open_webui else 1
    return 2 if caller.is_named_user else 0


def _decides(event: Event) -> bool:
    """Whether the answer has come so far that its status can only be 200."""
    return not isinstance(event, NodeStarted | NodeFinished | RunFinished)
