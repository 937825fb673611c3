"""The Messages API through the whole application, before a Dify on loopback."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from opendify.config.accounts import Limits
from opendify.config.models import Model
from opendify.upstream.transport.transport import PooledClient
from tests.conftest import KEY
from tests.support import anthropic_events
from tests.support.anthropic_events import read_message_stream
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import (
    CLOSE,
    FOREVER,
    PING,
    Chat,
    FakeDify,
    Request,
    Steps,
    refused,
    replayed,
    streamed,
)
from tests.test_chats_recorded import whole_answers

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
VERSION = {"anthropic-version": "2023-06-01", "anthropic-beta": "a-2025-01-01,b"}


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def ask(api: FlaskClient, *messages: dict[str, Any], path: str = MESSAGES, **more: Any) -> Any:
    headers = VERSION | more.pop("headers", {})
    body = {"model": "tiny", "max_tokens": 100, "messages": list(messages) or [said("Hi")]}
    return api.post(path, json=body | more, headers=headers, buffered=True)


def failure(response: TestResponse) -> tuple[int, str]:
    """The status and the type of an error, in Anthropic's form."""
    anthropic_events.assert_error(response.json)
    assert response.json is not None
    assert response.json["request_id"] == response.headers["request-id"]
    assert response.headers["request-id"] == response.headers["X-Request-Id"]
    return response.status_code, response.json["error"]["type"]


def test_an_answer(dify: FakeDify, api: FlaskClient) -> None:
    response = ask(api, path=f"{MESSAGES}?beta=true", system="Be short.", temperature=0.5)
    assert response.status_code == 200
    anthropic_events.assert_message(response.json)
    assert response.json["content"] == [{"type": "text", "text": "Hello"}]
    assert response.headers["X-OpenDify-Ignored"] == "max_tokens, temperature"
    assert response.headers["request-id"] == response.headers["X-Request-Id"]
    (asked,) = dify.asked()
    assert asked.json["query"] == "Be short.\n\nHi"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_every_recorded_answer_is_known_again(
    dify: FakeDify, models: dict[str, Model], api: FlaskClient, stream: bool
) -> None:
    """Two turns stay in one conversation, without any id of the chat."""
    models["tiny"] = Model("tiny", KEY, dify.base, reasoning="split")
    thinking = {"type": "adaptive"}
    for name in whole_answers():
        dify.answers = [replayed(name)]
        first = said(f"Hi to {name}")
        response = ask(api, first, stream=stream, thinking=thinking)
        assert response.status_code == 200, name
        answer = read_message_stream(response.data).message if stream else response.json
        if not any(block.get("text", "").strip() for block in answer["content"]):
            continue  # an empty answer is no history
        dify.requests.clear()
        dify.answer = lambda request: Chat(request.json["conversation_id"]).says("Hello")
        sent_back = {"role": "assistant", "content": answer["content"]}
        second = ask(api, first, sent_back, said("And?"), stream=stream, thinking=thinking)
        assert second.status_code == 200, name
        (asked,) = dify.asked()
        assert asked.json["conversation_id"] == answer["dify"]["conversation_id"], name
        assert asked.json["query"] == "And?", name


def test_the_system_messages_of_claude_code_do_not_begin_a_new_conversation(
    dify: FakeDify, api: FlaskClient
) -> None:
    dify.answer = lambda request: Chat().says("Hello")
    user = {"role": "user", "content": [{"type": "text", "text": "<system-reminder>"}]}
    reminder = {"role": "system", "content": "Some reminder."}
    answer = ask(api, user, reminder).json
    sent_back = {"role": "assistant", "content": answer["content"]}
    ask(api, user, reminder, sent_back, said("And?"))
    assert [one.json["conversation_id"] for one in dify.asked()] == ["", Chat().conversation_id]


def test_who_asks_in_which_chat(dify: FakeDify, api: FlaskClient) -> None:
    ask(api, metadata={"user_id": "ann"}, headers={"X-Chat-Id": "c-1"})
    ask(api, said("Still there?"), metadata={"user_id": "ann", "chat_id": "c-1"})
    first, second = (request.json for request in dify.asked())
    assert (first["user"], second["user"]) == ("ann", "ann")
    assert second["conversation_id"] == Chat().conversation_id


def test_a_stop_sequence_ends_the_answer_and_is_named(dify: FakeDify, api: FlaskClient) -> None:
    chat = Chat()
    dify.answer = lambda r: streamed(chat.text("One "), chat.text("ST"), chat.text("OP!"), FOREVER)
    whole = ask(api, stop_sequences=["x", "STOP"]).json
    stream = read_message_stream(ask(api, stop_sequences=["x", "STOP"], stream=True).data)
    for message in (whole, stream.message):
        assert message["content"] == [{"type": "text", "text": "One "}]
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "STOP")


def test_thinking_is_a_block_for_those_who_ask_for_it(dify: FakeDify, api: FlaskClient) -> None:
    dify.answer = lambda r: Chat().says("<think>Hm.</think>", "Yes.")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    assert [b["type"] for b in ask(api).json["content"]] == ["text"]
    assert [b["type"] for b in ask(api, thinking=thinking).json["content"]] == ["thinking", "text"]
    plain = read_message_stream(ask(api, stream=True).data)
    asked_for = read_message_stream(ask(api, stream=True, thinking=thinking).data)
    assert (plain.thinking, asked_for.thinking) == ("", "Hm.")
    assert plain.text == asked_for.text == "Yes."


def test_images_and_documents_reach_the_app(dify: FakeDify, api: FlaskClient) -> None:
    names: list[bytes] = []

    def answer(request: Request) -> Steps:
        path = request.path.partition("?")[0].removeprefix("/v1")
        if path == "/files/upload":
            names.append(request.body)
            return refused(201, {"id": f"f-{len(names)}"})
        if path == "/info":
            return refused(200, {"mode": "chat", "name": "App"})
        if path == "/parameters":
            upload = {
                "enabled": True,
                "allowed_file_types": ["image", "document"],
                "allowed_file_upload_methods": ["local_file", "remote_url"],
                "number_limits": 3,
            }
            return refused(200, {"user_input_form": [], "file_upload": upload})
        return Chat().says("Seen")

    dify.tells_of_its_app, dify.answer = True, answer
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
    blocks = [
        {"type": "text", "text": "Look"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {"type": "document", "title": "Notes", "source": {"type": "text", "data": "Some notes"}},
    ]
    response = ask(api, {"role": "user", "content": blocks})
    assert response.status_code == 200, response.json
    (asked,) = dify.asked()
    assert [(f["type"], f["transfer_method"]) for f in asked.json["files"]] == [
        ("image", "local_file"),
        ("image", "remote_url"),
        ("document", "local_file"),
    ]
    assert b'filename="Notes.txt"' in names[1]
    assert b"Some notes" in names[1]


FAILURES = [
    pytest.param({"model": "other"}, (404, "not_found_error"), id="no such model"),
    pytest.param({"max_tokens": None}, (400, "invalid_request_error"), id="no limit"),
    pytest.param({"messages": []}, (400, "invalid_request_error"), id="no messages"),
    pytest.param({"thread": {"type": "create"}}, (400, "invalid_request_error"), id="a thread"),
    pytest.param({"system": "x" * 2**20}, (413, "request_too_large"), id="too large"),
]


@pytest.mark.parametrize(("fields", "told"), FAILURES)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_wrong_request_is_refused_in_anthropics_form(
    api: FlaskClient, dify: FakeDify, fields: Any, told: tuple[int, str], stream: bool
) -> None:
    assert failure(ask(api, stream=stream, **fields)) == told
    assert not dify.asked()


@pytest.mark.parametrize(
    ("steps", "told", "should_retry"),
    [
        (replayed("1.13.2/chat/wrong_key"), (502, "api_error"), "false"),
        (refused(429, {"code": "too_many_requests"}), (429, "rate_limit_error"), None),
        (refused(503, b"<html>", "text/html"), (503, "overloaded_error"), "true"),
        (refused(504, b"<html>", "text/html"), (504, "timeout_error"), "false"),
        ([CLOSE], (502, "api_error"), "false"),
    ],
    ids=["wrong key", "busy", "down", "gateway", "cut"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_failure_of_dify_has_anthropics_form(
    api: FlaskClient,
    dify: FakeDify,
    steps: Steps,
    told: tuple[int, str],
    should_retry: str | None,
    stream: bool,
) -> None:
    dify.answer = lambda request: steps
    response = ask(api, stream=stream)
    assert failure(response) == told
    assert response.headers.get("x-should-retry") == should_retry


def test_a_failure_within_a_stream_is_an_event(api: FlaskClient, dify: FakeDify) -> None:
    dify.answer = lambda request: [*streamed(Chat().text("Half of"))[:-1], CLOSE]
    response = ask(api, stream=True)
    stream = read_message_stream(response.data)
    assert stream.text == "Half of"
    assert stream.error is not None
    assert stream.error["request_id"] == response.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("method", "path", "body", "content_type", "told"),
    [
        ("GET", MESSAGES, b"", "", (405, "invalid_request_error")),
        ("POST", f"{MESSAGES}/batches", b"{}", "application/json", (404, "not_found_error")),
        ("POST", MESSAGES, b"{", "application/json", (400, "invalid_request_error")),
        ("POST", MESSAGES, b"a=b", "text/plain", (415, "invalid_request_error")),
        ("POST", MESSAGES, b" " * 2**21, "application/json", (413, "request_too_large")),
    ],
    ids=["GET", "batches", "no JSON", "a form", "too large"],
)
def test_what_never_reaches_the_parser_is_refused_in_anthropics_form(
    api: FlaskClient, method: str, path: str, body: bytes, content_type: str, told: tuple[int, str]
) -> None:
    response = api.open(path, method=method, data=body, content_type=content_type)
    assert failure(response) == told


def test_an_unexpected_error_tells_nothing(
    api: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.application.config["PROPAGATE_EXCEPTIONS"] = False
    monkeypatch.setattr("opendify.api.messages.token_count", lambda request: 1 / 0)
    response = ask(api, path=COUNT)
    assert failure(response) == (500, "api_error")
    assert "zero" not in response.text


def test_silence_after_the_beginning_is_filled_with_pings(
    api: FlaskClient, dify: FakeDify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opendify.api.responder.HOLD_SECONDS", 0.05)
    monkeypatch.setattr("opendify.chat.service.KEEP_ALIVE_SECONDS", 0.1)
    chat = Chat()
    dify.answers = [streamed(PING, 0.5, chat.text("Late "), 0.5, chat.text("text"), chat.end())]
    stream = read_message_stream(ask(api, stream=True).data)
    assert stream.text == "Late text"
    assert stream.comments
    assert stream.pings


def test_tokens_are_counted_without_a_run(api: FlaskClient, dify: FakeDify) -> None:
    body = {"model": "tiny", "messages": [said("x" * 400)], "tools": [{"name": "y"}]}
    response = api.post(COUNT, json=body, headers=VERSION)
    assert (response.status_code, response.json) == (
        200,
        {"input_tokens": 107, "is_estimate": True},
    )
    assert not dify.requests
    assert failure(api.post(COUNT, json=body | {"model": "other"})) == (404, "not_found_error")


def test_models_are_listed_in_the_form_of_the_client(api: FlaskClient) -> None:
    page = api.get("/v1/models", headers=VERSION).json
    for model in page["data"]:
        anthropic_events.assert_model(model)
    assert [model["id"] for model in page["data"]] == ["tiny", "org/model"]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "tiny", "org/model")
    anthropic_events.assert_model(api.get("/v1/models/tiny", headers=VERSION).json)
    assert failure(api.get("/v1/models/x", headers=VERSION)) == (404, "not_found_error")
    assert api.get("/v1/models").json["object"] == "list"
    assert api.get("/v1/models/tiny").json["object"] == "model"
    assert api.get("/v1/models/x").json["error"]["code"] == "model_not_found"


ROUTES = [("POST", MESSAGES), ("POST", COUNT), ("GET", "/v1/models")]
SURFACES = [*ROUTES, ("POST", "/v1/chat/completions")]


class TestKeys:
    @pytest.fixture
    def api_keys(self) -> str:
        return json.dumps({"ann": ["key-a"]})

    @pytest.mark.parametrize(("method", "path"), SURFACES)
    @pytest.mark.parametrize(
        "headers",
        [
            {"x-api-key": "key-a"},
            {"Authorization": "Bearer key-a"},
            {"Authorization": "Basic other", "X-Api-Key": " key-a\t"},
        ],
        ids=["x-api-key", "Bearer", "both"],
    )
    def test_a_key_opens_every_surface_in_either_header(
        self, api: FlaskClient, method: str, path: str, headers: dict[str, str]
    ) -> None:
        body = {"model": "tiny", "max_tokens": 9, "messages": [said("Hi")]}
        response = api.open(path, method=method, json=body, headers=headers, buffered=True)
        assert response.status_code == 200

    @pytest.mark.parametrize(("method", "path"), ROUTES)
    @pytest.mark.parametrize(
        "headers",
        [{}, {"x-api-key": "key-b"}, {"Authorization": "Bearer key-b"}, {"x-api-key": ""}],
        ids=["none", "x-api-key", "Bearer", "empty"],
    )
    def test_a_wrong_key_is_refused_in_anthropics_form(
        self, api: FlaskClient, dify: FakeDify, method: str, path: str, headers: dict[str, str]
    ) -> None:
        response = api.open(path, method=method, json={}, headers=VERSION | headers)
        assert failure(response) == (401, "authentication_error")
        assert "x-api-key" in response.text
        assert "key-b" not in response.text
        assert not dify.requests


def test_the_limit_of_a_caller_has_anthropics_form(
    http: PooledClient, models: dict[str, Model], tmp_path: Path
) -> None:
    settings = make_settings(models, tmp_path, limits=Limits(1, 0))
    with open_app(settings, http) as application:
        api = application.test_client()
        assert ask(api).status_code == 200
        response = ask(api)
        assert failure(response) == (429, "rate_limit_error")
        assert int(response.headers["Retry-After"]) > 0


def test_the_page_of_another_site_is_refused_in_anthropics_form(api: FlaskClient) -> None:
    response = ask(api, headers={"Origin": "https://evil.example"})
    assert failure(response) == (403, "permission_error")
