"""Fixtures: a Dify on loopback, and the application in front of it."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient

from opendify.chat import ChatService
from opendify.client import DifyClient
from opendify.config.models import Model
from opendify.conversations.store import ConversationStore
from opendify.web import create_app
from opendify.wire import Transport
from tests.fake_dify import FakeDify

KEY = "app-secret-of-the-operator"


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
def http() -> Iterator[httpx.Client]:
    """One for all tests: to read the machine's certificates takes longer than most of them."""
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=1.5)
    with httpx.Client(transport=Transport(limits=limits), trust_env=False) as client:
        yield client


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ConversationStore]:
    store = ConversationStore(
        tmp_path / "data", clock=time.time, max_age_days=None, max_entries=1000
    )
    yield store
    store.close()


@pytest.fixture
def models(dify: FakeDify) -> dict[str, Model]:
    return {
        "tiny": Model("tiny", KEY, dify.base),
        "org/model": Model("org/model", f"{KEY}-2", dify.base),
    }


@pytest.fixture
def app(http: httpx.Client, store: ConversationStore, models: dict[str, Model]) -> Flask:
    client = DifyClient(http, read_timeout=2.0)
    service = ChatService(models, client, store, now=time.time, new_id=lambda: "new")
    return create_app(service, store, list(models), 1024 * 1024, now=time.time)


@pytest.fixture
def api(app: Flask) -> FlaskClient:
    return app.test_client()
