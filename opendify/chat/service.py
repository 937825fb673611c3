"""Answers chat requests, with a whole response or a stream."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter

from opendify import errors
from opendify.chat import task_detection
from opendify.chat.background_tasks import BackgroundTasks, StaticTurn
from opendify.chat.context import RequestContext, Services
from opendify.chat.tasks import Task
from opendify.chat.turn import ChatTurn
from opendify.config.aliases import match_rank
from opendify.config.models import Model
from opendify.protocols.base import ChatPrompt
from opendify.protocols.responses import ResponseMeta, StreamWriter, WholeResponse
from opendify.rendering.deltas import ReasoningDelta, Reset, TextDelta
from opendify.rendering.file_links import FileLinkResolver, is_resolved
from opendify.streaming import BLOCKING, ResumableBodyWithTail

# Answered by Dify, or without it.
Turn = ChatTurn | StaticTurn

# The status of a streamed response is held back until an event of Dify's decides it, so that an
# error has an error status instead of breaking a stream; at most for this long.
HOLD_SECONDS = 10.0

KEEP_ALIVE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Route:
    """The requested model, the model whose app answers (for a background task possibly another
    one), and the background task; None for a turn of a chat."""

    model: Model
    answering_model: Model
    task: Task | None


def find_model(name: str, models: Mapping[str, Model], default: str = "") -> Model:
    """The model of this name or alias among those that the caller may use, otherwise the model
    ``default`` if it is one of these. Raises ModelNotFound."""
    model = models.get(name) or _find_by_alias(name, models) or models.get(default)
    if model is None:
        raise errors.ModelNotFound(
            f"There is no model '{name[:200]}'; GET /v1/models lists them.", param="model"
        )
    return model


def _find_by_alias(name: str, models: Mapping[str, Model]) -> Model | None:
    fitting = [
        (rank, model)
        for model in models.values()
        for alias in model.aliases
        if (rank := match_rank(alias, name))
    ]
    return max(fitting, key=itemgetter(0))[1] if fitting else None


class ChatService:
    """Answers chat requests. ``now`` returns epoch seconds, ``new_id`` an id for a response.
    ``default_model`` answers where a request names a model that the caller does not have."""

    def __init__(
        self,
        services: Services,
        now: Callable[[], float],
        new_id: Callable[[], str],
        default_model: str = "",
    ) -> None:
        self._services = services
        self._background_tasks = BackgroundTasks(services)
        self._now = now
        self._new_id = new_id
        self._default_model = default_model

    def default_model(self, models: Mapping[str, Model]) -> str:
        """The model for a request that names none, of a caller who may use ``models``; empty if
        there is none."""
        return self._default_model if self._default_model in models else ""

    def route(self, prompt: ChatPrompt, context: RequestContext) -> Route:
        """Which model answers the request, and as what. Raises ModelNotFound."""
        model = find_model(prompt.model, context.models, self._default_model)
        task = task_detection.detect(prompt, context.task)
        answering = self._background_tasks.answering_model(model, context) if task else model
        return Route(model, answering, task)

    def start(self, route: Route, prompt: ChatPrompt, context: RequestContext) -> Turn:
        """Sends the request to Dify. The returned turn must be closed. Raises ClientDisconnected,
        CallerError and DifyError."""
        if route.task is not None:
            return self._background_tasks.start(
                route.task, prompt, route.model, route.answering_model, context
            )
        if prompt.options.conversation_id and not route.model.keep:
            raise errors.InvalidRequest(
                f"The model '{route.model.name}' keeps no conversations (its setting 'keep' is "
                "false): leave out 'conversation_id', or ask another model.",
                param="conversation_id",
            )
        is_throwaway = context.is_temporary_chat or not route.model.keep
        return ChatTurn.start(
            prompt, route.model, context, self._services, is_throwaway=is_throwaway
        )

    def complete(self, turn: Turn) -> WholeResponse:
        """The whole response. Raises ClientDisconnected and DifyError."""
        texts: list[str] = []
        reasoning: list[str] = []
        renderer = turn.new_renderer()
        links = FileLinkResolver(turn.link)
        while not renderer.has_ended:
            turn.wait(float("inf"))
            rendered = [each for event in turn.next_events() for each in renderer.feed(event)]
            for delta in links.resolve(rendered):
                match delta:
                    case TextDelta(text):
                        texts.append(text)
                    case ReasoningDelta(text):
                        reasoning.append(text)
                    case Reset():
                        texts.clear()
                        reasoning.clear()
        text, completion = "".join(texts), renderer.completion
        turn.commit(text, completion.usage, renderer.hit_stop_sequence)
        return WholeResponse(self._meta(turn), text, "".join(reasoning), completion)

    def stream(self, turn: Turn, writer: StreamWriter) -> ResumableBodyWithTail[bytes]:
        """Yields the bytes of a streamed response: events that arrived together are sent together.
        Returns the last bytes instead of yielding them, for the caller to send.

        Raises ClientDisconnected and DifyError.
        """
        while not turn.has_started:
            yield writer.keep_alive()
            yield BLOCKING
            turn.await_status(KEEP_ALIVE_SECONDS)
        yield writer.start(self._meta(turn))
        renderer = turn.new_renderer()
        links = FileLinkResolver(turn.link)
        while not renderer.has_ended:
            is_readable = yield turn.wait(KEEP_ALIVE_SECONDS)
            events = turn.next_events(is_readable)
            rendered = [each for event in events for each in renderer.feed(event)]
            if is_resolved(rendered):
                deltas = rendered
            else:
                yield BLOCKING  # to fetch files
                deltas = links.resolve(rendered)
            if deltas:
                yield writer.write(deltas)
            elif not (events or is_readable):
                yield writer.keep_alive()
        yield BLOCKING
        completion = renderer.completion
        turn.commit(writer.text, completion.usage, renderer.hit_stop_sequence)
        return writer.finish(self._meta(turn), completion)

    def _meta(self, turn: Turn) -> ResponseMeta:
        ids = turn.ids
        return ResponseMeta(
            id=ids.message_id or ids.workflow_run_id or self._new_id(),
            created=ids.created_at or int(self._now()),
            model=turn.prompt.model,
            ids=ids,
        )
