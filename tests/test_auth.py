"""Who is let in to what, by the key that is shown."""

import hashlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse, create_environ, run_wsgi_app

from opendify.api.middleware.auth import warn_if_unauthenticated
from opendify.auth.accounts import AccountRegistry
from opendify.auth.api_keys import ApiKeys, parse_keys
from opendify.config.accounts import Account, Limits
from opendify.config.models import Model
from opendify.conversations.store.json_file import JsonFileStore
from tests.support import schemas
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import Chat, FakeDify

CHAT = "/v1/chat/completions"
MAPPINGS = "/v1/conversation/mappings"
KEYS = {
    "team-a": ["key-a", "key-a-2"],
    "team-b": {"keys": f"sha256:{hashlib.sha256(b'key-b').hexdigest()}", "models": ["org/model"]},
    "nothing": {"keys": "key-n", "models": []},
}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def ask(api: FlaskClient, key: str, **fields: Any) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return api.post(CHAT, json=body, headers=bearer(key), buffered=True)


def outcome(response: TestResponse) -> tuple[int, str]:
    if response.status_code < 400:
        return response.status_code, ""
    schemas.assert_error(response.json)
    return response.status_code, response.json["error"]["code"]


@pytest.fixture
def api_keys() -> str:
    return json.dumps(KEYS)


CLOSED = [
    ("POST", CHAT),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", MAPPINGS),
    ("POST", "/v1/conversation/cleanup"),
    ("DELETE", f"{MAPPINGS}/x"),
    ("GET", "/"),
    ("GET", "/nowhere"),
    ("PUT", CHAT),
    ("OPTIONS", "/v1/models"),
    ("HEAD", "/v1/models"),
    ("POST", "/healthz/"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic key-a",
        "key-a",
        "Bearer KEY-A",
        "Bearer \xe9",
        "Bearer key-a\xa0",
        "Bearer \x85key-a",
    ],
)
def test_without_a_key_nothing_opens(
    api: FlaskClient, dify: FakeDify, method: str, path: str, header: str
) -> None:
    response = api.open(path, method=method, headers={"Authorization": header}, data=b"\xff")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    if method != "HEAD":
        assert outcome(response) == (401, "invalid_api_key")
        assert response.json["error"]["type"] == "invalid_request_error"
    assert dify.asked() == []


class Untouched(io.RawIOBase):
    """A body that notices who reads it."""

    def __init__(self) -> None:
        self.was_read = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.was_read = True
        return 0


PREFLIGHT = {"Origin": "https://x.example", "Access-Control-Request-Method": "POST"}
WAITED_FOR = [
    ("POST", CHAT, "key-a", True),
    ("POST", CHAT, "key-n", True),
    ("POST", CHAT, "admin", True),
    ("POST", "/v1/conversation/cleanup", "admin", True),
    ("POST", CHAT, "", False),
    ("POST", CHAT, "wrong", False),
    ("POST", "/v1/conversation/cleanup", "wrong", False),
    ("POST", f"{CHAT}/", "key-a", True),
    ("POST", CHAT.replace("/c", "//c"), "key-a", True),
    ("POST", f"{CHAT}/", "wrong", False),
    ("POST", "/v1/conversation//cleanup/", "admin", True),
    ("PUT", f"{CHAT}/", "key-a", False),
    ("POST", "/nowhere", "key-a", False),
    ("POST", "/nowhere", "", False),
    ("PUT", CHAT, "key-a", False),
    ("GET", "/v1/models", "key-a", False),
    ("GET", "/healthz", "", False),
    ("POST", "/healthz", "", False),
    ("GET", "/readyz", "", False),
    ("GET", "/v1/files/x/content?sig=x", "", False),
    ("OPTIONS", CHAT, "", False),
    ("DELETE", f"{MAPPINGS}/x", "admin", False),
]


@pytest.mark.parametrize(("method", "path", "key", "is_waited_for"), WAITED_FOR)
@pytest.mark.parametrize("admin_keys", ["admin"])
def test_a_server_waits_for_the_bodies_that_are_read_and_no_others(
    app: Flask, method: str, path: str, key: str, is_waited_for: bool
) -> None:
    body = Untouched()
    headers = {**bearer(key), "Content-Length": "5", **(PREFLIGHT if method == "OPTIONS" else {})}
    environ = create_environ(path, method=method, headers=headers)
    assert app.config["ACCEPTS_BODY"](environ) is is_waited_for
    environ = create_environ(path, method=method, headers=headers)
    run_wsgi_app(app, environ | {"wsgi.input": body, "wsgi.input_terminated": True})
    assert body.was_read is is_waited_for


def test_probes_and_links_need_no_key(api: FlaskClient) -> None:
    assert api.get("/healthz").status_code == 200
    assert set(api.get("/readyz").json) == {"status"}


@pytest.mark.parametrize("key", ["key-a", "key-a-2"])
def test_each_key_of_a_caller_opens(api: FlaskClient, key: str) -> None:
    assert ask(api, key).status_code == 200
    assert ask(api, f" {key} ").status_code == 200


@pytest.mark.parametrize(
    ("headers", "caller"),
    [
        pytest.param({"api-key": "key-a"}, "team-a", id="api-key"),
        pytest.param({"api-key": " key-b\t"}, "team-b", id="blanks around it"),
        pytest.param({"api-key": "key-a", "Authorization": "Basic eA=="}, "team-a", id="another"),
        pytest.param({"api-key": "key-a", **bearer("key-b")}, "team-b", id="Bearer comes first"),
        pytest.param({"api-key": "key-a", "x-api-key": "key-b"}, "team-a", id="before x-api-key"),
        pytest.param({"api-key": "", "x-api-key": "key-b"}, "team-b", id="empty before x-api-key"),
        pytest.param({"api-key": "key-a", **bearer("wrong")}, None, id="a wrong Bearer"),
        pytest.param({"api-key": "wrong"}, None, id="a wrong key"),
        pytest.param({"api-key": "Bearer key-a"}, None, id="Bearer in it"),
        pytest.param({"api-key": ""}, None, id="nothing"),
    ],
)
def test_a_key_may_be_in_the_header_api_key(
    api: FlaskClient, headers: dict[str, str], caller: str | None
) -> None:
    response = api.get("/v1/models", headers=headers)
    listed = [model["id"] for model in response.json.get("data", [])]
    expected = {"team-a": ["tiny", "org/model"], "team-b": ["org/model"], None: []}
    assert listed == expected[caller]
    assert response.status_code == (200 if caller else 401)


def test_a_caller_sees_and_uses_only_its_models(api: FlaskClient, dify: FakeDify) -> None:
    def listed(key: str) -> list[str]:
        answer = api.get("/v1/models", headers=bearer(key)).json
        schemas.assert_model_list(answer)
        return [model["id"] for model in answer["data"]]

    assert listed("key-a") == ["tiny", "org/model"]
    assert listed("key-b") == ["org/model"]
    assert listed("key-n") == []
    hidden = api.get("/v1/models/tiny", headers=bearer("key-b"))
    assert outcome(hidden) == (404, "model_not_found")
    assert api.get("/v1/models/org/model", headers=bearer("key-b")).status_code == 200
    assert outcome(ask(api, "key-b")) == (404, "model_not_found")
    absent = ask(api, "key-b", model="absent").json["error"]["message"]
    assert ask(api, "key-b").json["error"]["message"] == absent.replace("absent", "tiny")
    assert dify.asked() == []
    assert ask(api, "key-b", model="org/model").status_code == 200


def test_mappings_are_under_the_name_of_the_caller(
    api: FlaskClient, dify: FakeDify, store: JsonFileStore
) -> None:
    for key in ("key-a", "key-a-2"):
        dify.answers.append(Chat(conversation_id=f"c-{key}").says("Hello"))
        assert ask(api, key, metadata={"chat_id": "1"}).status_code == 200
    dify.answers.append(Chat(conversation_id="c-b").says("Hello"))
    ask(api, "key-b", model="org/model", metadata={"chat_id": "1"})
    callers = {json.loads(key)[0] for key, _ in store.entries()}
    assert callers == {"team-a", "team-b"}


class TestPlainKeys:
    @pytest.fixture
    def api_keys(self) -> str:
        return "key-1,key-2"

    def test_each_key_is_a_caller_of_its_own(
        self, api: FlaskClient, dify: FakeDify, store: JsonFileStore
    ) -> None:
        for key in ("key-1", "key-2"):
            dify.answers.append(Chat(conversation_id=f"c-{key}").says("Hello"))
            assert ask(api, key, metadata={"chat_id": "1"}).status_code == 200
        callers = {json.loads(key)[0] for key, _ in store.entries()}
        assert callers == {
            hashlib.sha256(key.encode()).hexdigest()[:12] for key in ("key-1", "key-2")
        }


# Which of none, a wrong, an ordinary and an admin key opens the counts, and the list.
OPENS = [
    pytest.param("", "", [200, 200, 200, 200], [403, 403, 403, 403], id="no keys at all"),
    pytest.param("", "admin", [401, 401, 401, 200], [401, 401, 401, 200], id="admin keys"),
    pytest.param("key-a", "", [401, 401, 403, 401], [401, 401, 403, 401], id="ordinary keys"),
    pytest.param("key-a", "admin", [401, 401, 403, 200], [401, 401, 403, 200], id="both"),
    pytest.param("admin", "admin", [401, 401, 401, 200], [401, 401, 401, 200], id="one for both"),
]


@pytest.mark.parametrize(("ordinary", "admin", "counts", "listed"), OPENS)
def test_what_is_for_admins(
    http: httpx.Client,
    models: dict[str, Model],
    tmp_path: Path,
    ordinary: str,
    admin: str,
    counts: list[int],
    listed: list[int],
) -> None:
    settings = make_settings(models, tmp_path, api_keys=ordinary, admin_keys=admin)
    with open_app(settings, http) as application:
        api = application.test_client()
        shown = ["", "wrong", "key-a", "admin"]
        for path, expected in ((MAPPINGS, counts), (f"{MAPPINGS}?limit=1", listed)):
            found = [api.get(path, headers=bearer(key)).status_code for key in shown]
            assert found == expected, path


def test_an_ordinary_key_is_refused_as_not_an_admins(
    http: httpx.Client, models: dict[str, Model], tmp_path: Path
) -> None:
    for admin, code in (("admin", "admin_key_needed"), ("", "admin_keys_not_set")):
        settings = make_settings(models, tmp_path, api_keys="key-a", admin_keys=admin)
        with open_app(settings, http) as application:
            response = application.test_client().get(MAPPINGS, headers=bearer("key-a"))
            assert outcome(response) == (403, code)


def test_an_admin_key_opens_everything(
    http: httpx.Client, models: dict[str, Model], tmp_path: Path
) -> None:
    settings = make_settings(models, tmp_path, api_keys=json.dumps(KEYS), admin_keys="admin")
    with open_app(settings, http) as application:
        api = application.test_client()
        assert ask(api, "admin").status_code == 200
        assert len(api.get("/v1/models", headers=bearer("admin")).json["data"]) == 2


@pytest.mark.parametrize(
    ("keys", "host", "warned"),
    [
        ("", "0.0.0.0", True),
        ("", "::", True),
        ("", "192.0.2.1", True),
        ("", "opendify.example.com", True),
        ("", "127.0.0.1", False),
        ("", "127.8.9.1", False),
        ("", "::1", False),
        ("", "localhost", False),
        ("key", "0.0.0.0", False),
    ],
)
def test_endpoints_without_keys_are_warned_about_once(
    caplog: pytest.LogCaptureFixture, keys: str, host: str, warned: bool
) -> None:
    accounts = (Account(parse_keys(keys)),) if keys else ()
    with caplog.at_level(logging.INFO):
        warn_if_unauthenticated(AccountRegistry(accounts, ApiKeys(), {}, Limits()), host)
    assert ["OPENDIFY_API_KEYS" in line for line in caplog.messages] == [True] * warned
