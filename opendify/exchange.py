"""One request to Dify and what comes back: whose conversation, what is asked, what is mended."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from opendify import citations, errors, translate
from opendify.client import DifyClient
from opendify.config.models import Model
from opendify.conversations.contract import Conversations
from opendify.conversations.whose import Whose, to_key
from opendify.dify import routes
from opendify.dify.events import Event, FileMade, Ids
from opendify.directory import Directory
from opendify.files.intake import Prepared
from opendify.files.uploads import Uploads
from opendify.inputs import Facts
from opendify.narration import Narration
from opendify.openai.requests import ChatRequest
from opendify.turn import Turn

log = logging.getLogger(__name__)

# How long the status of a streamed answer is still held back once a chatflow has shown that it
# runs: what fails at its first node mostly fails within this time.
HOLD_SECONDS_OF_A_RUN = 1.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``name`` stands for the caller's key and never is the key; ``chat_id`` is empty
    for a request that belongs to no chat; ``socket`` is the descriptor to watch for a hang-up."""

    name: str
    user: str
    chat_id: str
    socket: int | None
    role: str = ""
    in_open_webui: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """What exchanges work with; the same for all requests of a process. ``link`` gives the
    address under which callers reach a file of Dify's."""

    client: DifyClient
    directory: Directory
    conversations: Conversations
    uploads: Uploads
    link: Callable[[Model, FileMade], str]


class Exchange:
    """One request and the turn that answers it; asked anew, once, where what went wrong can be
    put right. Whoever gets one must close it."""

    def __init__(self, request: ChatRequest, model: Model, caller: Caller, parts: Parts) -> None:
        self.request = request
        self._model = model
        self._caller = caller
        self._parts = parts
        self._dialogue = translate.to_dialogue(request.messages)
        self._key = _mapping_key(caller, model) if caller.chat_id else ""
        self._may_ask_anew = True
        self._remembered = False
        self._first: Event | None = None
        self._app = parts.directory.app(model)
        self._prepared = self._prepare()
        self._mapped_id = self._look_up()
        self._conversation_id = request.extras.conversation_id or self._mapped_id
        self._ask()

    @property
    def ids(self) -> Ids:
        """Dify's names for the answer, as far as it has told them."""
        return self._turn.ids

    @property
    def has_begun(self) -> bool:
        """Whether Dify has said anything but that it is alive."""
        return self._turn.begun_at is not None

    def new_narration(self) -> Narration:
        """How the events of this exchange are told to its caller."""
        streamed, caller = self.request.stream, self._caller
        return Narration(
            self._model,
            self._app.mode,
            lambda file: self._parts.link(self._model, file),
            self.request.stop,
            citations.form_for(self._model.citations, caller.in_open_webui, streamed),
        )

    def hold(self, seconds: float) -> None:
        """Waits until Dify has said what decides the status of the answer, at most so long.

        Raises CallerGone and DifyError.
        """
        until = time.monotonic() + seconds
        while self._first is None and time.monotonic() < until:
            self._first = self._next(until)
            if self._turn.begun_at is not None:
                until = min(until, self._turn.begun_at + HOLD_SECONDS_OF_A_RUN)

    def wait(self, seconds: float) -> Event | None:
        """The next event, or None when none comes for so long. Raises CallerGone and DifyError."""
        event, self._first = self._first, None
        until = time.monotonic() + seconds
        while event is None and time.monotonic() < until:
            event = self._next(until)
        return event

    def close(self) -> None:
        """Frees what the request holds; stops a run that has not ended."""
        self._turn.close()

    def _next(self, until: float) -> Event | None:
        try:
            event = self._turn.next(until)
        except errors.DifyError as exc:
            if self._may_ask_anew and not self.has_begun and self._is_put_right(exc):
                self._ask_anew()
                return None
            exc.repeatable = exc.repeatable and not self.has_begun
            raise
        if event is not None and not self._remembered:
            self._remember()
        return event

    def _ask(self) -> None:
        caller, model, client = self._caller, self._model, self._parts.client
        question = translate.to_question(
            self.request,
            self._dialogue,
            model,
            self._app,
            Facts(caller.user, caller.role, caller.chat_id, self._dialogue.system),
            self._conversation_id,
            self._prepared,
        )
        stream = client.stream(model, question.path, question.body, caller.socket)
        self._turn = Turn(client, model, self._app.mode, caller.user, stream)

    def _ask_anew(self) -> None:
        log.info("a question is asked anew model=%s", self._model.name)
        self._may_ask_anew = False
        self._turn.ended = True
        self._turn.close()
        self._ask()

    def _is_put_right(self, exc: errors.DifyError) -> bool:
        match exc:
            case errors.ConversationUnknown():
                return self._forget_conversation()
            case errors.DifyMisconfigured():
                return self._find_another_mode()
            case errors.RejectedByDify() if "Invalid upload file" in exc.message:
                return self._upload_again()
        return False

    def _forget_conversation(self) -> bool:
        if not self._mapped_id or self._conversation_id != self._mapped_id:
            return False
        self._parts.conversations.forget(self._key, self._mapped_id)
        self._conversation_id = self._mapped_id = ""
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
        )

    def _look_up(self) -> str:
        if not self._key or not routes.remembers(self._app.mode):
            return ""
        mapping = self._parts.conversations.get(self._key)
        return mapping.conversation_id if mapping else ""

    def _remember(self) -> None:
        self._remembered = True
        conversation_id = self._turn.ids.conversation_id
        if not self._key or not conversation_id:
            return
        if conversation_id == self._mapped_id:
            self._parts.conversations.touch(self._key)
        else:
            self._parts.conversations.put(self._key, conversation_id)


def _mapping_key(caller: Caller, model: Model) -> str:
    return to_key(Whose(caller.name, model.name, caller.user, caller.chat_id))
