"""Chunks that are prepared are those that are made whole."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from opendify import sse
from opendify.chunks import ChunkWriter
from opendify.openai import answers
from opendify.telling.tellings import Said, SaidInTurn, Shown, Telling, Thought, Voided

TEXTS = st.text() | st.sampled_from(
    [sse.PLACE, 'a",', ',"', "\n", "\r\n", '"content":""', "\\", "\u2028", "\x7f", "</s>"]
)
HEADS = st.builds(answers.Head, TEXTS, st.integers(0), TEXTS, st.booleans())
TELLINGS: st.SearchStrategy[Telling] = st.one_of(
    st.builds(Said, TEXTS),
    st.builds(SaidInTurn, st.lists(TEXTS, min_size=1).map(tuple)),
    st.builds(Thought, TEXTS),
    st.builds(Voided, st.booleans()),
    st.builds(Shown, st.dictionaries(st.text(), st.text(), max_size=2)),
)


def the_long_way(head: answers.Head, telling: Telling) -> list[dict[str, Any]]:
    match telling:
        case Said(text):
            return [answers.chunk(head, {"content": text})]
        case SaidInTurn(texts):
            return [answers.chunk(head, {"content": text}) for text in texts]
        case Thought(text):
            return [answers.chunk(head, {"reasoning_content": text})]
        case Shown(event):
            return [answers.chunk(head, {"content": ""}) | {"event": event}]
        case Voided(was):
            return [answers.chunk(head, {"content": "\n\n" if was else ""})]


@given(HEADS, st.lists(TELLINGS))
def test_what_is_told_together_is_the_events_one_after_the_other(
    head: answers.Head, tellings: list[Telling]
) -> None:
    whole = [chunk for telling in tellings for chunk in the_long_way(head, telling)]
    writer = ChunkWriter(head)
    assert writer.write(tellings) == b"".join(map(sse.encode, whole))
    said = [chunk["choices"][0]["delta"].get("content", "") for chunk in whole]
    assert writer.said() == "".join(said)


@given(TEXTS)
def test_json_is_that_of_the_standard_library(text: str) -> None:
    expected = json.dumps({"a": text}, ensure_ascii=False, separators=(",", ":"))
    assert sse.encode({"a": text}) == f"data: {expected}\n\n".encode()
