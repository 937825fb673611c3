"""Answers background tasks without touching the conversation of the chat that they belong to.

A task runs in a throwaway conversation, or is answered here without a run: with what Dify's API
knows about the chat, else with the default answer of the task.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from opendify import errors
from opendify.chat import client_tasks, tasks
from opendify.chat.context import RequestContext, Services
from opendify.chat.tasks import Task
from opendify.chat.turn import ChatTurn, owner_of
from opendify.config.models import Model
from opendify.dify import conversation_api, endpoints
from opendify.dify.apps import App
from opendify.dify.events import (
    Event,
    Ids,
    MessageEnded,
    Text,
    Usage,
)
from opendify.protocols.base import ChatPrompt
from opendify.rendering.renderer import ResponseRenderer
from opendify.streaming import BLOCKING, WaitFor

log = logging.getLogger(__name__)

# Open WebUI requests a title up to 2.6 s before the first turn of the chat (median 0.2 s).
SECONDS_FOR_FIRST_TURN = 5.0
_POLL_INTERVAL_SECONDS = 0.1

# Dify has a model generate names and suggested questions; nobody waits longer for them.
CALL_TIMEOUT = 20.0

_MODEL_PREFIX = "model:"


class StaticTurn:
    """A response that is complete from the start, with the interface of a ChatTurn."""

    has_started = True
    has_ended = True
    ignored: tuple[str, ...] = ()
    continuity = ""
    usage: Usage | None = None

    def __init__(self, prompt: ChatPrompt, model: Model, text: str) -> None:
        self.prompt = prompt
        self.ids = Ids()
        self._model = replace(model, reasoning="inline")
        self._text = text

    def new_renderer(self) -> ResponseRenderer:
        """A renderer for this response."""
        return ResponseRenderer(self._model, "", self.prompt.stop, "off")

    def link(self, url: str, name: str, kind: str) -> str:
        """No file here is Dify's: URLs stay as they are."""
        return ""

    def await_status(self, seconds: float) -> None:
        """There is nothing to wait for."""

    def wait(self, seconds: float) -> WaitFor:
        """There is nothing to wait for."""
        return BLOCKING

    def next_events(self, is_readable: bool | None = None) -> list[Event]:
        """All events."""
        return [Text(self._text), MessageEnded()]

    def commit(self, text: str, usage: Usage | None, is_cut: bool) -> None:
        """Nothing is stored."""

    def close(self) -> None:
        """There is nothing to release."""

    def stop_and_wait(self) -> None:
        """There is no run in Dify."""

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` immediately: there is no run in Dify."""
        callback()


class BackgroundTasks:
    """Answers background tasks."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._warned: set[tuple[str, str]] = set()

    def answering_model(self, model: Model, context: RequestContext) -> Model:
        """The model, with a key, that answers the background tasks of ``model``: the helper model
        of its setting ``tasks`` if the caller may use that one, else ``model`` itself."""
        if not model.tasks.startswith(_MODEL_PREFIX):
            return model
        name = model.tasks.removeprefix(_MODEL_PREFIX)
        helper = context.models.get(name)
        if helper is None:
            self._warn(model.name, name, context.name)
            return model
        return helper if helper.key else replace(helper, key=model.key)

    def start(
        self,
        task: Task,
        prompt: ChatPrompt,
        model: Model,
        answering: Model,
        context: RequestContext,
    ) -> ChatTurn | StaticTurn:
        """The response to a task; ``answering`` is the ``answering_model`` of ``model``. Raises
        ClientDisconnected, CallerError and DifyError."""
        policy = tasks.policy(model, task)
        if policy.startswith(_MODEL_PREFIX) and answering is model:
            policy = tasks.default_policy(model, task)
        log.info("a background task model=%s kind=%s by=%s", model.name, task.kind, policy)
        if policy == "local":
            return StaticTurn(prompt, model, self._answer(task, model, context))
        if answering.history == "drop":  # a task is about the messages before it
            answering = replace(answering, history="query")
        if task.asks_in_system:
            prompt = replace(prompt, messages=client_tasks.as_question(prompt.messages))
        options = replace(prompt.options, conversation_id="", auto_generate_name=False)
        prompt = replace(prompt, options=options)
        return ChatTurn.start(prompt, answering, context, self._services, is_throwaway=True)

    def _warn(self, model: str, helper: str, caller_name: str) -> None:
        if (model, caller_name) not in self._warned:
            self._warned.add((model, caller_name))
            log.warning(
                "The background tasks of model '%s' are not answered by '%s' for the caller '%s', "
                "who may not use it: OPENDIFY_API_KEYS.",
                model,
                helper,
                caller_name,
            )

    def _answer(self, task: Task, model: Model, context: RequestContext) -> str:
        content: str | list[str] = ""
        if context.chat_id and not context.is_temporary_chat:
            try:
                content = self._ask_dify(task.kind, model, context)
            except errors.OpenDifyError as exc:
                log.info(
                    "Dify has no answer to a task model=%s kind=%s code=%s",
                    model.name,
                    task.kind,
                    exc.code,
                )
        return task.answer(content)

    def _ask_dify(self, kind: str, model: Model, context: RequestContext) -> str | list[str]:
        if kind not in (tasks.TITLE, tasks.FOLLOW_UPS):
            return ""
        app = self._services.app_registry.app(model)
        if not endpoints.has_conversations(app.mode):
            return ""
        if kind == tasks.TITLE:
            return self._title(model, context)
        return self._follow_ups(model, app, context)

    def _title(self, model: Model, context: RequestContext) -> str:
        key = owner_of(context, model).chat_key(context.chat_id)
        conversation_id = self._await_conversation(key, context)
        if not conversation_id:
            return ""
        body = {"auto_generate": True, "user": context.user}
        path = f"/conversations/{conversation_id}/name"
        return conversation_api.parse_name(self._call(model, "POST", path, json=body))

    def _follow_ups(self, model: Model, app: App, context: RequestContext) -> list[str]:
        key = owner_of(context, model).chat_key(context.chat_id)
        record = self._services.conversations.get(key)
        if record is None or not app.suggestions:
            return []
        newest = self._call(
            model,
            "GET",
            "/messages",
            params={
                "conversation_id": record.latest.conversation_id,
                "user": context.user,
                "limit": 1,
            },
        )
        message_id = conversation_api.parse_newest_message(newest)
        if not message_id:
            return []
        path = f"/messages/{message_id}/suggested"
        return conversation_api.parse_suggestions(
            self._call(model, "GET", path, params={"user": context.user})
        )

    def _await_conversation(self, key: str, context: RequestContext) -> str:
        """The conversation of a chat whose first turn may not have arrived yet; "" for none."""
        deadline = time.monotonic() + SECONDS_FOR_FIRST_TURN
        while (record := self._services.conversations.get(key)) is None:
            if time.monotonic() > deadline:
                return ""
            context.cancellation.raise_if_cancelled()
            time.sleep(_POLL_INTERVAL_SECONDS)
        return record.latest.conversation_id

    def _call(self, model: Model, method: str, path: str, **content: Any) -> Any:
        return self._services.client.call(model, method, path, CALL_TIMEOUT, **content)
