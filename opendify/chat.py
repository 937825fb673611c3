"""The story of one chat request: whose conversation, what is asked, what comes back."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opendify import citations, errors, translate
from opendify.client import DifyClient
from opendify.config.models import Model
from opendify.conversations.store import ConversationStore
from opendify.dify import routes
from opendify.dify.events import Event, FileMade, Ids, MessageEnded
from opendify.directory import Directory
from opendify.inputs import Facts
from opendify.narration import Narration, Said, Shown, Telling, Thought, Voided
from opendify.openai import answers
from opendify.openai.requests import ChatRequest
from opendify.turn import Turn

log = logging.getLogger(__name__)

# The status of a streamed answer is held back until Dify says something that decides it, so that
# a refusal is a refusal and not a broken stream: for so long at most, and for the second time
# at most once a chatflow has shown that it runs.
HOLD_SECONDS = 10.0
HOLD_SECONDS_OF_A_RUN = 1.0

KEEP_ALIVE_SECONDS = 10.0


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
    """What an exchange works with; the same for all requests of a process."""

    client: DifyClient
    directory: Directory
    conversations: ConversationStore
    link: Callable[[Model, FileMade], str]
    now: Callable[[], float]
    new_id: Callable[[], str]


class ChatService:
    """Answers chat requests."""

    def __init__(self, models: Mapping[str, Model], parts: Parts) -> None:
        self._models = models
        self._parts = parts

    def ask(self, request: ChatRequest, caller: Caller) -> "Exchange":
        """Puts the question on its way to Dify. Raises CallerError and DifyError."""
        model = self._models.get(request.model)
        if model is None:
            raise errors.ModelNotFound(
                f"There is no model '{request.model[:200]}'; GET /v1/models lists them.",
                param="model",
            )
        return Exchange(request, model, caller, self._parts)


class Exchange:
    """One request and the turn that answers it; asked anew, once, where Dify has lost the
    conversation or the app is of another kind. Whoever gets one must close it."""

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
        self._mapped_id = self._look_up()
        self._ask(request.extras.conversation_id or self._mapped_id)

    @property
    def ids(self) -> Ids:
        """Dify's names for the answer, as far as it has told them."""
        return self._turn.ids

    def hold(self, seconds: float) -> None:
        """Waits until Dify has said what decides the status of the answer, at most so long.

        Raises CallerGone and DifyError.
        """
        until = time.monotonic() + seconds
        while self._first is None and time.monotonic() < until:
            self._first = self._next(until)
            if self._turn.begun_at is not None:
                until = min(until, self._turn.begun_at + HOLD_SECONDS_OF_A_RUN)

    def gather(self) -> dict[str, Any]:
        """The whole answer. Raises CallerGone and DifyError."""
        said, thought = [], []
        for telling in self._tellings(float("inf")):
            match telling:
                case Said(text):
                    said.append(text)
                case Thought(text):
                    thought.append(text)
                case Voided():
                    said.clear()
        ending = self._narration.ending
        return (
            answers.completion(
                self._head(),
                "".join(said),
                ending.finish_reason,
                translate.to_tokens(ending.usage),
                reasoning="".join(thought),
                annotations=ending.annotations,
            )
            | self._extension()
        )

    def chunks(self) -> Iterator[dict[str, Any] | None]:
        """The chunks of a streamed answer, each as soon as it is known; None is due where the
        caller should be told that more is to come. Raises CallerGone and DifyError."""
        while self._turn.begun_at is None:
            yield None
            self.hold(KEEP_ALIVE_SECONDS)
        head = self._head()
        yield answers.chunk(head, {"role": "assistant", "content": ""})
        for telling in self._tellings(KEEP_ALIVE_SECONDS):
            yield None if telling is None else _to_chunk(head, telling)
        ending = self._narration.ending
        delta = {"annotations": ending.annotations} if ending.annotations else {}
        yield answers.chunk(head, delta, ending.finish_reason) | self._extension()
        if head.include_usage and ending.usage is not None:
            yield answers.usage_chunk(head, translate.to_tokens(ending.usage))

    def close(self) -> None:
        """Frees what the request holds; stops a run that has not ended."""
        self._turn.close()

    def _tellings(self, patience: float) -> Iterator[Telling | None]:
        """What the answer tells, None whenever nothing came for ``patience`` seconds."""
        while not self._narration.is_cut:
            event = self._wait(patience)
            if event is None:
                yield None
            elif isinstance(event, MessageEnded):
                yield from self._narration.end(event)
                return
            else:
                yield from self._narration.tell(event)
        yield from self._narration.end(MessageEnded())

    def _wait(self, seconds: float) -> Event | None:
        event, self._first = self._first, None
        until = time.monotonic() + seconds
        while event is None and time.monotonic() < until:
            event = self._next(until)
        return event

    def _next(self, until: float) -> Event | None:
        try:
            event = self._turn.next(until)
        except errors.ConversationUnknown:
            if not self._mapped_id or self.request.extras.conversation_id:
                raise
            self._ask_without_conversation()
            return None
        except errors.DifyMisconfigured:
            if not self._is_of_another_mode():
                raise
            self._ask_anew()
            return None
        except errors.OpenDifyError as exc:
            exc.repeatable = exc.repeatable and self._turn.begun_at is None
            raise
        if event is not None and not self._remembered:
            self._remember()
        return event

    def _ask(self, conversation_id: str) -> None:
        caller, model = self._caller, self._model
        question = translate.to_question(
            self.request,
            self._dialogue,
            model,
            self._app,
            Facts(caller.user, caller.role, caller.chat_id, self._dialogue.system),
            conversation_id,
        )
        self._narration = Narration(
            model,
            self._app.mode,
            lambda file: self._parts.link(model, file),
            self.request.stop,
            citations.form_for(model.citations, caller.in_open_webui, self.request.stream),
        )
        stream = self._parts.client.stream(model, question.path, question.body, caller.socket)
        self._turn = Turn(self._parts.client, model, self._app.mode, caller.user, stream)

    def _ask_anew(self, conversation_id: str = "") -> None:
        self._may_ask_anew = False
        self._turn.ended = True
        self._turn.close()
        self._ask(conversation_id)

    def _ask_without_conversation(self) -> None:
        log.info("conversation unknown to Dify, asked anew model=%s", self._model.name)
        self._parts.conversations.forget(self._key, self._mapped_id)
        self._mapped_id = ""
        self._ask_anew()

    def _is_of_another_mode(self) -> bool:
        if self._model.type or not self._may_ask_anew:
            return False
        known, directory = self._app.mode, self._parts.directory
        directory.forget(self._model)
        self._app = directory.app(self._model)
        return self._app.mode != known

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

    def _head(self) -> answers.Head:
        ids = self.ids
        return answers.Head(
            id=f"chatcmpl-{ids.message_id or ids.workflow_run_id or self._parts.new_id()}",
            created=ids.created_at or int(self._parts.now()),
            model=self.request.model,
            include_usage=self.request.include_usage,
        )

    def _extension(self) -> dict[str, Any]:
        ending = self._narration.ending
        extension = translate.to_extension(self.ids)
        if ending.resources:
            extension["retriever_resources"] = list(ending.resources)
        if ending.run_status:
            extension["status"] = ending.run_status
        return {"dify": extension}


def _to_chunk(head: answers.Head, telling: Telling) -> dict[str, Any]:
    match telling:
        case Said(text):
            return answers.chunk(head, {"content": text})
        case Thought(text):
            return answers.chunk(head, {"reasoning_content": text})
        case Shown(event):
            return answers.chunk(head, {"content": ""}) | {"event": event}
        case Voided(was):  # what was sent cannot be unsent, only be followed
            return answers.chunk(head, {"content": "\n\n" if was else ""})


def _mapping_key(caller: Caller, model: Model) -> str:
    parts = [caller.name, model.name, caller.user, caller.chat_id]
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
