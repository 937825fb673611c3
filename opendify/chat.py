"""The story of one chat request: it is asked, and its answer is given whole or in chunks."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from opendify import errors, openwebui, tasks, translate
from opendify.chores import Chores, LocalAnswer
from opendify.config.models import Model
from opendify.dify.events import MessageEnded
from opendify.exchange import Caller, Exchange, Parts
from opendify.openai import answers
from opendify.openai.requests import ChatRequest
from opendify.telling.narration import Narration
from opendify.telling.tellings import Ending, Said, Shown, Telling, Thought, Voided

# What a request is answered with: by Dify, or without it.
Asked = Exchange | LocalAnswer

# The status of a streamed answer is held back until Dify says something that decides it, so that
# a refusal is a refusal and not a broken stream: for so long at most.
HOLD_SECONDS = 10.0

KEEP_ALIVE_SECONDS = 10.0


class ChatService:
    """Answers chat requests. ``now`` gives epoch seconds, ``new_id`` an id for an answer."""

    def __init__(
        self,
        models: Mapping[str, Model],
        parts: Parts,
        now: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._parts = parts
        self._chores = Chores(models, parts)
        self._now = now
        self._new_id = new_id

    def ask(self, request: ChatRequest, caller: Caller) -> Asked:
        """Puts the question on its way to Dify. Raises CallerGone, CallerError and DifyError."""
        model = caller.models.get(request.model)
        if model is None:
            raise errors.ModelNotFound(
                f"There is no model '{request.model[:200]}'; GET /v1/models lists them.",
                param="model",
            )
        if kind := tasks.recognise(request, caller.task):
            return self._chores.ask(kind, request, model, caller)
        is_temporary = openwebui.is_temporary(caller.chat_id)
        return Exchange(request, model, caller, self._parts, is_throwaway=is_temporary)

    def gather(self, exchange: Asked) -> dict[str, Any]:
        """The whole answer. Raises CallerGone and DifyError."""
        said: list[str] = []
        thought: list[str] = []
        narration = exchange.new_narration()
        for telling in _tellings(exchange, narration, float("inf")):
            match telling:
                case Said(text):
                    said.append(text)
                case Thought(text):
                    thought.append(text)
                case Voided():
                    said.clear()
                    thought.clear()
        ending = narration.ending
        exchange.settle("".join(said), ending.usage)
        answer = answers.completion(
            self._head(exchange),
            "".join(said),
            ending.finish_reason,
            translate.to_tokens(ending.usage),
            reasoning="".join(thought),
            annotations=ending.annotations,
        )
        return answer | _extension(exchange, ending)

    def chunks(self, exchange: Asked) -> Iterator[dict[str, Any] | None]:
        """The chunks of a streamed answer, each as soon as it is known; None is due where the
        caller should be told that more is to come. Raises CallerGone and DifyError."""
        while not exchange.has_begun:
            yield None
            exchange.hold(KEEP_ALIVE_SECONDS)
        head = self._head(exchange)
        yield answers.chunk(head, {"role": "assistant", "content": ""})
        narration = exchange.new_narration()
        said: list[str] = []
        for telling in _tellings(exchange, narration, KEEP_ALIVE_SECONDS):
            chunk = None if telling is None else _to_chunk(head, telling)
            if chunk is not None:
                said.append(chunk["choices"][0]["delta"].get("content", ""))
            yield chunk
        ending = narration.ending
        exchange.settle("".join(said), ending.usage)
        delta = {"annotations": ending.annotations} if ending.annotations else {}
        yield answers.chunk(head, delta, ending.finish_reason) | _extension(exchange, ending)
        if head.include_usage and ending.usage is not None:
            yield answers.usage_chunk(head, translate.to_tokens(ending.usage))

    def _head(self, exchange: Asked) -> answers.Head:
        ids = exchange.ids
        return answers.Head(
            id=f"chatcmpl-{ids.message_id or ids.workflow_run_id or self._new_id()}",
            created=ids.created_at or int(self._now()),
            model=exchange.request.model,
            include_usage=exchange.request.include_usage,
        )


def _tellings(exchange: Asked, narration: Narration, patience: float) -> Iterator[Telling | None]:
    """What the answer tells, None whenever nothing came for ``patience`` seconds."""
    while not narration.is_cut:
        event = exchange.wait(patience)
        if event is None:
            yield None
        elif isinstance(event, MessageEnded):
            yield from narration.end(event)
            return
        else:
            yield from narration.tell(event)
    yield from narration.end(MessageEnded())


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


def _extension(exchange: Asked, ending: Ending) -> dict[str, Any]:
    extension = translate.to_extension(exchange.ids)
    if ending.resources:
        extension["retriever_resources"] = list(ending.resources)
    if ending.run_status:
        extension["status"] = ending.run_status
    return {"dify": extension}
