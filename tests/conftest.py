"""Fixtures: a Dify on loopback, and the application in front of it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient

from opendify.config.models import Model
from opendify.conversations import ConversationStore, JsonFileStore
from opendify.upstream.transport.transport import PooledClient, PooledTransport
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import FakeDify
from tests.support.profiles import choose_profile
from tests.support.redis_server import RedisServer

KEY = "app-secret-of-the-operator"


def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means: most tests wait for processes and clocks half of their time."""
    return 2 * len(os.sched_getaffinity(0))


def pytest_configure() -> None:
    """Ctrl-C means what it means at a terminal, also where the tests were started by a job in the
    background: its programs would ignore the signal, and so would those that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    choose_profile()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the machine stands between a test and its Dify."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def dify() -> Iterator[FakeDify]:
    fake = FakeDify()
    yield fake
    fake.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One for all tests that do it no harm."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of an empty Redis."""
    redis_server.empty()
    return redis_server.url


@pytest.fixture(scope="session")
def http() -> Iterator[PooledClient]:
    """One for all tests: to read the machine's certificates takes longer than most of them."""
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=1.5)
    with PooledClient(PooledTransport(limits), trust_env=False) as client:
        yield client


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JsonFileStore]:
    store = JsonFileStore(tmp_path / "data", clock=time.time, max_age_days=None, max_entries=1000)
    yield store
    store.close()


@pytest.fixture
def models(dify: FakeDify) -> dict[str, Model]:
    return {
        "tiny": Model("tiny", KEY, dify.base),
        "org/model": Model("org/model", f"{KEY}-2", dify.base),
    }


@pytest.fixture
def admin_keys() -> str:
    """The value of OPENDIFY_ADMIN_KEYS; tests that need some have their own."""
    return ""


@pytest.fixture
def api_keys() -> str:
    """The value of OPENDIFY_API_KEYS, as above."""
    return ""


@pytest.fixture
def app(
    http: PooledClient,
    store: ConversationStore,
    models: dict[str, Model],
    tmp_path: Path,
    admin_keys: str,
    api_keys: str,
) -> Iterator[Flask]:
    settings = make_settings(models, tmp_path / "data", admin_keys=admin_keys, api_keys=api_keys)
    with open_app(settings, http, store=store) as application:
        yield application


@pytest.fixture
def api(app: Flask) -> FlaskClient:
    return app.test_client()
