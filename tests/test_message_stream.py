"""The events of a message, one after the other."""

from hypothesis import given
from hypothesis import strategies as st

from opendify.dify.events import Ids, Usage
from opendify.errors import BadUpstreamResponse
from opendify.protocols.anthropic.message_stream import MessageStreamWriter
from opendify.protocols.responses import ResponseMeta
from opendify.rendering.deltas import (
    Completion,
    Delta,
    ReasoningDelta,
    Reset,
    TextDelta,
    UiEvent,
)
from tests.support.anthropic_events import StreamedMessage, read_message_stream

META = ResponseMeta("m-1", 2, "tiny", Ids(conversation_id="c-1"))
USAGE = Usage(7, 5, 12)
STATUS = UiEvent({"type": "status", "data": {}})


def written(
    *deltas: Delta, shows_thinking: bool = True, ended: Completion | None = None
) -> StreamedMessage:
    """A whole stream with one write for each delta."""
    writer = MessageStreamWriter(shows_thinking, "req-1")
    events = [writer.start(META), *(writer.write([delta]) for delta in deltas)]
    assert all(events), "a write must send something"
    events.append(writer.finish(META, ended or Completion(usage=USAGE)))
    streamed = read_message_stream(b"".join(events))
    assert streamed.text == writer.text
    return streamed


def test_a_text_is_one_block() -> None:
    streamed = written(TextDelta("Hi "), TextDelta('"你" \u2028'))
    assert streamed.message == {
        "id": "msg_m-1",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": 'Hi "你" \u2028'}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 5},
        "dify": {"conversation_id": "c-1"},
    }
    assert streamed.events == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_thinking_and_text_are_blocks_that_alternate() -> None:
    streamed = written(
        ReasoningDelta("a"),
        ReasoningDelta("b"),
        TextDelta("c"),
        ReasoningDelta("d"),
        TextDelta("e"),
    )
    blocks = [(b["type"], b.get("text", b.get("thinking"))) for b in streamed.message["content"]]
    assert blocks == [("thinking", "ab"), ("text", "c"), ("thinking", "d"), ("text", "e")]


def test_thinking_that_was_not_asked_for_is_a_ping() -> None:
    streamed = written(ReasoningDelta("a"), TextDelta("b"), shows_thinking=False)
    assert streamed.message["content"] == [{"type": "text", "text": "b"}]
    assert streamed.pings == 1


def test_what_has_no_place_in_a_message_is_a_ping() -> None:
    streamed = written(STATUS, Reset(had_text=False), TextDelta("a"))
    assert (streamed.text, streamed.pings) == ("a", 2)


def test_a_replaced_text_is_followed_by_the_new_one() -> None:
    assert written(TextDelta("a"), Reset(had_text=True), TextDelta("b")).text == "a\n\nb"


def test_an_empty_answer_has_a_block_of_text() -> None:
    assert written().message["content"] == [{"type": "text", "text": ""}]


def test_an_answer_without_usage_says_zero() -> None:
    streamed = written(TextDelta("a"), ended=Completion())
    assert streamed.message["usage"] == {"input_tokens": 0, "output_tokens": 0}


def test_before_the_message_a_comment_keeps_the_connection_and_then_a_ping() -> None:
    writer = MessageStreamWriter()
    before, start, after = writer.keep_alive(), writer.start(META), writer.keep_alive()
    assert after == b'event: ping\ndata: {"type":"ping"}\n\n'
    streamed = read_message_stream(before + start + after + writer.finish(META, Completion()))
    assert (streamed.comments, streamed.pings) == (1, 1)


def test_a_failure_is_an_event_of_its_own_and_the_end() -> None:
    writer = MessageStreamWriter(request_id="req-1")
    begun = writer.start(META) + writer.write([TextDelta("Half of")])
    error = BadUpstreamResponse("Dify's answer ended too early.")
    for before in (begun, b""):
        streamed = read_message_stream(before + writer.fail(error))
        assert streamed.error == {
            "type": "error",
            "error": {
                "type": "api_error",
                "message": "Dify's answer ended too early.",
                "details": {"error_code": "upstream_error"},
            },
            "request_id": "req-1",
        }


TEXTS = st.text(min_size=1, max_size=5)
DELTAS = st.lists(
    TEXTS.map(TextDelta) | TEXTS.map(ReasoningDelta) | st.booleans().map(Reset) | st.just(STATUS)
)


@given(DELTAS, st.booleans())
def test_any_deltas_make_a_valid_stream_with_all_their_text(
    deltas: list[Delta], shows_thinking: bool
) -> None:
    streamed = written(*deltas, shows_thinking=shows_thinking)
    thoughts = [delta.text for delta in deltas if isinstance(delta, ReasoningDelta)]
    assert streamed.thinking == ("".join(thoughts) if shows_thinking else "")
