"""The application in the process of the test: its settings, and what opens and closes it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from opendify.app import Components, create_app
from opendify.auth.api_keys import parse_keys
from opendify.config.accounts import Limits, parse_accounts
from opendify.config.models import Model
from opendify.config.settings import Settings, load_settings
from opendify.conversations import ConversationStore
from opendify.upstream.transport.transport import PooledClient

NO_LIMITS = Limits()
MEGABYTE = 1024 * 1024
WAIT_SECONDS = 10.0


def make_settings(
    models: Mapping[str, Model],
    data_folder: Path,
    *,
    api_keys: str = "",
    admin_keys: str = "",
    limits: Limits = NO_LIMITS,
    **changes: Any,
) -> Settings:
    """Settings of an application that only this machine reaches, with little patience and small
    limits. ``api_keys`` and ``admin_keys`` are the texts of OPENDIFY_API_KEYS and
    OPENDIFY_ADMIN_KEYS; ``changes`` are fields of ``Settings``."""
    problems: list[str] = []
    accounts = parse_accounts(api_keys, set(models), limits, problems)
    assert not problems
    usual = {
        "models": models,
        "data_dir": str(data_folder),
        "accounts": accounts,
        "admin_keys": parse_keys(admin_keys),
        "limits": limits,
        "server_host": "127.0.0.1",
        "read_timeout": 2.0,
        "max_body_bytes": MEGABYTE,
        "max_text_bytes": MEGABYTE,
        "file_cache_bytes": MEGABYTE,
        "max_concurrent_streams": 100,
        "mapping_max_entries": 1000,
        "files_only_query": "Look.",
    }
    loaded = load_settings({"MODEL_CONFIG": '{"m":"k"}', "DIFY_API_BASE": "http://127.0.0.1:9/v1"})
    return replace(loaded, **(usual | changes))


class ClosingClient(FlaskClient):
    """Leaves the responses to ``open_app``, which closes them, as a server does: one that a test
    leaves unread would otherwise keep its connection to Dify."""

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        response = super().open(*args, **kwargs)
        self.application.extensions["responses"].append(response)
        return response


@contextmanager
def open_app(
    settings: Settings,
    http: PooledClient,
    *,
    clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: "new",
    store: ConversationStore | None = None,
) -> Iterator[Flask]:
    """The application of these settings, closed at the end with all its responses."""
    app = create_app(
        settings, http, workers=1, threads=128, clock=clock, new_id=new_id, store=store
    )
    app.test_client_class = ClosingClient
    responses = app.extensions["responses"] = []
    try:
        yield app
    finally:
        for response in responses:
            response.close()
        components_of(app).close(WAIT_SECONDS)


def components_of(app: Flask) -> Components:
    """The services of an application, for what cannot be seen from outside."""
    components: Components = app.extensions["opendify"]
    return components
