"""A cache of the metadata of each model's Dify app, fetched on first use and refreshed.

Missing metadata does not make a chat request fail: the app is then treated as a chat, and Dify's
response to the request itself says what is wrong.
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
CACHE_SECONDS = 600.0
INCOMPLETE_CACHE_SECONDS = 30.0
MAX_CALLER_APPS = 2000

# An app can be changed in Dify at any time; metadata younger than this is not fetched again.
FRESH_SECONDS = 5.0

# How often each Dify is checked for availability, and how soon again while it is unavailable.
CHECK_INTERVAL_SECONDS = 30.0
UNREACHABLE_RETRY_SECONDS = 10.0

_PROBES = (
    ("/chat-messages", "chat", "not_chat_app"),
    ("/workflows/run", "workflow", "not_workflow_app"),
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """``info`` and ``parameters`` are Dify's last responses, None where there was none; ``problem``
    is the code of the error instead of them, "" for none; ``fetched_at`` and ``expires_at`` are
    times of ``time.monotonic``."""

    app: App
    fetched_at: float
    expires_at: float
    info: Any = None
    parameters: Any = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Check:
    """Whether a Dify was available; ``problem`` is the error code if not."""

    checked_at: float
    problem: str


class AppRegistry:
    """The apps of the models. One per worker; sends nothing before it is used.

    Apps of models with a key are refreshed in the background. For models without a key callers send
    their own: these apps are fetched again on use once their entry has expired.
    """

    def __init__(self, client: DifyClient, models: Mapping[str, Model]) -> None:
        self._client = client
        self._models = models
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._in_flight: dict[tuple[str, str], Future[_Entry]] = {}
        self._checks: dict[str, _Check] = {}
        self._refresher: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._wake = threading.Event()
        self._has_checked = threading.Event()
        self._has_failed = False

    def app(self, model: Model) -> App:
        """The app of the model, fetched from Dify if it is not cached.

        Raises UpstreamUnreachable and UpstreamConnectTimeout.
        """
        self.keep_fresh()
        entry = self._entries.get(_name(model))
        is_kept_fresh = model.name in self._models and self._models[model.name].key == model.key
        may_be_old = not is_kept_fresh or (entry is not None and not entry.app.mode)
        if entry is None or (may_be_old and time.monotonic() > entry.expires_at):
            entry = self._look_up(model)
        return entry.app

    def known(self, model: Model) -> App:
        """The app as far as it is cached; fetches nothing."""
        entry = self._entries.get(_name(model))
        return entry.app if entry else App()

    def refreshed(self, model: Model) -> App:
        """The app, fetched again unless it is FRESH_SECONDS old at most: for a request that does
        not fit the cached app."""
        entry = self._entries.get(_name(model))
        if entry is None or time.monotonic() - entry.fetched_at > FRESH_SECONDS:
            try:
                entry = self._look_up(model)
            except errors.DifyError:
                log.info("Dify is not available to describe an app model=%s", model.name)
        return entry.app if entry else App()

    def problems(self, patience: float) -> dict[str, str | None]:
        """The error code of Dify or the app, by the name of each model with a key; "" where there
        is no problem, None where it is still unknown after ``patience`` seconds."""
        self.keep_fresh()
        if not self._has_checked.is_set():
            self._wake.set()
            self._has_checked.wait(patience)
        return {model.name: self._problem(model) for model in self._models.values() if model.key}

    def mark_stale(self, model: Model) -> None:
        """Makes the background thread fetch the app again soon: the cached one may be wrong."""
        entry = self._entries.get(_name(model))
        if entry is not None and time.monotonic() - entry.fetched_at > FRESH_SECONDS:
            self._entries[_name(model)] = replace(entry, expires_at=0.0)

    def forget(self, model: Model) -> None:
        """Drops the cached app."""
        self._entries.pop(_name(model), None)

    def keep_fresh(self) -> None:
        """Starts the background thread that refreshes the entries, if this process has none."""
        if self._refresher is not None and self._refresher.is_alive():
            return
        with self._lock:
            if self._refresher is None or not self._refresher.is_alive():
                self._refresher = threading.Thread(
                    target=self._refresh_until_closed, name="app-registry", daemon=True
                )
                self._refresher.start()

    def close(self, patience: float = LOOKUP_TIMEOUT) -> None:
        """Stops the background thread, waiting up to ``patience`` seconds for a lookup in progress;
        cached apps stay available."""
        self._closed.set()
        self._wake.set()
        if self._refresher is not None:
            self._refresher.join(patience)

    def _problem(self, model: Model) -> str | None:
        entry, check = self._entries.get(_name(model)), self._checks.get(model.base)
        if check and check.problem:
            return check.problem
        return entry.problem if entry else None

    def _refresh_until_closed(self) -> None:
        while not self._closed.is_set():
            self._wake.wait(1.0)
            self._wake.clear()
            try:
                self._refresh()
                self._has_failed = False
            except Exception:
                if not self._has_failed:
                    log.exception("unexpected error while the apps are refreshed")
                self._has_failed = True
            self._has_checked.set()

    def _refresh(self) -> None:
        for model in filter(self._is_due, self._models.values()):
            if self._closed.is_set():
                return
            try:
                self._look_up(model, patience=0.0)  # the next attempt follows soon
            except errors.DifyError as exc:
                self._postpone(model)
                fields = {"model": model.name, "code": exc.code, **exc.details}
                log_fields(log, logging.INFO, "an app is not known", fields)

    def _is_due(self, model: Model) -> bool:
        now = time.monotonic()
        entry, check = self._entries.get(_name(model)), self._checks.get(model.base)
        if not model.key:
            return False
        if check and check.problem:
            return now > check.checked_at + UNREACHABLE_RETRY_SECONDS
        return (
            entry is None
            or now > entry.expires_at
            or (not check or now > check.checked_at + CHECK_INTERVAL_SECONDS)
        )

    def _postpone(self, model: Model) -> None:
        """Keeps the cached entry for a while, since Dify is unavailable."""
        now = time.monotonic()
        known = self._entries.get(_name(model)) or _Entry(App(), now, 0.0)
        self._entries[_name(model)] = replace(known, expires_at=now + INCOMPLETE_CACHE_SECONDS)

    def _look_up(
        self, model: Model, patience: float = RESTART_SECONDS, is_second: bool = False
    ) -> _Entry:
        """Fetches an entry, or waits for the thread that is fetching it, so that a burst of first
        requests fetches once. That thread may have less ``patience`` (see ``DifyClient.call``)."""
        with self._lock:
            in_flight = self._in_flight.get(_name(model))
            if in_flight is None:
                future: Future[_Entry] = Future()
                self._in_flight[_name(model)] = future
        if in_flight is None:
            return self._fetch_shared(model, future, patience)
        try:
            return in_flight.result()
        except errors.UpstreamUnreachable:
            if is_second:
                raise
        return self._look_up(model, patience, is_second=True)

    def _fetch_shared(self, model: Model, future: "Future[_Entry]", patience: float) -> _Entry:
        try:
            entry = self._fetch(model, patience)
        except BaseException as exc:
            if isinstance(exc, errors.DifyError):
                self._checks[model.base] = _Check(time.monotonic(), exc.code or "error")
            future.set_exception(exc)
            raise
        else:
            self._store(model, entry)
            future.set_result(entry)
            return entry
        finally:
            with self._lock:
                del self._in_flight[_name(model)]

    def _fetch(self, model: Model, patience: float) -> _Entry:
        info = parameters = None
        trouble = timeout_code = ""
        try:
            info, _ = self._get(model, "/info", patience)
            parameters, trouble = self._get(model, "/parameters", patience)
        except errors.UpstreamConnectTimeout:
            raise
        except errors.UpstreamTimeout as exc:
            timeout_code = exc.code or "error"
            log.info("Dify did not describe an app in time model=%s", model.name)
        self._checks[model.base] = _Check(time.monotonic(), timeout_code)
        has_parameters = parameters is not None
        if known := self._entries.get(_name(model)):
            info, parameters = info or known.info, parameters or known.parameters
        app = parse_app(info, parameters)
        if model.type or not app.mode:
            app = replace(app, mode=model.type or self._probe(model, info or parameters))
        now = time.monotonic()
        seconds = CACHE_SECONDS if app.mode and has_parameters else INCOMPLETE_CACHE_SECONDS
        return _Entry(app, now, now + seconds, info, parameters, trouble)

    def _store(self, model: Model, entry: _Entry) -> None:
        self._entries[_name(model)] = entry
        with suppress(StopIteration, KeyError, RuntimeError):  # another thread does the same
            if len(self._entries) > len(self._models) + MAX_CALLER_APPS:
                del self._entries[next(iter(self._entries))]

    def _get(self, model: Model, path: str, patience: float) -> tuple[Any, str]:
        """Dify's response, and the error code where it has none."""
        try:
            return self._client.call(model, "GET", path, LOOKUP_TIMEOUT, patience), ""
        except (errors.UpstreamUnreachable, errors.UpstreamTimeout):
            raise
        except errors.OpenDifyError as exc:
            log.info(
                "Dify did not describe an app model=%s path=%s code=%s", model.name, path, exc.code
            )
            return None, exc.code or "error"

    def _probe(self, model: Model, description: Any) -> str:
        """The mode of an app in a Dify before 1.4, found by invalid requests: Dify checks the mode
        before the body. "" where that fails as well. ``description`` is any response of Dify that
        describes the app: if there was none, these requests would fail too."""
        if description is None:
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
    """The cache key: one model name may have apps with several keys."""
    return model.name, model.key
