"""Whatever Dify says and however it is cut, the chunks of a stream make the gathered answer, and
every stream has one end."""

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opendify.config.models import Model
from tests.support import schemas
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import CLOSE, LAST_CHUNK, STREAM_HEAD, FakeDify, Step, chunk, recording
from tests.support.profiles import examples
from tests.support.stepping import Packets, looped
from tests.support.streams import read_stream
from tests.test_recorded_responses import NAMES, mode_of

STREAMS = [name for name in NAMES if recording(name).is_stream]
UUID = "0ccfe981-f968-4678-80ae-335266227dac"
SIGNED = f"/files/tools/{UUID}.png?timestamp=1&nonce=2&sign=3"
FILE = {
    "id": "f",
    "type": "image",
    "transfer_method": "tool_file",
    "url": SIGNED,
    "filename": "猫.png",
}
TEXTS = [
    "\n<think>\nHm 🤔",
    "</think>\n\n",
    "<details open> <summary> Thinking... </summary>",
    "STOP",
    "ST",
    f"![猫]({SIGNED})",
    "](/files/too",
    "👩‍👩‍👧 文",
]
SPLICED = [
    *({"event": name, "answer": text} for name in ("message", "agent_message") for text in TEXTS),
    *({"event": "text_chunk", "data": {"text": text}} for text in TEXTS),
    {"event": "message_file", **FILE, "belongs_to": "assistant"},
    {"event": "message_file", "answer": "text, not a file"},
    {"event": "reasoning_chunk", "data": {"reasoning": "\nLet me think\n", "node_id": "llm"}},
    {"event": "reasoning_chunk", "data": {"reasoning": "", "node_id": "llm", "is_final": True}},
    {"event": "agent_thought", "id": "1", "thought": "T", "tool": "dalle3", "tool_input": "{}"},
    {"event": "agent_thought", "id": "1", "tool": "dalle3", "observation": "a picture"},
    {"event": "agent_thought", "id": "3", "thought": "\nI wonder"},
    {"event": "agent_thought", "id": "3", "thought": "\nI wonder why.\n"},
    {"event": "agent_thought", "id": "4", "tool": "ask_human", "tool_input": "{}"},
    {"event": "agent_log", "data": {"id": "2", "label": "CALL weather", "status": "start"}},
    {"event": "agent_log", "data": {"id": "2", "label": "CALL weather", "status": "success",
        "data": {"output": {"tool_call_input": {"city": "Oslo"}, "tool_response": "12"}}}},
    {"event": "agent_log", "data": {"id": "5", "label": "m Thought", "data": {
        "output": "Let me look", "tool_name": "weather"}}},
    {"event": "text_chunk", "data": {"text": "1", "from_variable_selector": ["start", "a"]}},
    {"event": "text_chunk", "data": {"text": "\n", "from_variable_selector": ["end", "answer"]}},
    {"event": "node_started", "data": {"title": "Search", "node_type": "tool"}},
    {"event": "node_retry", "data": {"error": "boom", "retry_index": 1}},
    {"event": "iteration_next", "data": {"index": 1}},
    {"event": "loop_completed", "data": {"outputs": {"output": []}}},
    {"event": "human_input_required", "data": {"form_content": "Review", "actions": []}},
    {"event": "workflow_paused", "data": {"status": "paused"}},
    {"event": "workflow_finished", "data": {"status": "partial-succeeded", "outputs": {"p": FILE}}},
    {"event": "workflow_finished", "data": {"status": "succeeded", "outputs": {"a": 1, "b": "二"}}},
    {"event": "workflow_finished", "data": {"status": "failed", "error": "boom"}},
    {"event": "workflow_finished", "data": {"status": "failed", "error": "no", "outputs": None,
        "total_steps": 0, "created_by": {}}},
    {"event": "message_end", "files": [FILE], "metadata": {"retriever_resources": [
        {"document_name": "手册.pdf", "content": "p"}, {"title": "W", "url": "https://w.example"}]}},
    {"event": "error", "status": 400, "code": "invalid_param", "message": "boom"},
    {"event": "tts_message", "audio": "//8="},
    {"event": "from_the_future", "data": [1, {"answer": None}]},
]  # fmt: skip
MODES = ("chat", "agent-chat", "agent", "advanced-chat", "completion", "workflow")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "inline": {"reasoning": "inline", "citations": "markdown", "progress": "reasoning"},
    "quiet": {"reasoning": "drop", "agent_steps": "off", "citations": "off", "output": "b"},
}


@pytest.fixture(scope="module")
def far() -> Iterator[FakeDify]:
    fake = FakeDify()
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def api(http: httpx.Client, far: FakeDify) -> Iterator[FlaskClient]:
    models = {
        f"{mode} {kind}": Model(f"{mode} {kind}", "app-x", far.base, type=mode, **chosen)
        for mode in MODES
        for kind, chosen in KINDS.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(models, Path(folder), read_timeout=5)
        with open_app(settings, http) as application:
            yield application.test_client()


@dataclass
class Body:
    """What Dify says: a recording with events put into it, cut after some bytes or not at all."""

    name: str
    spliced: list[tuple[float, dict[str, Any], bool]]
    cut: float | None

    @property
    def said(self) -> bytes:
        blocks = [block + b"\n\n" for block in recording(self.name).body.split(b"\n\n") if block]
        for place, event, is_ascii in self.spliced:
            named = event | {"message_id": "m", "task_id": "t"}
            text = json.dumps(named, ensure_ascii=is_ascii)
            blocks.insert(round(place * len(blocks)), f"data: {text}\n\n".encode())
        said = b"".join(blocks)
        return said if self.cut is None else said[: round(self.cut * len(said))]


PLACES = st.floats(0, 1)
BODIES = st.builds(
    Body,
    st.sampled_from(STREAMS),
    st.lists(st.tuples(PLACES, st.sampled_from(SPLICED), st.booleans()), max_size=4),
    st.none() | PLACES,
)


STOPS = st.sampled_from([None, "STOP", ["tok3", "\n\n"]])
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
SETTINGS = settings(
    max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def asked(body: Body, kind: str, stops: list[str] | str | None) -> dict[str, Any]:
    """The question that is answered with what Dify says, whole unless it is STREAMED."""
    return {
        "model": f"{mode_of(body.name)} {kind}",
        "messages": [{"role": "user", "content": "Hi"}],
        "stop": stops,
    }


@given(
    body=BODIES,
    size=st.sampled_from([1_000_000, 4096, 601, 97, 13]),
    kind=st.sampled_from([*KINDS]),
    stops=STOPS,
)
@SETTINGS
def test_a_loop_gives_what_a_thread_gives(
    api: FlaskClient,
    far: FakeDify,
    body: Body,
    size: int,
    kind: str,
    stops: list[str] | str | None,
) -> None:
    said, end = body.said, b"" if body.cut is None else CLOSE
    blocks = said.split(b"\n\n")
    chunks = b"".join(chunk(block + b"\n\n") for block in blocks[:-1])
    raw = STREAM_HEAD + chunks + (LAST_CHUNK if body.cut is None else b"")
    question = asked(body, kind, stops) | STREAMED
    far.requests.clear()
    far.answer = lambda request: [raw, end]
    whole = api.post("/v1/chat/completions", json=question, buffered=True)
    packets = Packets(raw, size, end)
    far.answer = lambda request: packets
    status, given = looped(api.application, question, packets)
    assert status == whole.status_code
    assert comparable(given) == comparable(whole.data)


TEXT_CHUNK = re.compile(rb'(.*"delta":\{"(?:reasoning_)?content":")((?:[^"\\]|\\.)*)("\}.*)')


def comparable(body: bytes) -> bytes:
    """Without what is different where a stop sequence ends the answer before Dify has sent it, and
    with consecutive pieces of text in one chunk, as where they arrive together."""
    body = re.sub(rb'"(created|id|[a-z_]+_id)":("[^"]*"|\d+),?', b"", body)
    chunks: list[list[bytes]] = []
    for line in body.split(b"\n\n"):
        match = TEXT_CHUNK.fullmatch(line)
        parts = [*match.groups()] if match else [line]
        if match and chunks and chunks[-1][::2] == parts[::2]:
            chunks[-1][1] += parts[1]
        else:
            chunks.append(parts)
    return b"\n\n".join(map(b"".join, chunks))


@given(
    body=BODIES,
    size=st.sampled_from([1_000_000, 4096, 601, 97]),
    kind=st.sampled_from([*KINDS]),
    stops=STOPS,
)
@SETTINGS
def test_a_stream_says_what_the_whole_answer_says(
    api: FlaskClient,
    far: FakeDify,
    body: Body,
    size: int,
    kind: str,
    stops: list[str] | str | None,
) -> None:
    said, end = body.said, LAST_CHUNK if body.cut is None else CLOSE
    packets: list[Step] = [chunk(said[at : at + size]) for at in range(0, len(said), size)]
    far.requests.clear()
    far.answer = lambda request: [STREAM_HEAD, *packets, end]
    question = asked(body, kind, stops)
    whole = api.post("/v1/chat/completions", json=question, buffered=True)
    question |= STREAMED
    response = api.post("/v1/chat/completions", json=question, buffered=True)
    if response.status_code != 200:
        schemas.assert_error(response.json)
        assert (whole.status_code, whole.json) == (response.status_code, response.json)
        return
    streamed = read_stream(response.data)
    if whole.status_code != 200:
        assert streamed.error == whole.json["error"]
        return
    schemas.assert_completion(whole.json)
    choice = whole.json["choices"][0]
    assert streamed.error is None
    assert streamed.text == choice["message"]["content"]
    assert streamed.reasoning == choice["message"].get("reasoning_content", "")
    assert streamed.annotations == choice["message"]["annotations"]
    assert streamed.finish_reason == choice["finish_reason"]
    assert (streamed.usage or dict.fromkeys(whole.json["usage"], 0)) == whole.json["usage"]
