"""What a client got as an answer, and sends back as it does, continues the conversation: for every
answer on record, streamed and whole, however a model has it rendered."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from opendify.config.models import Model
from tests.conftest import KEY
from tests.support.fake_dify import Chat, FakeDify, recorded_streams, recording, replayed

WAYS: dict[str, dict[str, Any]] = {
    "as usual": {},
    "inline": {"reasoning": "inline", "citations": "markdown"},
    "shown": {"agent_steps": "progress", "progress": "reasoning", "citations": "annotations"},
}
QUESTION = {"role": "user", "content": "Hi"}
_REASONING = re.compile(r"<think>.*?</think>", re.DOTALL)


def whole_answers() -> list[str]:
    """The names of the recorded answers that came to their end."""
    return [
        name
        for name in recorded_streams()
        if recording(name).ended_by == "last chunk"
        and b'"message_end"' in recording(name).body
        and b'"status": "stopped"' not in recording(name).body
    ]


def answer_of(api: FlaskClient, stream: bool, chat: str, messages: list[Any]) -> str:
    """The text, as a client puts it together."""
    body = {"model": "tiny", "messages": messages, "stream": stream}
    headers = {"X-OpenWebUI-Chat-Id": chat}
    with api.post("/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status_code == 200, chat
        if not stream:
            return str(response.get_json()["choices"][0]["message"]["content"])
        return "".join(contents(response.data))


def contents(stream: bytes) -> Iterator[str]:
    for event in stream.split(b"\n\n"):
        if event.startswith(b"data: {"):
            (choice,) = json.loads(event.removeprefix(b"data: "))["choices"]
            yield choice["delta"].get("content") or ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_every_recorded_answer_is_known_again(
    dify: FakeDify, models: dict[str, Model], api: FlaskClient, way: str, stream: bool
) -> None:
    models["tiny"] = Model("tiny", KEY, dify.base, **WAYS[way])
    for name in whole_answers():
        dify.answers = [replayed(name)]
        text = answer_of(api, stream, name, [QUESTION])
        sent_back = {"role": "assistant", "content": _REASONING.sub("", text).strip()}
        dify.requests.clear()
        dify.answer = lambda request: Chat(request.json["conversation_id"]).says("Hello")
        answer_of(api, stream, name, [QUESTION, sent_back, QUESTION])
        (asked,) = dify.asked()
        assert asked.json["conversation_id"], name
