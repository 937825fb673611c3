"""Every recorded answer of Dify, through the whole application, streamed and in one piece."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from flask.testing import FlaskClient

from opendify.config.models import Model
from opendify.conversations.store import ConversationStore
from tests import schemas
from tests.conftest import made_app
from tests.fake_dify import (
    CLOSE,
    LAST_CHUNK,
    STREAM_HEAD,
    FakeDify,
    chunk,
    recorded_streams,
    recording,
    replayed,
)
from tests.streams import Streamed, read_stream


class Outcome(NamedTuple):
    """The status of the answer in one piece, that of the stream, and the code of the error."""

    whole: int
    streamed: int
    code: str | None = None


FINE = Outcome(200, 200)
REJECTED = Outcome(400, 400, "rejected_by_dify")
BAD_KEY = Outcome(502, 502, "upstream_auth_error")
UNKNOWN = Outcome(404, 404, "conversation_not_found")
WRONG_APP = Outcome(502, 502, "upstream_config_error")
FAILED = Outcome(502, 502, "run_failed")
FAILED_LATER = Outcome(502, 200, "run_failed")
BUSY = Outcome(429, 429, "rate_limit_exceeded")
DEAD = Outcome(504, 504, "upstream_timeout")
SILENT_LATER = Outcome(504, 200, "upstream_timeout")

CASES = {
    "auto_generate_name_false": FINE,
    "client_disconnect": SILENT_LATER,  # its recording ends where the client left
    "extra_unknown_fields": FINE,
    "file_local_image_stream": FINE,
    "file_too_many": REJECTED,
    "file_unknown_id": REJECTED,
    "llm_fail_mid_stream": FAILED_LATER,
    "llm_fail_ratelimit_stream": BUSY,
    "llm_fail_start_stream": FAILED,
    "missing_inputs": REJECTED,
    "missing_query": REJECTED,
    "missing_required_input_stream": REJECTED,
    "missing_user": REJECTED,
    "no_auth_header": BAD_KEY,
    "on_chat_messages": WRONG_APP,
    "slow_first_token_ping": FINE,
    "stopped_stream": FINE,
    "stream_conv_not_uuid": REJECTED,
    "stream_conv_of_other_user": UNKNOWN,
    "stream_conv_unknown": UNKNOWN,
    "stream_first": FINE,
    "stream_second": FINE,
    "stream_tool_call": FINE,
    "think_stream": FINE,
    "unicode_stream": FINE,
    "with_input": FINE,
    "wrong_key": BAD_KEY,
}
# What Dify 1.13 finds wrong after it has begun to stream a chatflow, it answers with silence.
EXCEPTIONS = {
    **{
        f"1.13.2/{app}/{case}": DEAD
        for app in ("advanced-chat", "advanced-chat-static")
        for case in (
            "file_too_many",
            "file_unknown_id",
            "stream_conv_of_other_user",
            "stream_conv_unknown",
        )
    },
    # This app asks no model, which could fail, and was stopped before its last node.
    "1.13.2/advanced-chat-static/llm_fail_mid_stream": FINE,
    "1.13.2/advanced-chat-static/llm_fail_ratelimit_stream": FINE,
    "1.13.2/advanced-chat-static/llm_fail_start_stream": FINE,
    "1.13.2/advanced-chat-static/stopped_stream": FAILED_LATER,
}
NAMES = recorded_streams()


def outcome(name: str) -> Outcome:
    return EXCEPTIONS.get(name) or CASES[name.rpartition("/")[2]]


def test_the_table_has_no_row_too_many() -> None:
    assert set(EXCEPTIONS) <= set(NAMES)
    assert set(CASES) == {name.rpartition("/")[2] for name in NAMES}


@contextmanager
def made_api(
    http: httpx.Client, store: ConversationStore, dify: FakeDify, read_timeout: float
) -> Iterator[FlaskClient]:
    models = {"tiny": Model("tiny", "app-x", dify.base, reasoning="inline", agent_steps="off")}
    with (
        tempfile.TemporaryDirectory() as folder,
        made_app(http, store, models, Path(folder), read_timeout=read_timeout) as application,
    ):
        yield application.test_client()


@pytest.fixture
def patient(http: httpx.Client, store: ConversationStore, dify: FakeDify) -> Iterator[FlaskClient]:
    with made_api(http, store, dify, read_timeout=5) as api:
        yield api


@pytest.fixture
def impatient(
    http: httpx.Client, store: ConversationStore, dify: FakeDify
) -> Iterator[FlaskClient]:
    with made_api(http, store, dify, read_timeout=0.3) as api:
        yield api


@pytest.fixture
def replaying(
    name: str, dify: FakeDify, patient: FlaskClient, impatient: FlaskClient
) -> FlaskClient:
    """The application before a Dify that answers with the recording."""
    dify.answer = lambda request: replayed(name)
    ends = recording(name).ended_by in ("last chunk", "content-length")
    return patient if ends else impatient


def ask(api: FlaskClient, stream: bool, usage: bool = True) -> Any:
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": stream,
    }
    if stream and usage:
        body["stream_options"] = {"include_usage": True}
    return api.post("/v1/chat/completions", json=body, buffered=True)  # closes the answer, too


def payloads(name: str) -> list[dict[str, Any]]:
    blocks = recording(name).body.split(b"\n\n")
    return [json.loads(block[6:]) for block in blocks if block.startswith(b"data: ")]


def recorded_text(name: str) -> str:
    said = ("message", "agent_message", "message_file")
    return "".join(p["answer"] for p in payloads(name) if p["event"] in said and "answer" in p)


def recorded_usage(name: str) -> dict[str, int] | None:
    for payload in payloads(name):
        if payload["event"] == "message_end":
            usage = payload["metadata"]["usage"]
            return {key: usage[key] for key in usage if key.endswith("_tokens")}
    return None


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_answer_comes_out_in_one_piece(name: str, replaying: FlaskClient) -> None:
    expected = outcome(name)
    response = ask(replaying, stream=False)
    assert response.status_code == expected.whole
    assert response.content_type == "application/json"
    if expected.code:
        schemas.assert_error(response.json)
        assert response.json["error"]["code"] == expected.code
        return
    answer = response.json
    schemas.assert_completion(answer)
    assert answer["choices"][0]["message"]["content"] == recorded_text(name)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["dify"]["conversation_id"] == response.headers["X-Dify-Conversation-Id"]
    assert answer["dify"]["message_id"] == response.headers["X-Dify-Message-Id"]
    assert answer["id"] == f"chatcmpl-{answer['dify']['message_id']}"
    assert answer["created"] == payloads(name)[0]["created_at"]
    usage = recorded_usage(name) or {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert answer["usage"] == usage


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_answer_comes_out_as_a_stream(name: str, replaying: FlaskClient) -> None:
    expected = outcome(name)
    response = ask(replaying, stream=True)
    assert response.status_code == expected.streamed
    if expected.streamed != 200:
        schemas.assert_error(response.json)
        assert response.json["error"]["code"] == expected.code
        return
    assert response.content_type == "text/event-stream; charset=utf-8"
    streamed = read_stream(response.data)
    assert streamed.text == recorded_text(name)
    assert (streamed.error or {}).get("code") == expected.code
    if expected.code is None:
        assert streamed.finish_reason == "stop"
        assert streamed.usage == recorded_usage(name)
        ids = streamed.chunks[-1]["dify"]
        assert ids["conversation_id"] == response.headers["X-Dify-Conversation-Id"]
        assert streamed.chunks[0]["id"] == f"chatcmpl-{ids['message_id']}"


@pytest.mark.parametrize("name", [name for name in NAMES if outcome(name) is FINE])
def test_the_text_goes_out_in_the_pieces_in_which_it_came(
    name: str, replaying: FlaskClient
) -> None:
    streamed = read_stream(ask(replaying, stream=True, usage=False).data)
    said = [p["answer"] for p in payloads(name) if p.get("answer")]
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed.chunks[1:-1]]
    assert [delta["content"] for delta in deltas] == said
    assert streamed.usage is None
    assert not any("usage" in chunk for chunk in streamed.chunks)


# One of each shape that an answer can have.
SHAPES = [
    "1.11.4/advanced-chat/stream_first",
    "1.11.4/agent-chat/stream_first",
    "1.11.4/chat/file_local_image_stream",
    "1.11.4/chat/stream_first",
    "1.13.2/advanced-chat-2answers/stream_first",
    "1.13.2/advanced-chat-static/stream_first",
    "1.13.2/advanced-chat/stream_first",
    "1.13.2/agent-chat/stream_tool_call",
    "1.13.2/chat/stream_first",
    "1.13.2/chat/slow_first_token_ping",
]


def answered(api: FlaskClient, stream: bool) -> Streamed | int:
    """The stream, or the status of an answer that is none; both checked."""
    response = ask(api, stream)
    if stream and response.status_code == 200:
        return read_stream(response.data)
    (schemas.assert_completion if response.status_code == 200 else schemas.assert_error)(
        response.json
    )
    return int(response.status_code)


def is_broken(answer: Streamed | int) -> bool:
    if isinstance(answer, Streamed):
        return answer.error is not None and answer.error["code"] == "upstream_error"
    return answer == 502


def events_of(name: str) -> list[bytes]:
    return [block + b"\n\n" for block in recording(name).body.split(b"\n\n") if block]


def first_deciding(events: list[bytes], *names: bytes) -> int:
    """The number of events before the first that ends the answer."""
    return next(i for i, e in enumerate(events) if any(b'"event":"%b"' % n in e for n in names))


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_that_breaks_off_after_any_event_is_never_finished(
    name: str, stream: bool, dify: FakeDify, patient: FlaskClient
) -> None:
    events = events_of(name)
    for count in range(first_deciding(events, b"message_end") + 1):
        dify.answers = [[STREAM_HEAD, *map(chunk, events[:count]), CLOSE]]
        assert is_broken(answered(patient, stream)), f"cut after {count} events"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_that_dify_ends_without_its_last_event_is_never_finished(
    name: str, stream: bool, dify: FakeDify, patient: FlaskClient
) -> None:
    events = events_of(name)
    for count in range(first_deciding(events, b"message_end", b"workflow_finished") + 1):
        dify.answers = [[STREAM_HEAD, *map(chunk, events[:count]), LAST_CHUNK]]
        assert is_broken(answered(patient, stream)), f"ended after {count} events"


@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_that_is_cut_at_any_byte_is_never_finished(
    name: str, dify: FakeDify, patient: FlaskClient
) -> None:
    events = events_of(name)
    decided = first_deciding(events, b"message_end")
    raw = STREAM_HEAD + b"".join(map(chunk, events[: decided + 1]))
    step = max(1, len(raw) // 60)
    for position in [*range(0, len(raw) - 6, step), len(raw) - 6]:
        dify.answers = [[raw[:position], CLOSE]] * 2
        assert is_broken(answered(patient, stream=True)), f"cut at {position}"


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1, 13, 100_000])
@pytest.mark.parametrize("name", SHAPES)
def test_how_an_answer_is_cut_into_packets_changes_nothing(
    name: str, size: int, dify: FakeDify, patient: FlaskClient
) -> None:
    raw = STREAM_HEAD + b"".join(map(chunk, events_of(name))) + LAST_CHUNK
    dify.answers = [list(pieces(raw, size))]
    streamed = answered(patient, stream=True)
    assert isinstance(streamed, Streamed)
    assert (streamed.text, streamed.finish_reason) == (recorded_text(name), "stop")


def test_a_chatflow_of_1_13_0_that_never_says_message_end_is_finished(
    dify: FakeDify, patient: FlaskClient
) -> None:
    name = "1.13.2/advanced-chat/stream_first"
    events = [event for event in events_of(name) if b'"event":"message_end"' not in event]
    dify.answer = lambda request: [STREAM_HEAD, *map(chunk, events), LAST_CHUNK]
    streamed = answered(patient, stream=True)
    assert isinstance(streamed, Streamed)
    assert (streamed.text, streamed.finish_reason) == (recorded_text(name), "stop")
    assert streamed.usage is not None
    assert answered(patient, stream=False) == 200


def test_all_recordings_need_few_connections(dify: FakeDify, patient: FlaskClient) -> None:
    names = [n for n in NAMES if recording(n).ended_by in ("last chunk", "content-length")]
    for name in names:
        dify.answers = [replayed(name)]
        answered(patient, stream=True)
    assert len(dify.asked()) == len(names) > 100
    assert dify.connections < 20
