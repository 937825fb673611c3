"""Every recorded answer of a real Dify to a question, streamed and in one piece: what the caller
gets is what the table says, in each of the APIs."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from opendify.config.models import Model
from tests.support import anthropic_events, schemas
from tests.support.anthropic_events import read_message_stream
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import (
    FOREVER,
    RECORDINGS,
    FakeDify,
    asked_path,
    recorded_mode,
    recorded_names,
    recording,
    replayed,
)
from tests.support.streams import read_stream

# One row a recording: what the caller gets with the settings that a model has by itself. ``whole``
# and ``streamed`` are the status of the answer in one piece and of the stream; ``usage`` counts
# prompt, completion and all tokens; ``code`` is that of the error, which may follow some text. What
# is missing is empty.
TABLE = RECORDINGS / "answers.jsonl"
EMPTY = {"text": "", "reasoning": "", "finish": None, "usage": None, "code": None}
ROWS = {row["name"]: EMPTY | row for row in map(json.loads, TABLE.read_text().splitlines())}
MODES = {"/v1/completion-messages": "completion", "/v1/workflows/run": "workflow"}
NAMES = [name for name in recorded_names() if asked_path(name) in (*MODES, "/v1/chat-messages")]


def mode_of(name: str) -> str:
    """The mode that asks the endpoint that was asked, which may not be the mode of the app."""
    mode = recorded_mode(name)
    is_chat = mode not in MODES.values()
    return MODES.get(asked_path(name)) or (mode if is_chat else "chat")


@pytest.fixture(scope="module")
def recorded_dify() -> Iterator[FakeDify]:
    fake = FakeDify()
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def apis(http: httpx.Client, recorded_dify: FakeDify) -> Iterator[dict[bool, FlaskClient]]:
    """Applications with patience for a Dify that is slow, and without any for one that is dead."""
    modes = ("chat", "agent-chat", "agent", "advanced-chat", "completion", "workflow")
    models = {mode: Model(mode, "app-x", recorded_dify.base, type=mode) for mode in modes}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with (
            open_app(make_settings(models, data, read_timeout=5), http) as patient,
            open_app(make_settings(models, data, read_timeout=0.4), http) as impatient,
        ):
            yield {True: patient.test_client(), False: impatient.test_client()}


def ask(name: str, apis: dict[bool, FlaskClient], dify: FakeDify, stream: bool) -> Any:
    more = {"stream_options": {"include_usage": True}} if stream else {}
    return post("/v1/chat/completions", name, apis, dify, {"stream": stream, **more})


def ask_messages(name: str, apis: dict[bool, FlaskClient], dify: FakeDify, stream: bool) -> Any:
    """The same by the Messages API."""
    more = {"stream": stream, "max_tokens": 100, "thinking": {"type": "adaptive"}}
    return post("/v1/messages", name, apis, dify, more)


def post(
    path: str, name: str, apis: dict[bool, FlaskClient], dify: FakeDify, more: dict[str, Any]
) -> Any:
    ends = recording(name).ended_by in ("last chunk", "content-length")
    said = b"".join(step for step in replayed(name) if isinstance(step, bytes))
    dify.answer = lambda request: [said] if ends else [said, FOREVER]
    body = {"model": mode_of(name), "messages": [{"role": "user", "content": "Hi"}], **more}
    return apis[ends].post(path, json=body, buffered=True)


def counts(usage: dict[str, int] | None) -> list[int] | None:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return [usage[name] for name in names] if usage else None


def asserted_ids(answer: dict[str, Any], response: Any) -> None:
    """Dify's names for the answer stand in it, and its own is made of one of them."""
    ids = answer["dify"]
    assert ids.get("conversation_id") == response.headers.get("X-Dify-Conversation-Id")
    assert answer["id"] == f"chatcmpl-{ids.get('message_id') or ids['workflow_run_id']}"
    assert ids["task_id"]
    assert 1_795_000_000 < answer["created"] < 1_797_000_000  # when it was recorded


def test_every_recorded_question_has_a_row_and_every_row_a_recording() -> None:
    assert set(ROWS) == set(NAMES)
    assert len(NAMES) > 400
    assert {name.split("/")[0] for name in NAMES} == {"1.11.4", "1.13.2", "1.16.1"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_answer_in_one_piece(
    name: str, apis: dict[bool, FlaskClient], recorded_dify: FakeDify
) -> None:
    row = ROWS[name]
    response = ask(name, apis, recorded_dify, stream=False)
    assert response.status_code == row["whole"]
    if row["code"]:
        schemas.assert_error(response.json)
        assert response.json["error"]["code"] == row["code"]
        return
    schemas.assert_completion(response.json)
    choice = response.json["choices"][0]
    assert choice["message"]["content"] == row["text"]
    assert choice["message"].get("reasoning_content", "") == row["reasoning"]
    assert choice["finish_reason"] == row["finish"]
    assert counts(response.json["usage"]) == (row["usage"] or [0, 0, 0])
    asserted_ids(response.json, response)
    runs = (*MODES, "/v1/chat-messages")
    asked = [r for r in recorded_dify.requests if r.path in runs][-1]
    assert asked.path == asked_path(name)
    assert asked.json["response_mode"] == "streaming"


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_answer_streamed(
    name: str, apis: dict[bool, FlaskClient], recorded_dify: FakeDify
) -> None:
    row = ROWS[name]
    response = ask(name, apis, recorded_dify, stream=True)
    assert response.status_code == row["streamed"]
    if row["streamed"] != 200:
        schemas.assert_error(response.json)
        assert response.json["error"]["code"] == row["code"]
        return
    streamed = read_stream(response.data)
    assert streamed.text == row["text"]
    assert streamed.reasoning == row["reasoning"]
    assert streamed.finish_reason == row["finish"]
    assert counts(streamed.usage) == row["usage"]
    assert (streamed.error or {}).get("code") == row["code"]
    if not row["code"]:
        asserted_ids(streamed.chunks[-1], response)


STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}


def assert_answered(message: dict[str, Any], row: dict[str, Any], response: Any) -> None:
    """A message says what the row says, and has Dify's ids."""
    assert message["stop_reason"] == STOP_REASONS[row["finish"]]
    prompt, completion, _ = row["usage"] or [0, 0, 0]
    assert message["usage"] == {"input_tokens": prompt, "output_tokens": completion}
    ids = message["dify"]
    assert ids.get("conversation_id") == response.headers.get("X-Dify-Conversation-Id")
    assert message["id"] == f"msg_{ids.get('message_id') or ids['workflow_run_id']}"


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_answer_as_one_message(
    name: str, apis: dict[bool, FlaskClient], recorded_dify: FakeDify
) -> None:
    row = ROWS[name]
    response = ask_messages(name, apis, recorded_dify, stream=False)
    assert response.status_code == row["whole"]
    if row["code"]:
        anthropic_events.assert_error(response.json)
        assert response.json["error"]["details"]["error_code"] == row["code"]
        assert response.json["request_id"] == response.headers["request-id"]
        return
    anthropic_events.assert_message(response.json)
    *thoughts, last = response.json["content"]
    assert last["text"] == row["text"]
    assert "".join(block["thinking"] for block in thoughts) == row["reasoning"]
    assert_answered(response.json, row, response)


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_answer_as_the_events_of_a_message(
    name: str, apis: dict[bool, FlaskClient], recorded_dify: FakeDify
) -> None:
    row = ROWS[name]
    response = ask_messages(name, apis, recorded_dify, stream=True)
    assert response.status_code == row["streamed"]
    if row["streamed"] != 200:
        anthropic_events.assert_error(response.json)
        assert response.json["error"]["details"]["error_code"] == row["code"]
        return
    streamed = read_message_stream(response.data)
    assert streamed.text == row["text"]
    assert streamed.thinking == row["reasoning"]
    if row["code"]:
        assert streamed.error is not None
        assert streamed.error["error"]["details"]["error_code"] == row["code"]
        assert streamed.error["request_id"] == response.headers["request-id"]
        return
    assert streamed.error is None
    assert_answered(streamed.message, row, response)
