"""Recorded answers of Dify, cut in every way, through the whole application."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from opendify.config.models import Model
from tests.support import schemas
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import (
    CLOSE,
    LAST_CHUNK,
    STREAM_HEAD,
    FakeDify,
    chunk,
    recorded_mode,
    recorded_streams,
    recording,
    replayed,
)
from tests.support.streams import Streamed, read_stream
from tests.test_recorded_responses import ROWS

NAMES = recorded_streams()
# Forms, questions to a person and sources add paragraphs to the text.
ADDED = re.compile(rb'"human_input_required"|"ask_human"|"retriever_resources":\[\{')
FINE = [
    name for name in NAMES if ROWS[name]["whole"] == 200 and not ADDED.search(recording(name).body)
]


@pytest.fixture
def patient(http: httpx.Client, dify: FakeDify) -> Iterator[FlaskClient]:
    models = {"tiny": Model("tiny", "app-x", dify.base, reasoning="inline", agent_steps="off")}
    with (
        tempfile.TemporaryDirectory() as folder,
        open_app(make_settings(models, Path(folder), read_timeout=5), http) as application,
    ):
        yield application.test_client()


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


def recorded_texts(name: str) -> list[str]:
    """The pieces of the text. The last message of an agent repeats them."""
    said = ["agent_message", "message", "message_file"]
    names = said[:1] if recorded_mode(name) == "agent" else said
    return [p["answer"] for p in payloads(name) if p["event"] in names and p.get("answer")]


@pytest.mark.parametrize("name", FINE)
def test_the_text_goes_out_in_the_pieces_in_which_it_came(
    name: str, dify: FakeDify, patient: FlaskClient
) -> None:
    dify.answers = [replayed(name)]
    streamed = read_stream(ask(patient, stream=True, usage=False).data)
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed.chunks[1:-1]]
    assert [delta["content"] for delta in deltas] == recorded_texts(name)
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
    "1.16.1/agent-chat/tool_stream",
    "1.16.1/agent/stream_first",
    "1.16.1/flow-agent/stream_first",
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
    assert (streamed.text, streamed.finish_reason) == ("".join(recorded_texts(name)), "stop")


def test_a_chatflow_of_1_13_0_that_never_says_message_end_is_finished(
    dify: FakeDify, patient: FlaskClient
) -> None:
    name = "1.13.2/advanced-chat/stream_first"
    events = [event for event in events_of(name) if b'"event":"message_end"' not in event]
    dify.answer = lambda request: [STREAM_HEAD, *map(chunk, events), LAST_CHUNK]
    streamed = answered(patient, stream=True)
    assert isinstance(streamed, Streamed)
    assert (streamed.text, streamed.finish_reason) == ("".join(recorded_texts(name)), "stop")
    assert streamed.usage is not None
    assert answered(patient, stream=False) == 200


def test_all_recordings_need_few_connections(dify: FakeDify, patient: FlaskClient) -> None:
    names = [n for n in NAMES if recording(n).ended_by in ("last chunk", "content-length")]
    for name in names:
        dify.answers = [replayed(name)]
        answered(patient, stream=True)
    assert len(dify.asked()) == len(names) > 100
    assert dify.connections < 20
