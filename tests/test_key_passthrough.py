"""Callers who bring the key of their own Dify app."""

import base64
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient
from werkzeug.test import create_environ

from opendify.config.models import Model
from opendify.config.settings import ConfigError, load_settings
from opendify.conversations.store.json_file import JsonFileStore
from opendify.upstream import app_registry as rooms
from opendify.upstream.client import DifyClient
from tests.support import schemas
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import Chat, FakeDify, Request, Steps, refused

CHAT = "/v1/chat/completions"
KEYS = ("app-first", "app-second")
BASE = "https://dify.example.com/v1"
PICTURE = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 20).decode()


@pytest.fixture
def models(dify: FakeDify) -> dict[str, Model]:
    return {
        "tiny": Model("tiny", "", dify.base),
        "other": Model("other", "", dify.base, tasks="model:tiny"),
    }


@pytest.fixture
def api(
    http: httpx.Client, store: JsonFileStore, models: dict[str, Model], tmp_path: Path
) -> Iterator[FlaskClient]:
    settings = make_settings(models, tmp_path / "data", admin_keys="admin", key_passthrough=True)
    with open_app(settings, http, store=store) as application:
        yield application.test_client()


def ask(api: FlaskClient, key: str, **fields: Any) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **fields}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return api.post(CHAT, json=body, headers=headers, buffered=True)


def keys_used(dify: FakeDify) -> set[str]:
    return {request.headers["authorization"] for request in dify.requests}


@pytest.mark.parametrize(
    ("key", "is_waited_for"), [("app-any", True), ("admin", True), ("sk-any", False), ("", False)]
)
def test_a_body_is_waited_for_with_the_key_of_an_app(
    api: FlaskClient, key: str, is_waited_for: bool
) -> None:
    environ = create_environ(CHAT, method="POST", headers={"Authorization": f"Bearer {key}"})
    assert api.application.config["ACCEPTS_BODY"](environ) is is_waited_for


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("stream", [True, False])
def test_the_key_goes_to_dify_and_no_other(
    api: FlaskClient, dify: FakeDify, key: str, stream: bool
) -> None:
    assert ask(api, key, stream=stream).status_code == 200
    assert len(dify.asked()) == 1
    assert keys_used(dify) == {f"Bearer {key}"}


@pytest.mark.parametrize(
    "key", ["", "none", "sk-something", "app-", "app-a b", "app-é", "app-" + "x" * 201, "admin"]
)
def test_without_a_dify_key_nothing_is_asked(api: FlaskClient, dify: FakeDify, key: str) -> None:
    response = ask(api, key)
    assert response.status_code == 401
    schemas.assert_error(response.json)
    assert response.json["error"]["code"] == "invalid_api_key"
    assert "app-..." in response.json["error"]["message"]
    assert dify.requests == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_key_that_dify_refuses_is_the_fault_of_the_caller(
    api: FlaskClient, dify: FakeDify, stream: bool
) -> None:
    body = {"code": "unauthorized", "message": "Access token is invalid", "status": 401}
    dify.answer = lambda request: refused(401, body)
    response = ask(api, KEYS[0], stream=stream)
    assert response.status_code == 401
    assert response.json["error"]["code"] == "invalid_api_key"
    assert KEYS[0] not in response.text


def test_chats_of_different_keys_never_meet(
    api: FlaskClient, dify: FakeDify, store: JsonFileStore
) -> None:
    for key in KEYS * 2:
        dify.answers.append(Chat(conversation_id=f"c-{key}").says("Hello"))
    for key in KEYS:
        assert ask(api, key, metadata={"chat_id": "1"}).status_code == 200
    more = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "More"},
    ]
    for key in KEYS:
        assert ask(api, key, metadata={"chat_id": "1"}, messages=more).status_code == 200
    continued = [request.json.get("conversation_id", "") for request in dify.asked()]
    assert continued == ["", "", "c-app-first", "c-app-second"]
    stolen = ask(api, KEYS[1], conversation_id="c-app-first")
    assert stolen.status_code == 404
    callers = {json.loads(key)[0] for key, _ in store.entries()}
    assert callers == {hashlib.sha256(key.encode()).hexdigest()[:12] for key in KEYS}


def test_uploads_of_one_app_are_not_named_to_another(api: FlaskClient, dify: FakeDify) -> None:
    uploads: list[str] = []

    def answer(request: Request) -> Steps:
        if request.path == "/v1/files/upload":
            uploads.append(request.headers["authorization"])
            return refused(201, {"id": f"upload-{len(uploads)}"})
        if request.path.startswith("/v1/parameters"):
            rules = {"enabled": True, "allowed_file_types": ["image"], "number_limits": 3}
            rules["allowed_file_upload_methods"] = ["local_file"]
            return refused(200, {"file_upload": {**rules, "image": {**rules}}})
        if request.path.startswith("/v1/info"):
            return refused(200, {"name": "a", "mode": "chat", "description": ""})
        return Chat().says("Hello")

    dify.tells_of_its_app = True
    dify.answer = answer
    content = [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": PICTURE}},
    ]
    for key in (*KEYS, KEYS[0]):
        response = ask(api, key, messages=[{"role": "user", "content": content}])
        assert response.status_code == 200, response.text
    assert uploads == [f"Bearer {key}" for key in KEYS]
    named = [request.json["files"][0]["upload_file_id"] for request in dify.asked()]
    assert named == ["upload-1", "upload-2", "upload-1"]


def test_what_one_app_is_says_nothing_of_another(api: FlaskClient, dify: FakeDify) -> None:
    modes = {f"Bearer {KEYS[0]}": "chat", f"Bearer {KEYS[1]}": "completion"}

    def answer(request: Request) -> Steps:
        if request.path.startswith("/v1/info"):
            mode = modes[request.headers["authorization"]]
            return refused(200, {"name": mode, "mode": mode, "description": ""})
        if request.path.startswith("/v1/parameters"):
            form = {"paragraph": {"variable": "query", "label": "Query", "required": False}}
            return refused(200, {"user_input_form": [form]})
        return Chat().says("Hello")

    dify.tells_of_its_app = True
    dify.answer = answer
    for key in KEYS * 2:
        assert ask(api, key).status_code == 200
    asked = [r.path for r in dify.requests if r.method == "POST"]
    assert asked == ["/v1/chat-messages", "/v1/completion-messages"] * 2
    for key in KEYS:
        listed = api.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).json["data"]
        assert listed[0]["mode"] == modes[f"Bearer {key}"]


def test_a_task_for_another_model_has_the_key_of_the_caller(
    api: FlaskClient, dify: FakeDify
) -> None:
    body = {"model": "other", "messages": [{"role": "user", "content": "Title?"}]}
    headers = {
        "Authorization": f"Bearer {KEYS[0]}",
        "X-OpenWebUI-Task": "title_generation",
        "X-OpenWebUI-Chat-Id": "1",
    }
    assert api.post(CHAT, json=body, headers=headers).status_code == 200
    assert len(dify.asked()) == 1
    assert keys_used(dify) == {f"Bearer {KEYS[0]}"}


def test_no_key_is_written_down(
    api: FlaskClient, dify: FakeDify, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ask(api, KEYS[0], metadata={"chat_id": "1"})
    dify.answer = lambda request: refused(401, {"code": "unauthorized"})
    ask(api, KEYS[0], metadata={"chat_id": "1"})
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEYS[0].encode() not in written
    assert KEYS[0] not in caplog.text


def test_admins_are_let_in_to_what_is_theirs(api: FlaskClient) -> None:
    def status(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return api.get("/v1/conversation/mappings", headers=headers).status_code

    assert [status(key) for key in ("", "sk-x", KEYS[0], "admin")] == [401, 401, 403, 200]


def test_an_admin_cannot_delete_in_dify_without_a_key(api: FlaskClient, dify: FakeDify) -> None:
    ask(api, KEYS[0], metadata={"chat_id": "1"})
    before = len(dify.requests)
    path = f"/v1/conversation/mappings/{Chat().conversation_id}"
    admin = {"Authorization": "Bearer admin"}
    assert api.delete(f"{path}?dify=true", headers=admin).status_code == 400
    assert len(dify.requests) == before
    assert api.delete(path, headers=admin).json["removed_count"] == 1


def loaded(models: str, **more: str) -> Any:
    environ = {"DIFY_API_BASE": BASE, "MODEL_CONFIG": models, "DIFY_KEY_PASSTHROUGH": "true"}
    return load_settings({**environ, **more})


def test_dify_decides_about_unknown_conversations_unless_a_model_says_otherwise() -> None:
    known = loaded('{"a":{},"b":{"conversation_ids":"own"}}').models
    assert (known["a"].conversation_ids, known["b"].conversation_ids) == ("any", "own")


def test_no_configured_key_is_left_to_fall_back_on() -> None:
    text = json.dumps({"a": {}, "b": "app-k", "c": {"key": "app-l", "base": f"{BASE}/"}})
    assert {model.key for model in loaded(text).models.values()} == {""}


@pytest.mark.parametrize(
    ("models", "more", "problem"),
    [
        ('{"a":{"base":"https://other.example.com/v1"}}', {}, "DIFY_API_BASE only"),
        ('{"a":{}}', {"OPENDIFY_API_KEYS": "k"}, "cannot be combined"),
        ('{"a":{}}', {"DIFY_API_BASE": ""}, "DIFY_API_BASE is not set"),
        ('{"a":{}}', {"DIFY_KEY_PASSTHROUGH": "false"}, "model 'a' has no 'key'"),
        ('{"a":{}}', {"DIFY_KEY_PASSTHROUGH": "yes"}, "DIFY_KEY_PASSTHROUGH must be one of"),
    ],
)
def test_settings_that_exclude_each_other_are_reported(
    models: str, more: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        loaded(models, **more)


def test_made_up_keys_fill_no_memory(
    http: httpx.Client, dify: FakeDify, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "MAX_CALLER_APPS", 5)
    directory = rooms.AppRegistry(DifyClient(http, 2.0), models)
    for number in range(20):
        directory.app(Model("tiny", f"app-{number}", dify.base))
    assert len(directory._entries) <= len(models) + 5
    directory.close()
