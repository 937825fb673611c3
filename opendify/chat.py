"""The story of one chat request: whose conversation, what is asked, what comes back."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opendify import errors, translate
from opendify.client import DifyClient
from opendify.config.models import Model
from opendify.conversations.store import ConversationStore
from opendify.dify.events import Event, Ids, MessageEnded, Replaced, Text
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


class ChatService:
    """Answers chat requests. ``now`` gives epoch seconds, ``new_id`` an id for an answer."""

    def __init__(
        self,
        models: Mapping[str, Model],
        client: DifyClient,
        conversations: ConversationStore,
        now: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._models = models
        self._client = client
        self._conversations = conversations
        self._now = now
        self._new_id = new_id

    def ask(self, request: ChatRequest, caller: Caller) -> "Exchange":
        """Puts the question on its way to Dify. Raises ModelNotFound and DifyError."""
        model = self._models.get(request.model)
        if model is None:
            raise errors.ModelNotFound(
                f"There is no model '{request.model[:200]}'; GET /v1/models lists them.",
                param="model",
            )
        return Exchange(request, model, caller, self._client, self._conversations)

    def gather(self, exchange: "Exchange") -> dict[str, Any]:
        """The whole answer. Raises CallerGone and DifyError."""
        text, finish_reason = "", "stop"
        while not isinstance(event := exchange.wait(float("inf")), MessageEnded):
            if isinstance(event, Text):
                text += event.text
            elif isinstance(event, Replaced):
                text, finish_reason = event.text, "content_filter"
        tokens = translate.to_tokens(event.usage)
        answer = answers.completion(self._head(exchange), text, finish_reason, tokens)
        return answer | {"dify": translate.to_extension(exchange.ids)}

    def chunks(self, exchange: "Exchange") -> Iterator[dict[str, Any] | None]:
        """The chunks of a streamed answer, each as soon as it is known; None is due where the
        caller should be told that more is to come. Raises CallerGone and DifyError."""
        while not exchange.has_begun:
            yield None
            exchange.hold(KEEP_ALIVE_SECONDS)
        head = self._head(exchange)
        yield answers.chunk(head, {"role": "assistant", "content": ""})
        finish_reason, spoken = "stop", False
        while not isinstance(event := exchange.wait(KEEP_ALIVE_SECONDS), MessageEnded):
            if event is None:
                yield None
                continue
            if isinstance(event, Replaced):
                finish_reason = "content_filter"
            if text := _to_say(event, spoken):
                spoken = True
                yield answers.chunk(head, {"content": text})
        extension = {"dify": translate.to_extension(exchange.ids)}
        yield answers.chunk(head, {}, finish_reason) | extension
        if head.include_usage and event.usage is not None:
            yield answers.usage_chunk(head, translate.to_tokens(event.usage))

    def _head(self, exchange: "Exchange") -> answers.Head:
        ids = exchange.ids
        return answers.Head(
            id=f"chatcmpl-{ids.message_id or self._new_id()}",
            created=ids.created_at or int(self._now()),
            model=exchange.request.model,
            include_usage=exchange.request.include_usage,
        )


class Exchange:
    """One request and the turn that answers it; asked anew, once, where Dify has lost the
    conversation. Whoever gets one must close it."""

    def __init__(
        self,
        request: ChatRequest,
        model: Model,
        caller: Caller,
        client: DifyClient,
        conversations: ConversationStore,
    ) -> None:
        self.request = request
        self._model = model
        self._caller = caller
        self._client = client
        self._conversations = conversations
        self._key = _mapping_key(caller, model) if caller.chat_id else ""
        self._mapped_id = self._look_up()
        self._remembered = False
        self._first: Event | None = None
        self._turn = self._ask(request.extras.conversation_id or self._mapped_id)

    @property
    def ids(self) -> Ids:
        """Dify's names for the answer, as far as it has told them."""
        return self._turn.ids

    @property
    def has_begun(self) -> bool:
        """Whether Dify has said anything but that it is alive."""
        return self._turn.begun_at is not None

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
        except errors.ConversationUnknown:
            if not self._mapped_id or self.request.extras.conversation_id:
                raise
            self._ask_anew()
            return None
        except errors.OpenDifyError as exc:
            exc.repeatable = exc.repeatable and self._turn.begun_at is None
            raise
        if event is not None and not self._remembered:
            self._remember()
        return event

    def _ask(self, conversation_id: str) -> Turn:
        user = self._caller.user
        body = translate.to_dify(self.request, self._model, user, conversation_id)
        stream = self._client.stream_chat(self._model, body, self._caller.socket)
        return Turn(self._client, self._model, user, stream)

    def _ask_anew(self) -> None:
        log.info("conversation unknown to Dify, asked anew model=%s", self._model.name)
        self._turn.ended = True
        self._turn.close()
        self._conversations.forget(self._key, self._mapped_id)
        self._mapped_id = ""
        self._turn = self._ask("")

    def _look_up(self) -> str:
        mapping = self._conversations.get(self._key) if self._key else None
        return mapping.conversation_id if mapping else ""

    def _remember(self) -> None:
        self._remembered = True
        conversation_id = self._turn.ids.conversation_id
        if not self._key or not conversation_id:
            return
        if conversation_id == self._mapped_id:
            self._conversations.touch(self._key)
        else:
            self._conversations.put(self._key, conversation_id)


def _mapping_key(caller: Caller, model: Model) -> str:
    parts = [caller.name, model.name, caller.user, caller.chat_id]
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def _to_say(event: Event, spoken: bool) -> str:
    """What a stream says of an event; what was sent cannot be unsent, only be followed."""
    if isinstance(event, Text):
        return event.text
    if isinstance(event, Replaced):
        return f"\n\n{event.text}" if spoken else event.text
    return ""
