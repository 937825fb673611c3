"""What is known of each model's Dify app: asked when it is first needed, kept, refreshed.

Nothing here makes a question fail: where Dify does not tell, the app is taken for a chat, and
the answer to the question itself says what is wrong.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from opendify import errors
from opendify.config.models import Model
from opendify.dify.apps import App, parse_app
from opendify.upstream.client import DifyClient

log = logging.getLogger(__name__)

LOOKUP_TIMEOUT = 10.0
KEPT_SECONDS = 600.0
UNTOLD_SECONDS = 30.0

_PROBES = (
    ("/chat-messages", "chat", "not_chat_app"),
    ("/workflows/run", "workflow", "not_workflow_app"),
)


@dataclass(frozen=True, slots=True)
class _Entry:
    app: App
    until: float


class Directory:
    """The apps behind the models. One in each worker; asks nothing before it is used."""

    def __init__(self, client: DifyClient, models: Mapping[str, Model]) -> None:
        self._client = client
        self._models = models
        self._entries: dict[str, _Entry] = {}
        self._refresher: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def app(self, model: Model) -> App:
        """The app behind the model, asking Dify where it is not known yet.

        Raises DifyUnreachable where there is no Dify to ask.
        """
        self.keep_fresh()
        entry = self._entries.get(model.name)
        if entry is None or (not entry.app.mode and time.monotonic() > entry.until):
            entry = self._ask(model)
        return entry.app

    def known(self, name: str) -> App:
        """The app as far as it is known, without asking."""
        entry = self._entries.get(name)
        return entry.app if entry else App()

    def forget(self, model: Model) -> None:
        """Drops what is known of an app that Dify has shown to be another."""
        self._entries.pop(model.name, None)

    def keep_fresh(self) -> None:
        """Sees to it that a thread of this process refreshes all entries from time to time."""
        if self._refresher is not None and self._refresher.is_alive():
            return
        with self._lock:
            if self._refresher is None or not self._refresher.is_alive():
                self._refresher = threading.Thread(
                    target=self._refresh_until_closed, name="directory", daemon=True
                )
                self._refresher.start()

    def close(self) -> None:
        """Ends the refreshing; what is known stays."""
        self._closed.set()
        if self._refresher is not None:
            self._refresher.join(LOOKUP_TIMEOUT)

    def _refresh_until_closed(self) -> None:
        while not self._closed.wait(1.0):
            for model in self._models.values():
                entry = self._entries.get(model.name)
                if entry is None or time.monotonic() > entry.until:
                    try:
                        self._ask(model)
                    except errors.DifyError as exc:
                        self._entries.setdefault(
                            model.name, _Entry(App(), time.monotonic() + UNTOLD_SECONDS)
                        )
                        log.info("an app is not known model=%s code=%s", model.name, exc.code)

    def _ask(self, model: Model) -> _Entry:
        info = parameters = None
        try:
            info = self._get(model, "/info")
            parameters = self._get(model, "/parameters")
        except errors.DifyTimeout:
            log.info("Dify did not tell in time model=%s", model.name)
        app = parse_app(info, parameters)
        if model.type or not app.mode:
            app = replace(app, mode=model.type or self._probe(model, info))
        seconds = KEPT_SECONDS if app.mode and parameters is not None else UNTOLD_SECONDS
        entry = _Entry(app, time.monotonic() + seconds)
        self._entries[model.name] = entry
        return entry

    def _get(self, model: Model, path: str) -> Any:
        try:
            return self._client.call(model, "GET", path, LOOKUP_TIMEOUT)
        except (errors.DifyUnreachable, errors.DifyTimeout):
            raise
        except errors.OpenDifyError as exc:
            log.info("Dify did not tell model=%s path=%s code=%s", model.name, path, exc.code)
            return None

    def _probe(self, model: Model, info: Any) -> str:
        """The mode of an app of a Dify before 1.4, by questions that ask nothing: the mode is
        checked before the body. "" where that does not tell either."""
        if info is None:
            return ""
        for path, mode, refusal in _PROBES:
            try:
                self._client.call(model, "POST", path, LOOKUP_TIMEOUT, json={"user": "probe"})
            except errors.DifyMisconfigured as exc:
                if exc.dify_code != refusal:
                    return ""
            except errors.RejectedByDify:
                return mode
            except errors.OpenDifyError:
                return ""
        return "completion"
