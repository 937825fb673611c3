"""The story of one chat request: it is asked, and its answer is given whole or in chunks."""

from collections.abc import Callable, Mapping
from itertools import chain

from opendify import errors
from opendify.chat import task_detection
from opendify.chat.background_tasks import BackgroundTasks, StaticTurn
from opendify.chat.turn import ChatTurn, RequestContext, Services
from opendify.config.models import Model
from opendify.protocols.base import ChatPrompt
from opendify.protocols.responses import ResponseMeta, StreamWriter, WholeResponse
from opendify.rendering.deltas import ReasoningDelta, Reset, TextDelta
from opendify.rendering.file_links import FileLinkResolver, is_resolved
from opendify.streaming import BLOCKING, StepsWithEnd

# What a request is answered with: by Dify, or without it.
Turn = ChatTurn | StaticTurn

# The status of a streamed answer is held back until Dify says something that decides it, so that
# a refusal is a refusal and not a broken stream: for so long at most.
HOLD_SECONDS = 10.0

KEEP_ALIVE_SECONDS = 10.0


def find_model(name: str, models: Mapping[str, Model]) -> Model:
    """The model of this name among those that the caller may use. Raises ModelNotFound."""
    model = models.get(name)
    if model is None:
        raise errors.ModelNotFound(
            f"There is no model '{name[:200]}'; GET /v1/models lists them.", param="model"
        )
    return model


class ChatService:
    """Answers chat requests. ``now`` gives epoch seconds, ``new_id`` an id for an answer."""

    def __init__(
        self,
        parts: Services,
        now: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._services = parts
        self._background_tasks = BackgroundTasks(parts)
        self._now = now
        self._new_id = new_id

    def answering_model(self, prompt: ChatPrompt, caller: RequestContext) -> Model:
        """The model whose app answers the request: for a background task it may be another than
        the one that is asked for. Raises ModelNotFound."""
        model = find_model(prompt.model, caller.models)
        if task_detection.detect(prompt, caller.task):
            return self._background_tasks.answering_model(model, caller)
        return model

    def start(self, prompt: ChatPrompt, caller: RequestContext) -> Turn:
        """Puts the question on its way to Dify. Raises CallerGone, CallerError and DifyError."""
        model = find_model(prompt.model, caller.models)
        if kind := task_detection.detect(prompt, caller.task):
            return self._background_tasks.start(kind, prompt, model, caller)
        is_throwaway = caller.is_temporary_chat
        return ChatTurn(prompt, model, caller, self._services, is_throwaway=is_throwaway)

    def complete(self, exchange: Turn) -> WholeResponse:
        """The whole answer. Raises CallerGone and DifyError."""
        texts: list[str] = []
        reasoning: list[str] = []
        renderer = exchange.new_renderer()
        links = FileLinkResolver(exchange.link)
        while not renderer.has_ended:
            exchange.wait(float("inf"))
            rendered = [renderer.feed(event) for event in exchange.next_events()]
            for delta in chain.from_iterable(map(links.resolve, rendered)):
                match delta:
                    case TextDelta(text):
                        texts.append(text)
                    case ReasoningDelta(text):
                        reasoning.append(text)
                    case Reset():
                        texts.clear()
                        reasoning.clear()
        text, completion = "".join(texts), renderer.completion
        exchange.commit(text, completion.usage, renderer.is_cut)
        return WholeResponse(self._meta(exchange), text, "".join(reasoning), completion)

    def stream(self, exchange: Turn, writer: StreamWriter) -> StepsWithEnd[bytes]:
        """The steps of a streamed answer: what came together leaves together, each as soon as it
        is known. Returns its end, which is left to the caller to send.

        Raises CallerGone and DifyError.
        """
        while not exchange.has_begun:
            yield writer.keep_alive()
            yield BLOCKING
            exchange.await_status(KEEP_ALIVE_SECONDS)
        yield writer.start(self._meta(exchange))
        renderer = exchange.new_renderer()
        links = FileLinkResolver(exchange.link)
        while not renderer.has_ended:
            is_readable = yield exchange.wait(KEEP_ALIVE_SECONDS)
            events = exchange.next_events(is_readable)
            rendered = [renderer.feed(event) for event in events]
            if not all(map(is_resolved, rendered)):
                yield BLOCKING  # to fetch files
            if deltas := [*chain.from_iterable(map(links.resolve, rendered))]:
                yield writer.write(deltas)
            elif not (events or is_readable):
                yield writer.keep_alive()
        yield BLOCKING
        completion = renderer.completion
        exchange.commit(writer.text, completion.usage, renderer.is_cut)
        return writer.finish(self._meta(exchange), completion)

    def _meta(self, exchange: Turn) -> ResponseMeta:
        ids = exchange.ids
        return ResponseMeta(
            id=ids.message_id or ids.workflow_run_id or self._new_id(),
            created=ids.created_at or int(self._now()),
            model=exchange.prompt.model,
            ids=ids,
        )
