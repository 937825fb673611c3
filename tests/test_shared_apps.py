"""What is known of the apps is shared by the workers of a machine, and survives a restart."""

import base64
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from opendify.config.models import Model
from opendify.dify.apps import App
from opendify.files.icons import MAX_ICON_BYTES, emoji_icon
from opendify.upstream import app_registry
from opendify.upstream.app_entries import Entry, newest
from opendify.upstream.app_registry import AppRegistry
from opendify.upstream.client import DifyClient
from opendify.upstream.shared_apps import MAX_RECORD_CHARS, SharedApps, SharedState
from opendify.upstream.transport.transport import PooledClient
from tests.support.fake_dify import (
    CLOSE,
    FOREVER,
    FakeDify,
    Request,
    Steps,
    head,
    recorded_mode,
    recorded_names,
    recording,
    refused,
)
from tests.support.service import free_variables, running
from tests.support.waiting import wait_for, wait_for_value

SITES = [name for name in recorded_names() if name.endswith("/site")]
PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
IMAGE_ID = "33333333-3333-4333-8333-333333333333"
SIGNATURE = "timestamp=1&nonce=2&sign=3"

NewRegistry = Callable[..., AppRegistry]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class DescribedApp:
    """Describes itself as a test says; ``image`` is the answer for its icon."""

    def __init__(self) -> None:
        self.info: Any = {"mode": "chat", "name": "Helper", "description": "Knows all"}
        self.parameters: Any = {"opening_statement": "Hello", "suggested_questions": ["Why?"]}
        self.site: Any = {"icon_type": "emoji", "icon": "🤖", "icon_background": "#FFEAD5"}
        self.image: Steps = [head(200, f"Content-Length: {len(PNG)}") + PNG]
        self.delay = 0.0

    def __call__(self, request: Request) -> Steps:
        path = request.path.partition("?")[0]
        if path.startswith("/files/"):
            return self.image
        body = getattr(self, path.rpartition("/")[2], None)
        missing = {"code": "not_found", "message": "", "status": 404}
        answer = refused(404, missing) if body is None else refused(200, body)
        return [self.delay, *answer]


@pytest.fixture
def described(dify: FakeDify) -> DescribedApp:
    dify.tells_of_its_app = True
    dify.answer = described = DescribedApp()
    return described


@pytest.fixture
def model(dify: FakeDify) -> Model:
    return Model("tiny", "app-secret-key", dify.base)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def new_registry(
    http: PooledClient, model: Model, tmp_path: Path, clock: Clock
) -> Iterator[NewRegistry]:
    """Makes what a worker has."""
    made = []

    def new(*own: Model) -> AppRegistry:
        models = {one.name: one for one in own or [model]}
        shared = SharedApps(tmp_path / "data", clock)
        registry = AppRegistry(DifyClient(http, read_timeout=2), models, shared, clock)
        made.append(registry)
        return registry

    yield new
    for registry in made:
        registry.close(patience=0)


def asked(dify: FakeDify, path: str) -> int:
    return sum(request.path.startswith(path) for request in dify.requests)


def in_use(registry: AppRegistry, model: Model, attribute: str) -> Callable[[], Any]:
    """Looks at the app as a request for the list does."""

    def look() -> Any:
        registry.keep_fresh()
        return getattr(registry.known(model), attribute)

    return look


@pytest.mark.parametrize("name", SITES)
def test_a_recorded_app_is_known_before_the_first_answer(
    name: str, dify: FakeDify, model: Model, described: DescribedApp, new_registry: NewRegistry
) -> None:
    described.info, described.parameters, described.site = (
        json.loads(recording(name.replace("/site", f"/{part}")).body)
        for part in ("info", "parameters", "site")
    )
    registry = new_registry()
    registry.prepare(patience=30)
    app = registry.known(model)
    assert (app.name, app.mode) == (described.info["name"], recorded_mode(name))
    assert app.opening_statement == (described.parameters.get("opening_statement") or "")
    site = described.site
    assert app.icon == emoji_icon(site["icon"], site["icon_background"])
    other = new_registry()
    other.prepare(patience=0)
    assert other.known(model) == app
    assert asked(dify, "/v1/info") == 1


@pytest.mark.usefixtures("described")
def test_the_file_is_private_and_has_no_key_or_address(
    dify: FakeDify, new_registry: NewRegistry, tmp_path: Path
) -> None:
    new_registry().prepare(patience=30)
    path = tmp_path / "data" / "apps.json"
    assert "Helper" in path.read_text()
    assert "app-secret-key" not in path.read_text()
    assert dify.base not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_name_is_seen_by_all_workers_within_a_minute(
    dify: FakeDify, model: Model, described: DescribedApp, new_registry: NewRegistry, clock: Clock
) -> None:
    # The availability of a Dify is checked with the first of its models only.
    second = Model("second", "app-second-key", dify.base)
    one, two = new_registry(model, second), new_registry(model, second)
    wait_for_value(in_use(one, second, "name"), "Helper")
    wait_for_value(in_use(two, second, "name"), "Helper")
    described.info = {**described.info, "name": "Renamed"}
    clock.now += 58
    wait_for_value(in_use(one, second, "name"), "Renamed")
    wait_for_value(in_use(two, second, "name"), "Renamed")
    assert asked(dify, "/v1/info") == 4


def test_only_one_worker_asks(
    dify: FakeDify, model: Model, described: DescribedApp, new_registry: NewRegistry
) -> None:
    described.delay = 0.3
    workers = [new_registry() for _ in range(4)]
    for worker in workers:
        worker.prepare(patience=0)
    for worker in workers:
        wait_for_value(lambda worker=worker: in_use(worker, model, "icon")() != "", True)
        assert worker.known(model).name == "Helper"
    assert (asked(dify, "/v1/info"), asked(dify, "/v1/site")) == (1, 1)


def test_the_thread_ends_when_nobody_asks_and_comes_back(
    model: Model, described: DescribedApp, new_registry: NewRegistry, clock: Clock
) -> None:
    registry = new_registry()
    registry.prepare(patience=30)
    wait_for(lambda: registry._refresher is None)
    registry.keep_fresh()
    thread = registry._refresher
    assert thread is not None
    described.info = {**described.info, "name": "Renamed"}
    clock.now += app_registry.IDLE_SECONDS + 1
    wait_for(lambda: not thread.is_alive())
    assert registry.known(model).name == "Renamed"
    described.info = {**described.info, "name": "Again"}
    clock.now += 3600
    wait_for_value(in_use(registry, model, "name"), "Again")


def test_what_was_last_known_is_shown_while_dify_is_down(
    dify: FakeDify, model: Model, new_registry: NewRegistry, described: DescribedApp, clock: Clock
) -> None:
    new_registry().prepare(patience=30)
    dify.answer = lambda request: [CLOSE]
    clock.now += 7 * 24 * 3600
    restarted = new_registry()
    restarted.prepare(patience=0)
    assert restarted.known(model).name == "Helper"
    wait_for(lambda: restarted.problems(0)["tiny"])
    assert restarted.known(model).name == "Helper"
    dify.answer = described
    clock.now += 60
    wait_for_value(lambda: restarted.problems(0)["tiny"], "")


def test_a_dify_that_is_down_is_logged_once(
    dify: FakeDify,
    model: Model,
    new_registry: NewRegistry,
    caplog: pytest.LogCaptureFixture,
    clock: Clock,
) -> None:
    caplog.set_level(logging.INFO, "opendify.upstream.app_registry")
    dify.tells_of_its_app = True
    dify.answer = lambda request: [CLOSE]
    registry = new_registry()

    def has_asked_often() -> bool:
        clock.now += 20
        registry.keep_fresh()
        return asked(dify, "/v1/info") >= 3

    wait_for(has_asked_often)
    registry.close()
    said = [record for record in caplog.records if "an app is not known" in record.getMessage()]
    assert len(said) == 1


def test_what_another_app_was_is_not_known_of_a_new_key(
    dify: FakeDify, described: DescribedApp, new_registry: NewRegistry
) -> None:
    new_registry().prepare(patience=30)
    described.delay = FOREVER
    other = Model("tiny", "app-other-key", dify.base)
    registry = new_registry(other)
    registry.prepare(patience=0)
    assert registry.known(other).name == ""


def test_a_forgotten_app_does_not_come_back_from_the_file(
    model: Model, described: DescribedApp, new_registry: NewRegistry, clock: Clock, tmp_path: Path
) -> None:
    registry = new_registry()
    registry.prepare(patience=30)
    clock.now += 1
    registry.forget(model)
    os.utime(tmp_path / "data" / "apps.json")
    described.info = {**described.info, "mode": "workflow"}
    assert registry.app(model).mode == "workflow"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"apps":[1]}', b"\xff" * 100])
def test_a_damaged_file_is_replaced(
    content: bytes, model: Model, described: DescribedApp, new_registry: NewRegistry, tmp_path: Path
) -> None:
    path = tmp_path / "data" / "apps.json"
    path.parent.mkdir()
    path.write_bytes(content)
    registry = new_registry()
    registry.prepare(patience=30)
    assert registry.known(model).name == described.info["name"]
    wait_for(lambda: b"Helper" in path.read_bytes())


def test_a_folder_that_cannot_be_used_is_reported_once(
    model: Model,
    described: DescribedApp,
    new_registry: NewRegistry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    clock: Clock,
) -> None:
    (tmp_path / "data").write_text("a file")
    registry = new_registry()
    registry.prepare(patience=30)
    described.info = {**described.info, "name": "Renamed"}
    clock.now += 60
    wait_for_value(in_use(registry, model, "name"), "Renamed")
    registry.close()
    said = [record for record in caplog.records if "cannot share" in record.getMessage()]
    assert len(said) == 1


def test_records_are_bounded_and_old_ones_dropped(tmp_path: Path) -> None:
    now = 1_000_000.0
    shared = SharedApps(tmp_path, lambda: now)
    shared.write(SharedState({"old": {"at": now}, "small": {"at": now, "x": 1}}))
    now += 25 * 3600
    large = {"at": now, "x": "x" * MAX_RECORD_CHARS}
    shared.write(SharedState({"large": large, "small": {"at": now - 25 * 3600, "x": 2}}))
    state = shared.changed()
    assert state is not None
    assert {name: record["x"] for name, record in state.apps.items()} == {"small": 2}
    assert shared.changed() is None


def test_a_record_of_the_future_is_replaced_and_a_newer_one_is_not(tmp_path: Path) -> None:
    shared = SharedApps(tmp_path, lambda: 100.0)
    shared.write(SharedState({"future": {"at": 900.0}, "newer": {"at": 99.0, "x": 1}}))
    shared.write(SharedState({"future": {"at": 100.0}, "newer": {"at": 98.0, "x": 2}}))
    state = shared.changed()
    assert state is not None
    assert state.apps == {"future": {"at": 100.0}, "newer": {"at": 99.0, "x": 1}}


def test_the_newer_answers_and_the_newer_icon_are_kept() -> None:
    one = Entry(App(name="one", icon="1"), fetched_at=5, expires_at=9, icon_id="a", icon_at=1)
    two = Entry(App(name="two", icon="2"), fetched_at=4, expires_at=8, icon_id="b", icon_at=6)
    wanted = Entry(App(name="one", icon="2"), fetched_at=5, expires_at=9, icon_id="b", icon_at=6)
    assert newest(one, two) == newest(two, one) == wanted
    again = replace(one, fetched_at=5.000001, expires_at=7)
    assert newest(one, again) is one


def image_site(url: str) -> dict[str, Any]:
    return {"icon_type": "image", "icon": IMAGE_ID, "icon_url": url}


@pytest.mark.parametrize(
    "host", ["http://internal.example:5001", "http://127.0.0.1:1", ""], ids=["own", "other", "none"]
)
def test_an_image_is_fetched_from_difys_own_address_once(
    host: str,
    dify: FakeDify,
    model: Model,
    described: DescribedApp,
    new_registry: NewRegistry,
    clock: Clock,
) -> None:
    described.site = image_site(f"{host}/files/{IMAGE_ID}/file-preview?{SIGNATURE}")
    registry = new_registry()
    shown = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    registry.prepare(patience=30)
    wait_for_value(in_use(registry, model, "icon"), shown)
    clock.now += app_registry.ICON_REFRESH_SECONDS + 1
    registry.keep_fresh()
    wait_for(lambda: asked(dify, "/v1/site") == 2)
    registry.close()
    assert registry.known(model).icon == shown
    images = [request for request in dify.requests if request.path.startswith("/files/")]
    assert [request.path for request in images] == [f"/files/{IMAGE_ID}/file-preview?{SIGNATURE}"]
    assert "authorization" not in images[0].headers


LARGE = PNG.ljust(MAX_ICON_BYTES + 1)
BAD_IMAGES: dict[str, list[Any]] = {
    "too large": [head(200, f"Content-Length: {len(LARGE)}") + LARGE],
    "a page": [head(200, "Content-Type: image/png", "Content-Length: 6") + b"<html>"],
    "a refusal": refused(403, {"code": "forbidden", "message": "", "status": 403}),
    "elsewhere": [head(302, "Location: http://127.0.0.1:1/", "Content-Length: 0")],
    "cut": [head(200, "Content-Length: 100") + PNG, CLOSE],
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_no_icon(
    kind: str, dify: FakeDify, model: Model, described: DescribedApp, new_registry: NewRegistry
) -> None:
    described.site = image_site(f"/files/{IMAGE_ID}/file-preview?{SIGNATURE}")
    described.image = BAD_IMAGES[kind]
    registry = new_registry()
    registry.prepare(patience=30)
    registry.close()
    assert asked(dify, "/files/") >= 1
    assert (registry.known(model).name, registry.known(model).icon) == ("Helper", "")


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "file:///etc/passwd", "", "/v1/info", "x" * 9000]
)
def test_no_other_address_is_fetched_or_shown(
    url: str, dify: FakeDify, model: Model, described: DescribedApp, new_registry: NewRegistry
) -> None:
    described.site = image_site(url)
    registry = new_registry()
    registry.prepare(patience=30)
    registry.close()
    assert registry.known(model).icon == ""
    assert {request.path for request in dify.requests} == {"/v1/info", "/v1/parameters", "/v1/site"}


def listed(url: str) -> list[dict[str, Any]]:
    """The list, on a new connection, which any worker may accept."""
    response = httpx.get(f"{url}/v1/models", trust_env=False, timeout=10)
    assert response.status_code == 200
    return list(response.json()["data"])


@pytest.mark.usefixtures("described")
def test_every_worker_shows_the_apps_in_its_first_answer(dify: FakeDify, tmp_path: Path) -> None:
    secret = {"key": "app-hidden-key", "hidden": True, "name": "Not shown"}
    config = {"tiny": "app-secret-key", "secret": secret}
    variables = free_variables(
        dify.base, GUNICORN_WORKERS="3", MODEL_CONFIG=json.dumps(config), DIFY_READ_TIMEOUT="5"
    )
    with running(tmp_path, variables) as service:
        for _ in range(20):
            (model,) = listed(service.url)
            assert model["name"] == "Helper"
            assert model["info"]["meta"]["suggestion_prompts"] == [{"content": "Why?"}]
        text = json.dumps(model)
        assert "app-" not in text
        assert str(dify.base) not in text
        one = httpx.get(f"{service.url}/v1/models/secret", trust_env=False)
        assert one.json()["name"] == "Not shown"
    assert asked(dify, "/v1/info") <= 3


def test_a_slow_dify_delays_neither_start_nor_list(
    dify: FakeDify, described: DescribedApp, tmp_path: Path
) -> None:
    described.delay = FOREVER
    with running(tmp_path, free_variables(dify.base, GUNICORN_WORKERS="2")) as service:
        (model,) = listed(service.url)
        assert set(model) == {"id", "object", "created", "owned_by"}
