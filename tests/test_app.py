"""How the application is put together: what ``create_app`` takes, opens and closes."""

import json
import logging
import threading
from pathlib import Path

import httpx
import pytest
from flask.testing import FlaskClient

from opendify.app import HttpClientConfig, create_app, new_http_client
from opendify.config.models import Model
from opendify.conversations import JsonFileStore
from opendify.upstream.transport.transport import PooledClient
from tests.support.application import components_of, make_settings, open_app
from tests.support.fake_dify import FOREVER, STREAM_HEAD, FakeDify
from tests.support.waiting import PATIENCE_SECONDS, wait_for

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
IN_A_CHAT = {"X-OpenWebUI-Chat-Id": "c1", "X-OpenWebUI-User-Id": "ada"}


def ask(api: FlaskClient) -> None:
    response = api.post("/v1/chat/completions", json=CHAT, headers=IN_A_CHAT, buffered=True)
    assert response.status_code == 200, response.text


def saved(folder: Path) -> int:
    """How many conversations are in the file that the store writes when it is closed."""
    path = folder / "conversation_mappings.json"
    return len(json.loads(path.read_text())) if path.exists() else 0


def registry_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "app-registry"}


def test_what_it_opened_is_closed(
    http: PooledClient, models: dict[str, Model], tmp_path: Path
) -> None:
    handlers, threads = list(logging.getLogger("opendify").handlers), registry_threads()
    with open_app(make_settings(models, tmp_path), http) as app:
        ask(app.test_client())
        assert registry_threads() > threads
        assert saved(tmp_path) == 0
    assert saved(tmp_path) == 1
    assert not {thread for thread in registry_threads() - threads if thread.is_alive()}
    assert logging.getLogger("opendify").handlers == handlers


def test_what_it_was_given_stays_open(
    http: PooledClient, models: dict[str, Model], store: JsonFileStore, tmp_path: Path
) -> None:
    with open_app(make_settings(models, tmp_path / "other"), http, store=store) as app:
        ask(app.test_client())
    assert store.stats().count == 1
    assert saved(tmp_path / "data") == 0
    assert not http.is_closed
    store.close()
    assert saved(tmp_path / "data") == 1


def test_it_opens_nothing_before_a_request(
    http: PooledClient, models: dict[str, Model], dify: FakeDify, tmp_path: Path
) -> None:
    threads = threading.active_count()
    with open_app(make_settings(models, tmp_path / "data"), http):
        assert threading.active_count() == threads
    assert dify.requests == []
    assert not (tmp_path / "data").exists()


def test_to_close_it_at_exit_waits_for_no_dify(http: PooledClient, tmp_path: Path) -> None:
    """A process that ends has no time for the answer to a lookup."""
    silent = FakeDify(lambda request: [FOREVER], tells_of_its_app=True)
    settings = make_settings({"tiny": Model("tiny", "app-x", silent.base)}, tmp_path)
    app = create_app(settings, http, workers=1, threads=8)
    before = registry_threads()
    components_of(app).registry.problems(0.0)
    (thread,) = registry_threads() - before
    wait_for(lambda: silent.requests)
    components_of(app).close()
    assert thread.is_alive()
    silent.close()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_the_limits_of_callers_are_shared_by_the_workers(
    http: PooledClient, tmp_path: Path, models: dict[str, Model]
) -> None:
    settings = make_settings(
        models, tmp_path, api_keys='{"a":{"keys":"k","requests_per_minute":4}}'
    )
    app = create_app(settings, http, workers=2, threads=8)
    try:
        api, key = app.test_client(), {"Authorization": "Bearer k"}
        statuses = [
            api.post("/v1/chat/completions", json=CHAT, headers=key, buffered=True).status_code
            for _ in range(3)
        ]
    finally:
        components_of(app).close(10)
    assert statuses == [200, 200, 429]


def test_the_configuration_of_the_client_holds(
    models: dict[str, Model], dify: FakeDify, tmp_path: Path
) -> None:
    dify.answers = [[STREAM_HEAD, FOREVER]]
    config: HttpClientConfig = {
        "timeout": httpx.Timeout(7.0, connect=5.0, pool=0.1),
        "limits": httpx.Limits(max_connections=1, max_keepalive_connections=1),
    }
    with new_http_client(make_settings(models, tmp_path), {}, config) as client:
        assert client.timeout == config["timeout"]
        with (
            client.stream("POST", f"{dify.base}/chat-messages", json={}) as response,
            pytest.raises(httpx.PoolTimeout),
        ):
            assert response.status_code == 200
            client.get(f"{dify.base}/info")
