"""Health and readiness, as orchestrators ask for them."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from opendify.config.models import Model
from opendify.upstream import app_registry as directories
from opendify.upstream.app_registry import AppRegistry
from opendify.upstream.client import DifyClient
from tests.conftest import KEY
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import FakeDify, Request, Steps, refused
from tests.support.ports import free_port
from tests.support.talking_dify import TalkingDify
from tests.support.waiting import wait_for_value

ADMIN = {"Authorization": "Bearer admin-secret"}
UNAUTHORIZED = refused(401, {"code": "unauthorized", "message": "x", "status": 401})


@pytest.fixture
def talking(dify: FakeDify) -> FakeDify:
    dify.tells_of_its_app, dify.answer = True, TalkingDify()
    return dify


@pytest.fixture
def dead() -> dict[str, Model]:
    """Models of a Dify that is not there."""
    base = f"http://127.0.0.1:{free_port()}/v1"
    return {name: Model(name, KEY, base) for name in "abc"}


@pytest.mark.usefixtures("talking")
def test_it_is_ready_at_the_first_look(api: FlaskClient) -> None:
    response = api.get("/readyz")
    assert response.status_code == 200
    assert response.json == {
        "status": "ready",
        "configuration": {"status": "ok"},
        "store": {"status": "ok", "kind": "file"},
        "dify": {"status": "ok", "models": {"tiny": "ok", "org/model": "ok"}},
    }


def test_it_is_not_ready_without_dify(
    http: httpx.Client, dead: dict[str, Model], tmp_path: Path
) -> None:
    with open_app(make_settings(dead, tmp_path), http) as app:
        response = app.test_client().get("/readyz")
        assert (response.status_code, response.json["status"]) == (503, "not ready")
        assert response.json["dify"]["models"]["a"] == "upstream_unreachable"
        assert app.test_client().get("/readyz?exclude=store").status_code == 503
        told = app.test_client().get("/readyz?exclude=store&exclude=dify")
        assert (told.status_code, told.json["status"]) == (200, "ready")
        assert told.json["dify"] == response.json["dify"]
        assert app.test_client().get("/healthz").status_code == 200


def test_what_is_excluded_must_be_known(api: FlaskClient) -> None:
    response = api.get("/readyz?exclude=etcd")
    assert (response.status_code, response.json["error"]["param"]) == (400, "exclude")


def test_one_broken_app_causes_no_refusals_for_others(api: FlaskClient, dify: FakeDify) -> None:
    talking = TalkingDify()

    def answer(request: Request) -> Steps:
        is_good = request.headers["authorization"] == f"Bearer {KEY}"
        return talking(request) if is_good else UNAUTHORIZED

    dify.tells_of_its_app, dify.answer = True, answer
    response = api.get("/readyz")
    assert response.status_code == 200
    assert response.json["dify"]["models"] == {"tiny": "ok", "org/model": "upstream_auth_error"}


def test_it_is_not_ready_when_no_app_is_in_order(api: FlaskClient, dify: FakeDify) -> None:
    dify.tells_of_its_app, dify.answer = True, lambda request: UNAUTHORIZED
    response = api.get("/readyz")
    assert (response.status_code, response.json["dify"]["status"]) == (503, "failing")


@pytest.mark.usefixtures("talking")
def test_it_is_not_ready_without_a_store_for_conversations(
    http: httpx.Client, models: dict[str, Model], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with open_app(make_settings(models, tmp_path / "file" / "data"), http) as app:
        response = app.test_client().get("/readyz")
        assert app.test_client().get("/readyz?exclude=store").status_code == 200
    assert (response.status_code, response.json["store"]["status"]) == (503, "failing")


@pytest.mark.usefixtures("talking")
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, ADMIN])
def test_only_operators_get_details_and_metrics(
    http: httpx.Client,
    models: dict[str, Model],
    tmp_path: Path,
    headers: dict[str, str],
) -> None:
    with open_app(make_settings(models, tmp_path, admin_keys="admin-secret"), http) as app:
        api = app.test_client()
        ready = api.get("/readyz", headers=headers)
        metrics = api.get("/metrics", headers=headers)
    assert ready.status_code == 200
    assert (ready.json == {"status": "ready"}) == (headers is not ADMIN)
    assert metrics.status_code == (200 if headers is ADMIN else 401)


# --- the thread in the background ------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "CHECK_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(directories, "UNREACHABLE_RETRY_SECONDS", 0.05)


@pytest.mark.usefixtures("quick")
def test_a_dify_that_goes_and_comes_back_is_noticed(api: FlaskClient, dify: FakeDify) -> None:
    talking, gone = TalkingDify(), refused(200, b"a page", "text/html")
    dify.tells_of_its_app, dify.answer = True, talking
    assert api.get("/readyz").status_code == 200
    dify.answer = lambda request: gone
    dify.answers = []
    wait_for_value(lambda: api.get("/readyz").json["dify"]["models"]["tiny"], "upstream_error")
    dify.answer = talking
    wait_for_value(lambda: api.get("/readyz").status_code, 200)


def test_a_dead_dify_is_asked_by_one_of_its_models(
    http: httpx.Client, dead: dict[str, Model]
) -> None:
    tries = []

    class Client(DifyClient):
        def call(self, model: Model, *rest: Any, **more: Any) -> Any:
            tries.append(model.name)
            return super().call(model, *rest, **more)

    directory = AppRegistry(Client(http, 2.0), dead)
    assert set(directory.problems(5).values()) == {"upstream_unreachable"}
    time.sleep(1.2)
    directory.close()
    assert tries == ["a"]


def test_an_unexpected_error_is_logged_once_and_ends_nothing(
    http: httpx.Client,
    talking: FakeDify,
    models: dict[str, Model],
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = DifyClient(http, 2.0)
    call = client.call
    client.call = lambda *a, **k: {}[a[2]]  # type: ignore[method-assign]
    directory = AppRegistry(client, models)
    try:
        assert directory.problems(5) == {"tiny": None, "org/model": None}
        directory._wake.set()
        wait_for_value(directory._wake.is_set, False)
        client.call = call  # type: ignore[method-assign]
        wait_for_value(lambda: directory.problems(0), {"tiny": "", "org/model": ""})
    finally:
        directory.close()
    told = [found for found in caplog.records if found.exc_info]
    assert len(told) == 1
    assert "KeyError" in caplog.text
