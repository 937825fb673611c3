"""What is known of each model's Dify app: asked when it is first needed, kept, refreshed.

Nothing here makes a question fail: where Dify does not tell, the app is taken for a chat, and
the answer to the question itself says what is wrong.
"""

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from opendify import errors
from opendify.config.models import Model
from opendify.dify.apps import App, parse_app
from opendify.observability.logs import log_fields
from opendify.upstream.client import RESTART_SECONDS, DifyClient

log = logging.getLogger(__name__)

LOOKUP_TIMEOUT = 10.0
KEPT_SECONDS = 600.0
UNTOLD_SECONDS = 30.0
MOST_OF_CALLERS = 2000

# An app can be changed in Dify at any time; one that was asked about so lately was not.
FRESH_SECONDS = 5.0

# A Dify that has told nothing for so long is asked whether it is there; one that was not there,
# by one of its models, after less.
LOOK_SECONDS = 30.0
SECONDS_TO_THE_NEXT_TRY = 10.0

_PROBES = (
    ("/chat-messages", "chat", "not_chat_app"),
    ("/workflows/run", "workflow", "not_workflow_app"),
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """``info`` and ``parameters`` are Dify's last answers, None where it gave none; ``trouble`` is
    the code of its refusal to tell, "" for none; ``since`` and ``until`` are times of
    ``time.monotonic``."""

    app: App
    since: float
    until: float
    info: Any = None
    parameters: Any = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class _Look:
    """Whether a Dify was there; ``trouble`` is the code of the error if not."""

    at: float
    trouble: str


class AppRegistry:
    """The apps behind the models. One in each worker; asks nothing before it is used.

    Models with a key are kept fresh. To those without, callers bring keys of their own: the apps
    behind these are asked for again when they are used and were not asked for long.
    """

    def __init__(self, client: DifyClient, models: Mapping[str, Model]) -> None:
        self._client = client
        self._models = models
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._asking: dict[tuple[str, str], Future[_Entry]] = {}
        self._looks: dict[str, _Look] = {}
        self._refresher: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._wake = threading.Event()
        self._has_looked = threading.Event()
        self._has_failed = False

    def app(self, model: Model) -> App:
        """The app behind the model, asking Dify where it is not known yet.

        Raises DifyUnreachable and DifyNotConnected where there is no Dify to ask.
        """
        self.keep_fresh()
        entry = self._entries.get(_name(model))
        is_kept_fresh = model.name in self._models and self._models[model.name].key == model.key
        may_be_old = not is_kept_fresh or (entry is not None and not entry.app.mode)
        if entry is None or (may_be_old and time.monotonic() > entry.until):
            entry = self._ask(model)
        return entry.app

    def known(self, model: Model) -> App:
        """The app as far as it is known, without asking."""
        entry = self._entries.get(_name(model))
        return entry.app if entry else App()

    def refreshed(self, model: Model) -> App:
        """The app, asked about again where the last time was long ago: for a request that does
        not suit what is known of it."""
        entry = self._entries.get(_name(model))
        if entry is None or time.monotonic() - entry.since > FRESH_SECONDS:
            try:
                entry = self._ask(model)
            except errors.DifyError:
                log.info("Dify is not there to tell model=%s", model.name)
        return entry.app if entry else App()

    def problems(self, patience: float) -> dict[str, str | None]:
        """By the name of each model with a key the code of what is wrong with Dify or its app, ""
        where nothing is, None where that is not known yet, for which it waits so many seconds."""
        self.keep_fresh()
        if not self._has_looked.is_set():
            self._wake.set()
            self._has_looked.wait(patience)
        return {model.name: self._trouble(model) for model in self._models.values() if model.key}

    def mark_stale(self, model: Model) -> None:
        """What is known of the app may be wrong: it is soon asked about again."""
        entry = self._entries.get(_name(model))
        if entry is not None and time.monotonic() - entry.since > FRESH_SECONDS:
            self._entries[_name(model)] = replace(entry, until=0.0)

    def forget(self, model: Model) -> None:
        """Drops what is known of an app that Dify has shown to be another."""
        self._entries.pop(_name(model), None)

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

    def close(self, patience: float = LOOKUP_TIMEOUT) -> None:
        """Ends the background thread, waiting up to ``patience`` seconds for a lookup in progress;
        what is known stays."""
        self._closed.set()
        self._wake.set()
        if self._refresher is not None:
            self._refresher.join(patience)

    def _trouble(self, model: Model) -> str | None:
        entry, look = self._entries.get(_name(model)), self._looks.get(model.base)
        if look and look.trouble:
            return look.trouble
        return entry.trouble if entry else None

    def _refresh_until_closed(self) -> None:
        while not self._closed.is_set():
            self._wake.wait(1.0)
            self._wake.clear()
            try:
                self._refresh()
                self._has_failed = False
            except Exception:
                if not self._has_failed:
                    log.exception("unexpected error while the apps are asked about themselves")
                self._has_failed = True
            self._has_looked.set()

    def _refresh(self) -> None:
        for model in filter(self._is_due, self._models.values()):
            if self._closed.is_set():
                return
            try:
                self._ask(model, patience=0.0)  # it asks again soon
            except errors.DifyError as exc:
                self._put_off(model)
                fields = {"model": model.name, "code": exc.code, **exc.details}
                log_fields(log, logging.INFO, "an app is not known", fields)

    def _is_due(self, model: Model) -> bool:
        now = time.monotonic()
        entry, look = self._entries.get(_name(model)), self._looks.get(model.base)
        if not model.key:
            return False
        if look and look.trouble:
            return now > look.at + SECONDS_TO_THE_NEXT_TRY
        return entry is None or now > entry.until or (not look or now > look.at + LOOK_SECONDS)

    def _put_off(self, model: Model) -> None:
        """What is known stays as it is for a while, since there is no Dify to ask."""
        now = time.monotonic()
        known = self._entries.get(_name(model)) or _Entry(App(), now, 0.0)
        self._entries[_name(model)] = replace(known, until=now + UNTOLD_SECONDS)

    def _ask(
        self, model: Model, patience: float = RESTART_SECONDS, is_second: bool = False
    ) -> _Entry:
        """Asks, or waits for the thread that does already: a burst of first requests is one
        question. That thread may be less patient (see ``DifyClient.call``)."""
        with self._lock:
            asked = self._asking.get(_name(model))
            if asked is None:
                answer: Future[_Entry] = Future()
                self._asking[_name(model)] = answer
        if asked is None:
            return self._ask_for_all(model, answer, patience)
        try:
            return asked.result()
        except errors.UpstreamUnreachable:
            if is_second:
                raise
        return self._ask(model, patience, is_second=True)

    def _ask_for_all(self, model: Model, answer: "Future[_Entry]", patience: float) -> _Entry:
        try:
            entry = self._asked(model, patience)
        except BaseException as exc:
            if isinstance(exc, errors.DifyError):
                self._looks[model.base] = _Look(time.monotonic(), exc.code or "error")
            answer.set_exception(exc)
            raise
        else:
            self._keep(model, entry)
            answer.set_result(entry)
            return entry
        finally:
            with self._lock:
                del self._asking[_name(model)]

    def _asked(self, model: Model, patience: float) -> _Entry:
        info = parameters = None
        trouble = silence = ""
        try:
            info, _ = self._get(model, "/info", patience)
            parameters, trouble = self._get(model, "/parameters", patience)
        except errors.UpstreamConnectTimeout:
            raise
        except errors.UpstreamTimeout as exc:
            silence = exc.code or "error"
            log.info("Dify did not tell in time model=%s", model.name)
        self._looks[model.base] = _Look(time.monotonic(), silence)
        is_told = parameters is not None
        if known := self._entries.get(_name(model)):
            info, parameters = info or known.info, parameters or known.parameters
        app = parse_app(info, parameters)
        if model.type or not app.mode:
            app = replace(app, mode=model.type or self._probe(model, info or parameters))
        now = time.monotonic()
        seconds = KEPT_SECONDS if app.mode and is_told else UNTOLD_SECONDS
        return _Entry(app, now, now + seconds, info, parameters, trouble)

    def _keep(self, model: Model, entry: _Entry) -> None:
        self._entries[_name(model)] = entry
        with suppress(StopIteration, KeyError, RuntimeError):  # another thread does the same
            if len(self._entries) > len(self._models) + MOST_OF_CALLERS:
                del self._entries[next(iter(self._entries))]

    def _get(self, model: Model, path: str, patience: float) -> tuple[Any, str]:
        """What Dify tells, and the code of the error where it does not."""
        try:
            return self._client.call(model, "GET", path, LOOKUP_TIMEOUT, patience), ""
        except (errors.UpstreamUnreachable, errors.UpstreamTimeout):
            raise
        except errors.OpenDifyError as exc:
            log.info("Dify did not tell model=%s path=%s code=%s", model.name, path, exc.code)
            return None, exc.code or "error"

    def _probe(self, model: Model, told: Any) -> str:
        """The mode of an app of a Dify before 1.4, by questions that ask nothing: the mode is
        checked before the body. "" where that does not tell either. ``told`` is anything that
        Dify has told of the app: where that is nothing, it would not tell this either."""
        if told is None:
            return ""
        for path, mode, refusal in _PROBES:
            try:
                self._client.call(model, "POST", path, LOOKUP_TIMEOUT, json={"user": "probe"})
            except errors.UpstreamConfigError as exc:
                if exc.dify_code != refusal:
                    return ""
            except errors.RejectedByDify:
                return mode
            except errors.OpenDifyError:
                return ""
        return "completion"


def _name(model: Model) -> tuple[str, str]:
    """Of one model name there may be apps with several keys."""
    return model.name, model.key
