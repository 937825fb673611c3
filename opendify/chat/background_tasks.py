"""Answers background tasks, away from the conversation of the person they belong to.

A task is run in a conversation that is thrown away, or answered here, without a run: with what
Dify itself has to say of the chat, and else with nothing, in the shape that was asked for.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from opendify import errors
from opendify.chat import task_detection
from opendify.chat.turn import (
    ChatTurn,
    RequestContext,
    Services,
    owner_of,
)
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

# Open WebUI asks for a title up to 2.6 s before the first turn of the chat (median 0.2 s).
SECONDS_FOR_FIRST_TURN = 5.0
_SECONDS_BETWEEN_LOOKS = 0.1

# Dify asks a model for a name or for questions; nobody waits for them for long.
CALL_SECONDS = 20.0

_HELPER = "model:"


class StaticTurn:
    """An answer that is complete already, told to its caller as that of an Exchange is."""

    has_begun = True
    has_ended = True
    ignored: tuple[str, ...] = ()
    usage: Usage | None = None

    def __init__(self, prompt: ChatPrompt, model: Model, text: str) -> None:
        self.prompt = prompt
        self.ids = Ids()
        self._model = replace(model, reasoning="inline")
        self._text = text

    def new_renderer(self) -> ResponseRenderer:
        """Renders this answer."""
        return ResponseRenderer(self._model, "", self.prompt.stop, "off")

    def link(self, url: str, name: str, kind: str) -> str:
        """No file is Dify's here: addresses stay as they are."""
        return ""

    def await_status(self, seconds: float) -> None:
        """There is nothing to wait for."""

    def wait(self, seconds: float) -> WaitFor:
        """There is nothing to wait for."""
        return BLOCKING

    def next_events(self, is_readable: bool | None = None) -> list[Event]:
        """All events, at once."""
        return [Text(self._text), MessageEnded()]

    def commit(self, said: str, usage: Usage | None, is_cut: bool) -> None:
        """Nothing is remembered of it."""

    def close(self) -> None:
        """Nothing is held."""

    def end(self) -> None:
        """There is no run in Dify."""

    def when_over(self, callback: Callable[[], None]) -> None:
        """Calls ``callback``: there is no run in Dify."""
        callback()


class BackgroundTasks:
    """Answers background tasks."""

    def __init__(self, parts: Services) -> None:
        self._parts = parts
        self._complained: set[tuple[str, str]] = set()

    def answering_model(self, model: Model, caller: RequestContext) -> Model:
        """The model that answers the background tasks of this one for the caller, with a key: the
        helper of its setting ``tasks``, else itself. Nobody gets a helper that they may not use."""
        if not model.tasks.startswith(_HELPER):
            return model
        name = model.tasks.removeprefix(_HELPER)
        helper = caller.models.get(name)
        if helper is None:
            self._complain(model.name, name, caller.name)
            return model
        return helper if helper.key else replace(helper, key=model.key)

    def start(
        self, kind: str, prompt: ChatPrompt, model: Model, caller: RequestContext
    ) -> ChatTurn | StaticTurn:
        """The answer to a task of this kind. Raises CallerGone, CallerError and DifyError."""
        treatment, answering = model.tasks, self.answering_model(model, caller)
        if not treatment:
            mode = self._parts.directory.app(model).mode
            treatment = task_detection.policy("", kind, mode)
        elif treatment.startswith(_HELPER) and answering is model:
            # A person waits to read a merged answer; the others serve the client alone.
            treatment = "throwaway" if kind == task_detection.MERGED_ANSWER else "local"
        log.info("a background task model=%s kind=%s by=%s", model.name, kind, treatment)
        if treatment == "local":
            return StaticTurn(prompt, model, self._answer(kind, prompt, model, caller))
        options = replace(prompt.options, conversation_id="", auto_generate_name=False)
        prompt = replace(prompt, options=options)
        return ChatTurn(prompt, answering, caller, self._parts, is_throwaway=True)

    def _complain(self, model: str, helper: str, caller: str) -> None:
        if (model, caller) not in self._complained:
            self._complained.add((model, caller))
            log.warning(
                "The background tasks of model '%s' are not answered by '%s' for the caller '%s', "
                "who may not use it: OPENDIFY_API_KEYS.",
                model,
                helper,
                caller,
            )

    def _answer(self, kind: str, prompt: ChatPrompt, model: Model, caller: RequestContext) -> str:
        content: str | list[str] = ""
        if caller.chat_id and not caller.is_temporary_chat:
            try:
                content = self._ask_dify(kind, model, caller)
            except errors.OpenDifyError as exc:
                log.info("Dify told nothing model=%s kind=%s code=%s", model.name, kind, exc.code)
        if content:
            return task_detection.answer(kind, content)
        return task_detection.empty_answer(kind, prompt.messages[-1].text)

    def _ask_dify(self, kind: str, model: Model, caller: RequestContext) -> str | list[str]:
        if kind not in (task_detection.TITLE, task_detection.FOLLOW_UPS):
            return ""
        app = self._parts.directory.app(model)
        if not endpoints.has_conversations(app.mode):
            return ""
        if kind == task_detection.TITLE:
            return self._title(model, caller)
        return self._follow_ups(model, app, caller)

    def _title(self, model: Model, caller: RequestContext) -> str:
        key = owner_of(caller, model).chat_key(caller.chat_id)
        conversation_id = self._await_conversation(key, caller)
        if not conversation_id:
            return ""
        body = {"auto_generate": True, "user": caller.user}
        path = f"/conversations/{conversation_id}/name"
        return conversation_api.parse_name(self._call(model, "POST", path, json=body))

    def _follow_ups(self, model: Model, app: App, caller: RequestContext) -> list[str]:
        key = owner_of(caller, model).chat_key(caller.chat_id)
        mapping = self._parts.conversations.get(key)
        if mapping is None or not app.suggestions:
            return []
        newest = self._call(
            model,
            "GET",
            "/messages",
            params={
                "conversation_id": mapping.conversation_id,
                "user": caller.user,
                "limit": 1,
            },
        )
        message_id = conversation_api.parse_newest_message(newest)
        if not message_id:
            return []
        path = f"/messages/{message_id}/suggested"
        return conversation_api.parse_suggestions(
            self._call(model, "GET", path, params={"user": caller.user})
        )

    def _await_conversation(self, key: str, caller: RequestContext) -> str:
        """The conversation of a chat, whose first turn may be on its way still."""
        until = time.monotonic() + SECONDS_FOR_FIRST_TURN
        while (mapping := self._parts.conversations.get(key)) is None:
            if time.monotonic() > until:
                return ""
            caller.cancellation.raise_if_cancelled()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return mapping.conversation_id

    def _call(self, model: Model, method: str, path: str, **content: Any) -> Any:
        return self._parts.client.call(model, method, path, CALL_SECONDS, **content)
