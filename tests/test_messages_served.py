"""The Messages API before real Gunicorn with several workers."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support import anthropic_events, service
from tests.support.anthropic_events import read_message_stream
from tests.support.fake_dify import CLOSE, Chat, FakeDify, Request, Steps, streamed

HEADERS = {"x-api-key": "sk-caller", "anthropic-version": "2023-06-01"}
CLAUDE_CODE: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 32000,
    "stream": True,
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "high"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "metadata": {"user_id": json.dumps({"device_id": "d" * 64, "session_id": "s-1"})},
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2"},
        {"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral"}},
    ],
    "tools": [{"name": "Bash", "description": "Runs.", "input_schema": {"type": "object"}}],
}


def answer(request: Request) -> Steps:
    query = request.json["query"]
    if query == "cut later":
        return [*streamed(Chat().text("Half of"))[:-1], CLOSE]
    conversation_id = request.json["conversation_id"] or Chat().conversation_id
    return Chat(conversation_id).says("<think>Hm.</think>", "Yes, ", "sir.")


@pytest.fixture(scope="module")
def dify() -> Iterator[FakeDify]:
    fake = FakeDify(answer=answer)
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def client(dify: FakeDify, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    variables = service.free_variables(
        dify.base,
        MODEL_CONFIG='{"tiny":"app-secret-key"}',
        OPENDIFY_API_KEYS="sk-caller",
        GUNICORN_WORKERS="2",
        GUNICORN_THREADS="4",
    )
    with (
        service.running(tmp_path_factory.mktemp("service"), variables) as running,
        httpx.Client(base_url=running.url, headers=HEADERS, timeout=30, trust_env=False) as made,
    ):
        yield made


def ask(client: httpx.Client, *messages: dict[str, Any]) -> httpx.Response:
    body = CLAUDE_CODE | {"messages": messages}
    return client.post("/v1/messages?beta=true", json=body)


def user(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


REMINDER = {"role": "system", "content": "Some reminder."}


def test_a_chat_as_claude_code_sends_it_stays_in_one_conversation(
    client: httpx.Client, dify: FakeDify
) -> None:
    chat = [user("<system-reminder>", "Can you help?"), REMINDER]
    for question in ("And now?", "And then?", "Thanks."):
        response = ask(client, *chat)
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["request-id"] == response.headers["X-Request-Id"]
        assert response.headers["X-OpenDify-Ignored"] == (
            "max_tokens, tools, output_config, context_management"
        )
        message = read_message_stream(response.content).message
        assert [block["type"] for block in message["content"]] == ["thinking", "text"]
        assert message["content"][1]["text"] == "Yes, sir."
        chat += [{"role": "assistant", "content": message["content"]}, user(question)]
    asked = [request.json for request in dify.asked()]
    assert [one["conversation_id"] for one in asked] == ["", *[Chat().conversation_id] * 2]
    assert asked[0]["query"].endswith("<system-reminder>\nCan you help?")
    assert [one["query"] for one in asked[1:]] == ["And now?", "And then?"]


def test_a_stream_that_fails_ends_with_an_error(client: httpx.Client) -> None:
    body = {"model": "tiny", "max_tokens": 9, "stream": True, "messages": [user("cut later")]}
    response = client.post("/v1/messages", json=body)
    message = read_message_stream(response.content)
    assert message.text == "Half of"
    assert message.error is not None
    assert message.error["request_id"] == response.headers["request-id"]


def test_a_body_is_not_received_without_a_key(client: httpx.Client, dify: FakeDify) -> None:
    before = len(dify.requests)
    response = client.post("/v1/messages", headers={"x-api-key": "wrong"}, content=b"x" * 2**20)
    assert response.status_code == 401
    anthropic_events.assert_error(response.json())
    assert len(dify.requests) == before
