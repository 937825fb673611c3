"""The story of one chat request: it is asked, and its answer is given whole or in chunks."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from opendify import errors, openwebui, sse, tasks, translate
from opendify.chores import Chores, LocalAnswer
from opendify.chunks import ChatStreamWriter
from opendify.config.models import Model
from opendify.exchange import Caller, Exchange, Parts
from opendify.openai import answers
from opendify.openai.requests import ChatRequest, nameable
from opendify.steps import NEEDS_THREAD, Steps
from opendify.telling.file_links import FileLinkResolver, is_resolved
from opendify.telling.tellings import Completion, ReasoningDelta, Reset, TextDelta

# What a request is answered with: by Dify, or without it.
Asked = Exchange | LocalAnswer

# The status of a streamed answer is held back until Dify says something that decides it, so that
# a refusal is a refusal and not a broken stream: for so long at most.
HOLD_SECONDS = 10.0

KEEP_ALIVE_SECONDS = 10.0

# So much may leave together with the end of the answer, after which its place counts as free.
_MAX_HELD_BYTES = 4 * 1024


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
        parts: Parts,
        now: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._parts = parts
        self._chores = Chores(parts)
        self._now = now
        self._new_id = new_id

    def answering_model(self, request: ChatRequest, caller: Caller) -> Model:
        """The model whose app answers the request: for a background task it may be another than
        the one that is asked for. Raises ModelNotFound."""
        model = find_model(request.model, caller.models)
        if tasks.recognise(request, caller.task):
            return self._chores.answering_model(model, caller)
        return model

    def ask(self, request: ChatRequest, caller: Caller) -> Asked:
        """Puts the question on its way to Dify. Raises CallerGone, CallerError and DifyError."""
        model = find_model(request.model, caller.models)
        if replaced := translate.to_ignored_inputs(request, model):
            request = replace(request, ignored=nameable((*replaced, *request.ignored)))
        if kind := tasks.recognise(request, caller.task):
            return self._chores.ask(kind, request, model, caller)
        is_temporary = openwebui.is_temporary(caller.chat_id)
        return Exchange(request, model, caller, self._parts, is_throwaway=is_temporary)

    def gather(self, exchange: Asked) -> dict[str, Any]:
        """The whole answer. Raises CallerGone and DifyError."""
        texts: list[str] = []
        reasoning: list[str] = []
        renderer = exchange.new_renderer()
        links = FileLinkResolver(exchange.link)
        while not renderer.has_ended:
            exchange.wait(float("inf"))
            rendered = [renderer.feed(event) for event in exchange.take()]
            for delta in chain.from_iterable(map(links.resolve, rendered)):
                match delta:
                    case TextDelta(text):
                        texts.append(text)
                    case ReasoningDelta(text):
                        reasoning.append(text)
                    case Reset():
                        texts.clear()
                        reasoning.clear()
        completion = renderer.completion
        text = "".join(texts)
        exchange.settle(text, completion.usage, renderer.is_cut)
        answer = answers.completion(
            self._head(exchange),
            text,
            completion.finish_reason,
            translate.to_tokens(completion.usage),
            reasoning="".join(reasoning),
            annotations=completion.annotations,
        )
        return answer | _extension(exchange, completion)

    def stream(self, exchange: Asked) -> Steps[bytes]:
        """The event stream of an answer, up to its last chunk: what came together leaves together,
        each as soon as it is known, and a comment where nothing comes for long.

        Raises CallerGone and DifyError.
        """
        while not exchange.has_begun:
            yield sse.KEEP_ALIVE
            yield NEEDS_THREAD
            exchange.hold(KEEP_ALIVE_SECONDS)
        head = self._head(exchange)
        yield sse.encode(answers.chunk(head, {"role": "assistant", "content": ""}))
        renderer = exchange.new_renderer()
        links = FileLinkResolver(exchange.link)
        writer = ChatStreamWriter(head)
        while not renderer.has_ended:
            is_readable = yield exchange.wait(KEEP_ALIVE_SECONDS)
            events = exchange.take(is_readable)
            rendered = [renderer.feed(event) for event in events]
            if not all(map(is_resolved, rendered)):
                yield NEEDS_THREAD  # to fetch files
            if deltas := [*chain.from_iterable(map(links.resolve, rendered))]:
                yield writer.write(deltas)
            elif not (events or is_readable):
                yield sse.KEEP_ALIVE
        yield NEEDS_THREAD
        completion = renderer.completion
        exchange.settle(writer.text(), completion.usage, renderer.is_cut)
        delta = {"annotations": completion.annotations} if completion.annotations else {}
        last = answers.chunk(head, delta, completion.finish_reason)
        data = sse.encode(last | _extension(exchange, completion))
        yield data
        if len(data) > _MAX_HELD_BYTES:
            yield NEEDS_THREAD
        if head.include_usage and completion.usage is not None:
            yield sse.encode(answers.usage_chunk(head, translate.to_tokens(completion.usage)))

    def _head(self, exchange: Asked) -> answers.Head:
        ids = exchange.ids
        return answers.Head(
            id=f"chatcmpl-{ids.message_id or ids.workflow_run_id or self._new_id()}",
            created=ids.created_at or int(self._now()),
            model=exchange.request.model,
            include_usage=exchange.request.include_usage,
        )


def _extension(exchange: Asked, completion: Completion) -> dict[str, Any]:
    extension = translate.to_extension(exchange.ids)
    if completion.resources:
        extension["retriever_resources"] = list(completion.resources)
    if completion.run_status:
        extension["status"] = completion.run_status
    return {"dify": extension}
