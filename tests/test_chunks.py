"""Chunks that are prepared are those that are made whole."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from opendify import sse
from opendify.chunks import ChatStreamWriter
from opendify.openai import answers
from opendify.telling.tellings import Delta, ReasoningDelta, Reset, TextDelta, UiEvent

TEXTS = st.text() | st.sampled_from(
    [sse.PLACE, 'a",', ',"', "\n", "\r\n", '"content":""', "\\", "\u2028", "\x7f", "</s>"]
)
HEADS = st.builds(answers.Head, TEXTS, st.integers(0), TEXTS, st.booleans())
DELTAS: st.SearchStrategy[Delta] = st.one_of(
    st.builds(TextDelta, TEXTS),
    st.builds(ReasoningDelta, TEXTS),
    st.builds(Reset, st.booleans()),
    st.builds(UiEvent, st.dictionaries(st.text(), st.text(), max_size=2)),
)


def whole_chunk(head: answers.Head, delta: Delta) -> dict[str, Any]:
    match delta:
        case TextDelta(text):
            return answers.chunk(head, {"content": text})
        case ReasoningDelta(text):
            return answers.chunk(head, {"reasoning_content": text})
        case UiEvent(event):
            return answers.chunk(head, {"content": ""}) | {"event": event}
        case Reset(had_text):
            return answers.chunk(head, {"content": "\n\n" if had_text else ""})


@given(HEADS, st.lists(DELTAS))
def test_deltas_that_came_together_are_events_one_after_the_other(
    head: answers.Head, deltas: list[Delta]
) -> None:
    chunks = [whole_chunk(head, delta) for delta in deltas]
    writer = ChatStreamWriter(head)
    assert writer.write(deltas) == b"".join(map(sse.encode, chunks))
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert writer.text() == "".join(texts)


@given(TEXTS)
def test_json_is_that_of_the_standard_library(text: str) -> None:
    expected = json.dumps({"a": text}, ensure_ascii=False, separators=(",", ":"))
    assert sse.encode({"a": text}) == f"data: {expected}\n\n".encode()
