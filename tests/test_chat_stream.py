"""Chunks that are prepared are those that are made whole."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from opendify import sse
from opendify.dify.events import Usage
from opendify.errors import InvalidRequest
from opendify.protocols.openai import chat_response
from opendify.protocols.openai.chat_stream import ChatStreamWriter
from opendify.protocols.responses import ResponseMeta
from opendify.rendering.deltas import (
    Completion,
    Delta,
    ReasoningDelta,
    Reset,
    TextDelta,
    UiEvent,
)

TEXTS = st.text() | st.sampled_from(
    [sse.PLACEHOLDER, 'a",', ',"', "\n", "\r\n", '"content":""', "\\", "\u2028", "\x7f", "</s>"]
)
METAS = st.builds(ResponseMeta, TEXTS, st.integers(0), TEXTS)
DELTAS: st.SearchStrategy[Delta] = st.one_of(
    st.builds(TextDelta, TEXTS),
    st.builds(ReasoningDelta, TEXTS),
    st.builds(Reset, st.booleans()),
    st.builds(UiEvent, st.dictionaries(st.text(), st.text(), max_size=2)),
)


def whole_chunk(head: chat_response.ChunkMeta, delta: Delta) -> dict[str, Any]:
    match delta:
        case TextDelta(text):
            return chat_response.chunk(head, {"content": text})
        case ReasoningDelta(text):
            return chat_response.chunk(head, {"reasoning_content": text})
        case UiEvent(event):
            return chat_response.chunk(head, {"content": ""}) | {"event": event}
        case Reset(had_text):
            return chat_response.chunk(head, {"content": "\n\n" if had_text else ""})


@given(METAS, st.booleans(), st.lists(DELTAS))
def test_deltas_that_came_together_are_events_one_after_the_other(
    meta: ResponseMeta, include_usage: bool, deltas: list[Delta]
) -> None:
    head = chat_response.to_head(meta, include_usage)
    chunks = [whole_chunk(head, delta) for delta in deltas]
    writer = ChatStreamWriter(include_usage)
    writer.start(meta)
    assert writer.write(deltas) == b"".join(map(sse.encode, chunks))
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert writer.text == "".join(texts)


@given(TEXTS)
def test_json_is_that_of_the_standard_library(text: str) -> None:
    expected = json.dumps({"a": text}, ensure_ascii=False, separators=(",", ":"))
    assert sse.encode({"a": text}) == f"data: {expected}\n\n".encode()


def events(data: bytes) -> list[Any]:
    texts = data.decode().split("\n\n")[:-1]
    assert texts[-1] == "data: [DONE]"
    return [json.loads(text.removeprefix("data: ")) for text in texts[:-1]]


def test_a_stream_ends_with_its_reason_its_usage_and_done() -> None:
    meta, ended = ResponseMeta("1", 2, "m"), Completion("length", Usage(1, 2, 3))
    writer = ChatStreamWriter(include_usage=True)
    writer.start(meta)
    last, usage = events(writer.finish(meta, ended))
    assert last["choices"][0]["finish_reason"] == "length"
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 3)
    plain = ChatStreamWriter()
    plain.start(meta)
    assert len(events(plain.finish(meta, ended))) == 1


def test_a_failure_is_an_event_without_choices() -> None:
    (event,) = events(ChatStreamWriter().fail(InvalidRequest("No.")))
    assert event["error"]["message"] == "No."
    assert "choices" not in event
