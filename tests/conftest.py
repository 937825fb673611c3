"""Fixtures: a Dify on loopback, and the application in front of it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from opendify.api.admin import add_operator_routes
from opendify.api.app import create_app
from opendify.api.files import add_file_routes
from opendify.api.health import add_monitoring_routes
from opendify.api.middleware.auth import Authorizer
from opendify.api.middleware.origins import Address, refuse_other_sites
from opendify.api.middleware.request_log import record_requests
from opendify.api.openapi import add_description
from opendify.auth.accounts import AccountRegistry
from opendify.auth.api_keys import parse_keys
from opendify.chat.service import ChatService
from opendify.chat.turn import Services
from opendify.config.accounts import Limits, parse_accounts
from opendify.config.models import Model
from opendify.conversations import ConversationStore, JsonFileStore
from opendify.conversations.admin import ConversationAdmin
from opendify.conversations.locks.files import FileTurnLocks
from opendify.files.file_cache import FileCache
from opendify.files.signing_key import SigningKey
from opendify.limits.capacity import ServerCapacity
from opendify.limits.concurrency import ConcurrencyLimiter
from opendify.limits.limiter import CallerLimiter
from opendify.limits.rate import RateLimiter
from opendify.observability.metrics import Metrics
from opendify.observability.readiness import Readiness
from opendify.upstream.app_registry import AppRegistry
from opendify.upstream.client import DifyClient
from opendify.upstream.file_proxy import FileProxy
from opendify.upstream.transport.transport import PooledClient, PooledTransport
from opendify.upstream.uploads import Uploads
from tests.fake_dify import FakeDify
from tests.redis_server import RedisServer
from tests.support.profiles import choose_profile

KEY = "app-secret-of-the-operator"
NO_LIMITS = Limits()
ADDRESS = Address("127.0.0.1", "", frozenset())


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


class ClosingClient(FlaskClient):
    """A client whose responses are closed when the application of the test goes, as a server closes
    them: one that a test leaves unread would else keep its connection to Dify."""

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        response = super().open(*args, **kwargs)
        self.application.extensions["responses"].append(response)
        return response


@contextmanager
def made_app(
    http: PooledClient,
    store: ConversationStore,
    models: dict[str, Model],
    folder: Path,
    *,
    read_timeout: float = 2.0,
    now: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: "new",
    admin_keys: str = "",
    api_keys: str = "",
    limits: Limits = NO_LIMITS,
    bring_dify_key: bool = False,
    relay: FileProxy | None = None,
    max_body_bytes: int = 1024 * 1024,
    max_text_bytes: int = 1024 * 1024,
    capacity: ServerCapacity | None = None,
    address: Address = ADDRESS,
) -> Iterator[Flask]:
    """An application as main.py makes it."""
    client = DifyClient(http, read_timeout)
    directory = AppRegistry(client, models)
    shelf = FileCache(folder / "data" / "files", 1024 * 1024, 3600)
    relay = relay or FileProxy(client, models, "", SigningKey("", folder / "data"), shelf, now=now)
    locks = FileTurnLocks(folder / "data")
    parts = Services(
        client, directory, store, Uploads(client), locks, relay, now=now, files_only_query="Look."
    )
    service = ChatService(parts, now=now, new_id=new_id)
    problems: list[str] = []
    accounts = parse_accounts(api_keys, set(models), limits, problems)
    assert not problems
    gate = CallerLimiter(RateLimiter(None, 1), ConcurrencyLimiter(None, 1))
    callers = AccountRegistry(accounts, parse_keys(admin_keys), models, limits, bring_dify_key)
    access = Authorizer(callers, gate)
    places = capacity or ServerCapacity(100, {})
    application = create_app(
        service, directory, access, max_body_bytes, places, now=now, max_text_bytes=max_text_bytes
    )
    refuse_other_sites(application, access, address)
    administration = ConversationAdmin(store, models, client, now=now)
    add_operator_routes(application, administration, access)
    metrics = Metrics(len(models))
    add_monitoring_routes(application, Readiness(store, directory), metrics, access)
    record_requests(application, metrics, models, new_id=lambda: "new-request")
    add_file_routes(application, relay, places)
    add_description(application)
    application.test_client_class = ClosingClient
    application.extensions["responses"] = []
    try:
        yield application
    finally:
        for response in application.extensions["responses"]:
            response.close()
        directory.close()


@pytest.fixture
def app(
    http: PooledClient,
    store: ConversationStore,
    models: dict[str, Model],
    tmp_path: Path,
    admin_keys: str,
    api_keys: str,
) -> Iterator[Flask]:
    keys = {"admin_keys": admin_keys, "api_keys": api_keys}
    with made_app(http, store, models, tmp_path, **keys) as application:
        yield application


@pytest.fixture
def api(app: Flask) -> FlaskClient:
    return app.test_client()
