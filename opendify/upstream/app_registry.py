"""A cache of the metadata of each model's Dify app, refreshed while it is used and shared by the
workers.

Missing metadata does not make a chat request fail: the app is then treated as a chat, and Dify's
response to the request itself says what is wrong.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from opendify import errors
from opendify.config.models import Model
from opendify.dify.apps import App, parse_app, parse_icon
from opendify.observability.logs import log_fields
from opendify.upstream.app_entries import (
    INCOMPLETE_CACHE_SECONDS,
    Check,
    Entry,
    app_digest,
    base_digest,
    expiry,
    newest,
    to_check,
    to_check_record,
    to_entry,
    to_record,
)
from opendify.upstream.app_icons import fetch_icon
from opendify.upstream.client import RESTART_SECONDS, DifyClient
from opendify.upstream.shared_apps import SharedApps, SharedState

log = logging.getLogger(__name__)

LOOKUP_TIMEOUT = 10.0
MAX_CALLER_APPS = 2000

# A change in Dify is seen within a minute while the apps are in use.
REFRESH_SECONDS = 50.0
ICON_REFRESH_SECONDS = 600.0
# Unused for so long, the background thread ends.
IDLE_SECONDS = 300.0
# How often the worker that asks Dify about many apps tells the others.
_SHARE_SECONDS = 0.5

# An app can be changed in Dify at any time; metadata younger than this is not fetched again.
FRESH_SECONDS = 5.0

# How often each Dify is checked for availability, and how soon again while it is unavailable.
CHECK_INTERVAL_SECONDS = 30.0
UNREACHABLE_RETRY_SECONDS = 10.0

_PROBES = (
    ("/chat-messages", "chat", "not_chat_app"),
    ("/workflows/run", "workflow", "not_workflow_app"),
)


class AppRegistry:
    """The apps of the models. One per worker; sends nothing before it is used.

    Apps of models with a key are refreshed in the background, by one worker at a time, and shared
    through ``shared``. For models without a key callers send their own: these apps are fetched
    again on use once their entry has expired, and shared with nobody. ``clock`` returns seconds of
    any zero that never go back.
    """

    def __init__(
        self,
        client: DifyClient,
        models: Mapping[str, Model],
        shared: SharedApps | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._models = models
        self._shared = shared
        self._clock = clock
        self._last_used = float("-inf")
        self._forgotten: dict[tuple[str, str], float] = {}
        self._logged: dict[str, str] = {}
        self._entries: dict[tuple[str, str], Entry] = {}
        self._in_flight: dict[tuple[str, str], Future[Entry]] = {}
        self._checks: dict[str, Check] = {}
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
        if entry is None or (may_be_old and self._clock() > entry.expires_at):
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
        if entry is None or self._clock() - entry.fetched_at > FRESH_SECONDS:
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
        if entry is not None and self._clock() - entry.fetched_at > FRESH_SECONDS:
            self._entries[_name(model)] = replace(entry, expires_at=0.0)

    def forget(self, model: Model) -> None:
        """Drops the cached app."""
        self._entries.pop(_name(model), None)
        if model.key and model.name in self._models:
            self._forgotten[_name(model)] = self._clock()

    def keep_fresh(self) -> None:
        """Takes over what other workers have found, and keeps the background thread running that
        refreshes the entries. Waits for nothing."""
        self._last_used = self._clock()
        self._take_over()
        self._start()

    def prepare(self, patience: float) -> None:
        """For a process that is about to serve: takes over what is known, and asks about the rest
        in the background, waiting up to ``patience`` seconds for it."""
        self._take_over()
        if not self._knows_all():
            self._start()
            self._wake.set()
            self._has_checked.wait(patience)

    def _start(self) -> None:
        with self._lock:
            if self._closed.is_set() or (self._refresher and self._refresher.is_alive()):
                return
            self._has_checked.clear()
            self._refresher = threading.Thread(
                target=self._refresh_until_unused, name="app-registry", daemon=True
            )
            self._refresher.start()

    def close(self, patience: float = LOOKUP_TIMEOUT) -> None:
        """Stops the background thread, waiting up to ``patience`` seconds for a lookup in progress;
        cached apps stay available."""
        self._closed.set()
        self._wake.set()
        refresher = self._refresher
        if refresher is not None:
            refresher.join(patience)

    def _problem(self, model: Model) -> str | None:
        entry, check = self._entries.get(_name(model)), self._checks.get(model.base)
        if check and check.problem:
            return check.problem
        return entry.problem if entry else None

    def _knows_all(self) -> bool:
        return all(self._problem(model) is not None for model in self._models.values() if model.key)

    def _refresh_until_unused(self) -> None:
        while not self._closed.is_set():
            self._wake.wait(1.0 if self._knows_all() or self._shared is None else 0.1)
            self._wake.clear()
            is_done = True
            try:
                is_done = self._refresh()
                self._has_failed = False
            except Exception:
                if not self._has_failed:
                    log.exception("unexpected error while the apps are refreshed")
                self._has_failed = True
            if is_done or self._knows_all():
                self._has_checked.set()
            if is_done and self._ends():
                return

    def _ends(self) -> bool:
        """Whether the thread ends because nobody uses the apps."""
        with self._lock:
            if self._clock() - self._last_used <= IDLE_SECONDS:
                return False
            self._refresher = None
            return True

    def _refresh(self) -> bool:
        """Asks Dify about what is due. False if another worker is doing so."""
        self._take_over()
        if not self._has_due():
            return True
        with self._refreshing() as is_ours:
            if is_ours:
                self._take_over()
                self._refresh_entries()
                self._refresh_icons()
                self._share()
        return is_ours

    @contextmanager
    def _refreshing(self) -> Iterator[bool]:
        if self._shared is None:
            yield True
        else:
            with self._shared.refreshing() as is_ours:
                yield is_ours

    def _has_due(self) -> bool:
        models = self._models.values()
        return any(self._is_due(model) or self._is_icon_due(model) for model in models)

    def _refresh_entries(self) -> None:
        shared_at = self._clock()
        for model in filter(self._is_due, self._models.values()):
            if self._closed.is_set():
                return
            try:
                self._look_up(model, patience=0.0)  # the next attempt follows soon
                self._logged.pop(model.name, None)
            except errors.DifyError as exc:
                self._postpone(model)
                self._log_once(model, exc)
            if self._clock() - shared_at > _SHARE_SECONDS:
                self._share()
                shared_at = self._clock()

    def _refresh_icons(self) -> None:
        for model in filter(self._is_icon_due, self._models.values()):
            if self._closed.is_set():
                return
            try:
                self._refresh_icon(model)
            except errors.DifyError as exc:
                self._log_once(model, exc)

    def _refresh_icon(self, model: Model) -> None:
        """Raises DifyError; the next attempt follows only after a while then too."""
        entry, now = self._entries[_name(model)], self._clock()
        entry = self._entries[_name(model)] = replace(entry, icon_at=now)
        site, _ = self._get(model, "/site", patience=0.0)
        icon = parse_icon(site)
        if site is None or (icon.image_id and icon.image_id == entry.icon_id):
            return
        shown = fetch_icon(self._client, model, icon)
        entry = self._entries.get(_name(model), entry)
        self._entries[_name(model)] = replace(
            entry, app=replace(entry.app, icon=shown), icon_id=icon.image_id, icon_at=now
        )

    def _is_icon_due(self, model: Model) -> bool:
        entry, check = self._entries.get(_name(model)), self._checks.get(model.base)
        if not model.key or entry is None or not entry.app.mode or (check and check.problem):
            return False
        return self._clock() > entry.icon_at + ICON_REFRESH_SECONDS

    def _log_once(self, model: Model, exc: errors.DifyError) -> None:
        """Logs that an app is not known, unless the same was the last thing said of it."""
        code = exc.code or "error"
        if self._logged.get(model.name) != code:
            self._logged[model.name] = code
            fields = {"model": model.name, "code": exc.code, **exc.details}
            log_fields(log, logging.INFO, "an app is not known", fields)

    def _take_over(self) -> None:
        """Reads what other workers have found since the last time."""
        state = self._shared.changed() if self._shared else None
        if self._shared is None or state is None:
            return
        now = self._clock()
        epoch = self._shared.now() - now
        for model in self._models.values():
            if model.key and (record := state.apps.get(app_digest(model))):
                self._take_over_entry(model, to_entry(record, model, epoch, now))
            if record := state.checks.get(base_digest(model.base)):
                check, known = to_check(record, epoch, now), self._checks.get(model.base)
                if known is None or check.checked_at > known.checked_at:
                    self._checks[model.base] = check

    def _take_over_entry(self, model: Model, entry: Entry) -> None:
        known = self._entries.get(_name(model))
        if known is not None:
            self._entries[_name(model)] = newest(known, entry)
        elif entry.fetched_at > self._forgotten.get(_name(model), float("-inf")):
            self._entries[_name(model)] = entry

    def _share(self) -> None:
        if self._shared is None:
            return
        epoch = self._shared.now() - self._clock()
        models = [model for model in self._models.values() if model.key]
        apps = {
            app_digest(model): to_record(entry, model, epoch)
            for model in models
            if (entry := self._entries.get(_name(model))) and entry.has_response
        }
        checks = {
            base_digest(base): to_check_record(check, epoch)
            for base, check in self._checks.copy().items()
        }
        self._shared.write(SharedState(apps, checks))

    def _is_due(self, model: Model) -> bool:
        now = self._clock()
        entry, check = self._entries.get(_name(model)), self._checks.get(model.base)
        if not model.key:
            return False
        if check and check.problem:
            return now > check.checked_at + UNREACHABLE_RETRY_SECONDS
        return (
            entry is None
            or now > min(entry.expires_at, entry.fetched_at + REFRESH_SECONDS)
            or (not check or now > check.checked_at + CHECK_INTERVAL_SECONDS)
        )

    def _postpone(self, model: Model) -> None:
        """Keeps the cached entry for a while, since Dify is unavailable."""
        now = self._clock()
        known = self._entries.get(_name(model)) or Entry(App(), now, 0.0)
        self._entries[_name(model)] = replace(known, expires_at=now + INCOMPLETE_CACHE_SECONDS)

    def _look_up(
        self, model: Model, patience: float = RESTART_SECONDS, is_second: bool = False
    ) -> Entry:
        """Fetches an entry, or waits for the thread that is fetching it, so that a burst of first
        requests fetches once. That thread may have less ``patience`` (see ``DifyClient.call``)."""
        with self._lock:
            in_flight = self._in_flight.get(_name(model))
            if in_flight is None:
                future: Future[Entry] = Future()
                self._in_flight[_name(model)] = future
        if in_flight is None:
            return self._fetch_shared(model, future, patience)
        try:
            return in_flight.result()
        except errors.UpstreamUnreachable:
            if is_second:
                raise
        return self._look_up(model, patience, is_second=True)

    def _fetch_shared(self, model: Model, future: "Future[Entry]", patience: float) -> Entry:
        try:
            entry = self._fetch(model, patience)
        except BaseException as exc:
            if isinstance(exc, errors.DifyError):
                self._checks[model.base] = Check(self._clock(), exc.code or "error")
            future.set_exception(exc)
            raise
        else:
            self._store(model, entry)
            future.set_result(entry)
            return entry
        finally:
            with self._lock:
                del self._in_flight[_name(model)]

    def _fetch(self, model: Model, patience: float) -> Entry:
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
        self._checks[model.base] = Check(self._clock(), timeout_code)
        has_parameters = parameters is not None
        known = self._entries.get(_name(model))
        if known:
            info, parameters = info or known.info, parameters or known.parameters
        app = parse_app(info, parameters)
        if model.type or not app.mode:
            app = replace(app, mode=model.type or self._probe(model, info or parameters))
        now = self._clock()
        entry = Entry(app, now, expiry(now, app, has_parameters), info, parameters, trouble)
        if known is None:
            return entry
        app = replace(app, icon=known.app.icon)
        return replace(entry, app=app, icon_id=known.icon_id, icon_at=known.icon_at)

    def _store(self, model: Model, entry: Entry) -> None:
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
