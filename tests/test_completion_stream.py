"""The chunks of the older completions endpoint."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion as SdkCompletion

from opendify import sse
from opendify.dify.events import Ids, Usage
from opendify.errors import InvalidRequest
from opendify.protocols.openai import completion_response
from opendify.protocols.openai.completion_stream import CompletionStreamWriter
from opendify.protocols.responses import ResponseMeta, WholeResponse
from opendify.rendering.deltas import (
    Completion,
    Delta,
    ReasoningDelta,
    Reset,
    TextDelta,
    UiEvent,
)

META = ResponseMeta("1", 2, "m", Ids("c"))
DELTAS: st.SearchStrategy[Delta] = st.one_of(
    st.builds(TextDelta, st.text(min_size=1) | st.sampled_from([sse.PLACEHOLDER, '"text":""'])),
    st.builds(ReasoningDelta, st.text()),
    st.builds(Reset, st.booleans()),
    st.builds(UiEvent, st.dictionaries(st.text(), st.text(), max_size=2)),
)


def events(data: bytes) -> list[Any]:
    texts = data.decode().removesuffix("\n\n").split("\n\n")
    return [json.loads(t.removeprefix("data: ")) for t in texts if t != "data: [DONE]"]


def text_of(delta: Delta) -> str:
    match delta:
        case TextDelta(text):
            return text
        case Reset(had_text):
            return "\n\n" if had_text else ""
        case _:
            return ""


@given(st.booleans(), st.lists(DELTAS))
def test_text_is_sent_and_nothing_else(include_usage: bool, deltas: list[Delta]) -> None:
    writer = CompletionStreamWriter("", include_usage)
    head = completion_response.to_head(META, include_usage)
    writer.start(META)
    texts = [text for delta in deltas if (text := text_of(delta))]
    expected = b"".join(sse.encode(completion_response.chunk(head, text)) for text in texts)
    assert writer.write(deltas) == (expected or writer.keep_alive())
    assert writer.text == "".join(texts)


def test_an_app_that_thinks_keeps_the_connection_open() -> None:
    writer = CompletionStreamWriter()
    writer.start(META)
    assert writer.write([ReasoningDelta("Hm.")]) == writer.keep_alive() == b": keep-alive\n\n"


def test_the_prompt_comes_first_and_is_no_part_of_the_answer() -> None:
    writer = CompletionStreamWriter("Once ")
    (first,) = events(writer.start(META))
    writer.write([TextDelta("upon")])
    assert first["choices"][0] == {
        "text": "Once ",
        "index": 0,
        "logprobs": None,
        "finish_reason": None,
    }
    assert writer.text == "upon"
    whole = completion_response.completion(WholeResponse(META, "upon", "", Completion()), "Once ")
    assert whole["choices"][0]["text"] == "Once upon"


def test_a_stream_ends_with_its_reason_its_usage_and_done() -> None:
    writer = CompletionStreamWriter("", include_usage=True)
    (first,) = events(writer.start(META))
    end = writer.finish(META, Completion("length", Usage(1, 2, 3)))
    last, usage = events(end)
    assert first["usage"] is last["usage"] is None
    assert (last["choices"][0]["text"], last["choices"][0]["finish_reason"]) == ("", "length")
    assert last["dify"] == {"conversation_id": "c"}
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 3)
    assert {event["object"] for event in (first, last, usage)} == {"text_completion"}
    assert end.endswith(b"data: [DONE]\n\n")
    plain = CompletionStreamWriter()
    (first,) = events(plain.start(META))
    (last,) = events(plain.finish(META, Completion("stop", Usage(1, 2, 3))))
    assert "usage" not in first | last


def test_a_failure_is_an_event_without_choices() -> None:
    (event,) = events(CompletionStreamWriter().fail(InvalidRequest("No.")))
    assert event["error"]["message"] == "No."
    assert "choices" not in event


def test_a_whole_response_has_all_that_the_sdk_requires() -> None:
    ended = Completion("stop", Usage(3, 2, 5))
    whole = completion_response.completion(WholeResponse(META, "Hello", "Hm.", ended))
    read = SdkCompletion.model_validate(whole)
    assert (read.id, read.created, read.model) == ("cmpl-1", 2, "m")
    assert (read.choices[0].text, read.choices[0].finish_reason) == ("Hello", "stop")
    assert read.usage is not None
    assert read.usage.total_tokens == 5
    assert "Hm." not in json.dumps(whole)
