import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.dify.events import (
    AgentStep,
    AgentThought,
    Event,
    Failed,
    FileGenerated,
    Ids,
    MessageEnded,
    NodeFinished,
    NodeStarted,
    Reasoning,
    Replaced,
    RunFinished,
    Text,
    Usage,
)
from opendify.dify.parser import (
    NotAnEvent,
    collect_ids,
    parse_event,
    parse_payload,
)
from tests.support.fake_dify import recorded_streams, recording

COMMON = {"conversation_id": "c", "message_id": "m", "created_at": 1705395332, "task_id": "t"}
USAGE = {
    "prompt_tokens": 10,
    "prompt_unit_price": "0",
    "completion_tokens": 5,
    "total_tokens": 15,
    "total_price": "0",
    "currency": "USD",
    "latency": 1.38,
}


def finished(status: str, **data: Any) -> dict[str, Any]:
    return {"event": "workflow_finished", **COMMON, "data": {"status": status, **data}}


def ended(metadata: Any) -> dict[str, Any]:
    return {"event": "message_end", **COMMON, "metadata": metadata, "files": None}


def logged(label: str, **data: Any) -> dict[str, Any]:
    told = {"id": "l", "label": label, "status": "success", "error": None, "data": data}
    return {"event": "agent_log", **COMMON, "data": told}


# The shapes of Dify 0.6 to 1.16, one row each.
EVENTS = [
    pytest.param(
        {"event": "message", **COMMON, "answer": " I", "from_variable_selector": ["llm", "text"]},
        Text(" I", "llm", variable="text"),
        id="message",
    ),
    pytest.param({"event": "message", **COMMON, "answer": ""}, Text(""), id="message of nothing"),
    pytest.param({"event": "message", **COMMON}, None, id="message without a text"),
    pytest.param({"event": "message", **COMMON, "answer": None}, None, id="message of null"),
    pytest.param(
        {"event": "agent_message", **COMMON, "answer": "Here"},
        Text("Here", "", "agent_message"),
        id="agent",
    ),
    pytest.param(
        {"event": "message_file", **COMMON, "answer": " text", "from_variable_selector": None},
        Text(" text", "", "message_file"),
        id="message_file that is text",
    ),
    pytest.param(
        {"event": "message_file", **COMMON, "id": "f", "type": "image", "url": "/files/f.png"},
        FileGenerated("f", "image", "/files/f.png"),
        id="message_file that is a file",
    ),
    pytest.param(
        {"event": "message_replace", **COMMON, "answer": "preset", "reason": "output_moderation"},
        Replaced("preset"),
        id="message_replace",
    ),
    pytest.param({"event": "message_replace", **COMMON}, Replaced(""), id="replaced by nothing"),
    pytest.param(
        ended({"annotation_reply": None, "retriever_resources": [], "usage": USAGE}),
        MessageEnded(Usage(10, 5, 15)),
        id="message_end",
    ),
    pytest.param(ended({"usage": None}), MessageEnded(None), id="message_end, usage null"),
    pytest.param(ended({}), MessageEnded(None), id="message_end, no usage"),
    pytest.param(ended(None), MessageEnded(None), id="message_end, no metadata"),
    pytest.param({"event": "message_end"}, MessageEnded(None), id="message_end and nothing else"),
    pytest.param(
        ended({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
        MessageEnded(Usage(3, 4, 7)),
        id="message_end, usage without a total",
    ),
    pytest.param(
        ended({"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 5}}),
        MessageEnded(Usage(0, 5, 5)),
        id="message_end, usage of an agent node",
    ),
    pytest.param(
        ended({"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 5}}),
        MessageEnded(Usage(3, 4, 7)),
        id="message_end, usage that does not add up",
    ),
    pytest.param(
        ended({"usage": {"prompt_tokens": "3", "completion_tokens": -4, "total_tokens": 1.5}}),
        MessageEnded(Usage(0, 0, 0)),
        id="message_end, usage that is no count",
    ),
    pytest.param(
        {
            "event": "agent_thought",
            **COMMON,
            "id": "th1",
            "position": 1,
            "thought": "I need a picture",
            "observation": "",
            "tool": "dalle3",
            "tool_input": '{"dalle3": {"prompt": "cat"}}',
        },
        AgentStep("th1", "I need a picture", "dalle3", '{"dalle3": {"prompt": "cat"}}', ""),
        id="agent_thought",
    ),
    pytest.param({"event": "tts_message", **COMMON, "audio": "//8="}, None, id="tts_message"),
    pytest.param({"event": "tts_message_end", **COMMON, "audio": ""}, None, id="tts_message_end"),
    pytest.param(
        {
            "event": "error",
            "conversation_id": "c",
            "message_id": "m",
            "created_at": 1705395332,
            "code": "completion_request_error",
            "status": 400,
            "message": "[models] Rate Limit Error, ...",
        },
        Failed(400, "completion_request_error", "[models] Rate Limit Error, ..."),
        id="error",
    ),
    pytest.param({"event": "error"}, Failed(500, "", "Dify gave no reason"), id="error, bare"),
    pytest.param(
        {"event": "error", "status": "400", "code": None, "message": ["x"]},
        Failed(500, "", "Dify gave no reason"),
        id="error, other types",
    ),
    pytest.param(
        {"event": "workflow_started", **COMMON, "workflow_run_id": "r", "data": {"id": "r"}},
        None,
        id="workflow_started",
    ),
    pytest.param(
        {"event": "node_started", **COMMON, "data": {"title": "Ask", "node_type": "llm"}},
        NodeStarted("Ask", "llm"),
        id="node_started",
    ),
    pytest.param(
        {"event": "node_started", **COMMON, "data": {}}, NodeStarted("", ""), id="a nameless node"
    ),
    pytest.param(
        {"event": "node_finished", **COMMON, "data": {"status": "failed", "error": "boom"}},
        NodeFinished(None, ""),
        id="node_finished, failed: the run may go on by another branch",
    ),
    pytest.param(
        {
            "event": "node_finished",
            **COMMON,
            "data": {"outputs": {"text": "hi", "usage": USAGE, "finish_reason": "length"}},
        },
        NodeFinished(Usage(10, 5, 15), "length"),
        id="node_finished, of a model",
    ),
    pytest.param(
        {"event": "node_finished", **COMMON, "data": {"process_data": {"usage": USAGE}}},
        NodeFinished(Usage(10, 5, 15), ""),
        id="node_finished, usage among the process data",
    ),
    pytest.param({"event": "node_retry", **COMMON, "data": {}}, None, id="node_retry"),
    pytest.param({"event": "iteration_started", **COMMON}, None, id="iteration_started"),
    pytest.param({"event": "iteration_next", **COMMON}, None, id="iteration_next"),
    pytest.param({"event": "iteration_completed", **COMMON}, None, id="iteration_completed"),
    pytest.param({"event": "loop_started", **COMMON}, None, id="loop_started"),
    pytest.param({"event": "loop_next", **COMMON}, None, id="loop_next"),
    pytest.param({"event": "loop_completed", **COMMON}, None, id="loop_completed"),
    pytest.param({"event": "parallel_branch_started"}, None, id="parallel_branch_started"),
    pytest.param({"event": "agent_log", **COMMON, "data": {}}, None, id="agent_log"),
    pytest.param(
        {"event": "agent_log", **COMMON, "data": {"id": "l", "label": "CALL weather"}},
        AgentStep("l", "", "weather", "", ""),
        id="agent_log of a call",
    ),
    pytest.param(
        logged("CALL weather", output={"tool_call_input": {"city": "奥"}, "tool_response": "12"}),
        AgentStep("l", "", "weather", '{"city": "奥"}', "12"),
        id="agent_log of a call that has ended",
    ),
    pytest.param(
        logged("CALL weather", tool_call_args='{"a": 1}', output=["12", "C"]),
        AgentStep("l", "", "weather", '{"a": 1}', '["12", "C"]'),
        id="agent_log of a call, as ReAct writes it",
    ),
    pytest.param(
        {"event": "agent_log", "data": {"id": "l", "label": "CALL weather", "error": "It failed"}},
        AgentStep("l", "", "weather", "", "It failed"),
        id="agent_log of a call that failed",
    ),
    pytest.param(
        logged("gpt Thought", output="I look.", tool_name="weather", tool_input=[]),
        AgentThought("I look."),
        id="agent_log of a thought before a call",
    ),
    pytest.param(
        logged("gpt Thought", output="It is cold.", tool_name=""),
        None,
        id="agent_log of a thought that is the answer",
    ),
    pytest.param(
        logged("gpt Thought", thought="I look.", action="weather", action_input={}),
        AgentThought("I look."),
        id="agent_log of a thought, as ReAct writes it",
    ),
    pytest.param(
        logged("gpt Thought", thought="It is cold.", action="It is cold."),
        None,
        id="agent_log of a thought that may be the answer, as ReAct writes it",
    ),
    pytest.param(
        logged("gpt Thought", thought=" ", action="x", action_input=""), None, id="no thought"
    ),
    pytest.param(logged("gpt Thought"), None, id="agent_log of a thought that begins"),
    pytest.param(
        {"event": "agent_log", **COMMON, "data": {"id": "l", "label": "ROUND 1"}},
        None,
        id="agent_log of a round",
    ),
    pytest.param(
        {
            "event": "node_finished",
            **COMMON,
            "data": {
                "node_id": "llm",
                "outputs": {"text": "hi", "reasoning_content": "Hm", "finish_reason": "length"},
                "process_data": {"usage": USAGE},
            },
        },
        NodeFinished(Usage(10, 5, 15), "length", "llm", "Hm"),
        id="node_finished with reasoning kept apart",
    ),
    pytest.param(
        finished("stopped", error="Max steps 500 reached."),
        RunFinished("stopped", reason="Max steps 500 reached."),
        id="workflow_finished, stopped for a reason",
    ),
    pytest.param(
        {"event": "message_end", **COMMON, "files": [{"type": "link", "url": "http://a/b"}]},
        MessageEnded(),
        id="message_end with an object that is no file",
    ),
    pytest.param(
        {
            "event": "message_end",
            **COMMON,
            "files": [
                {"type": "image", "url": "/files/a.png", "transfer_method": "local_file"},
                {
                    "id": "x",
                    "related_id": "r",
                    "type": "document",
                    "remote_url": "http://a/b.pdf",
                    "filename": "b.pdf",
                    "transfer_method": "remote_url",
                },
            ],
        },
        MessageEnded(files=(FileGenerated("r", "document", "http://a/b.pdf", "b.pdf"),)),
        id="message_end with a file of the question and one of the answer",
    ),
    pytest.param(
        {
            "event": "message_end",
            **COMMON,
            "files": [
                {
                    "related_id": "r",
                    "type": "image",
                    "url": "http://a/b.png",
                    "remote_url": "http://a/b.png",
                    "upload_file_id": "r",
                    "transfer_method": "remote_url",
                },
                {
                    "id": "x",
                    "type": "image",
                    "url": "http://a/c.png",
                    "belongs_to": "user",
                    "transfer_method": "tool_file",
                },
            ],
        },
        MessageEnded(),
        id="message_end with files of the user, by address and by name",
    ),
    pytest.param(
        {
            "event": "message_end",
            **COMMON,
            "files": [
                {
                    "related_id": "r",
                    "type": "image",
                    "url": "http://a/b.png",
                    "remote_url": "",
                    "upload_file_id": "r",
                    "transfer_method": "tool_file",
                }
            ],
        },
        MessageEnded(files=(FileGenerated("r", "image", "http://a/b.png"),)),
        id="message_end with a file that a chat app made",
    ),
    pytest.param(
        {"event": "reasoning_chunk", **COMMON, "data": {"reasoning": "Let me think"}},
        Reasoning("Let me think"),
        id="reasoning_chunk",
    ),
    pytest.param(
        {
            "event": "reasoning_chunk",
            **COMMON,
            "data": {"reasoning": "", "node_id": "llm", "is_final": True},
        },
        Reasoning("", "llm", is_final=True),
        id="the last reasoning_chunk",
    ),
    pytest.param(
        {
            "event": "text_chunk",
            "data": {"text": "3", "from_variable_selector": ["l1", "structured_output", "n"]},
        },
        Text("3", "l1", "text_chunk", "structured_output.n"),
        id="text_chunk of a part of an output",
    ),
    pytest.param(
        finished("succeeded", outputs={"answer": "hi"}, total_tokens=15),
        RunFinished("succeeded", 15, {"answer": "hi"}),
        id="workflow_finished",
    ),
    pytest.param(finished("partial-succeeded"), RunFinished("partial-succeeded"), id="partly"),
    pytest.param(finished("stopped", total_tokens=0), RunFinished("stopped"), id="stopped"),
    pytest.param(
        finished("failed", error="[models] Rate Limit Error, x"),
        Failed(400, "run_failed", "[models] Rate Limit Error, x"),
        id="workflow_finished, failed",
    ),
    pytest.param(
        finished("failed", error=None), Failed(400, "run_failed", "the run failed"), id="no reason"
    ),
    pytest.param(
        finished("failed", error="x", outputs=None, total_steps=0, created_by={}),
        Failed(400, "invalid_param", "x", was_refused=True),
        id="workflow_finished, refused before it began",
    ),
    pytest.param(
        finished("failed", error="x", outputs={}, total_steps=0, created_by={"id": "u"}),
        Failed(400, "run_failed", "x"),
        id="workflow_finished, failed before its first node has ended",
    ),
    pytest.param(
        finished("exception", error="x"), Failed(400, "run_failed", "x"), id="an exception"
    ),
    pytest.param({"event": "workflow_finished"}, RunFinished(""), id="workflow_finished, bare"),
    pytest.param({"event": "human_input_form_filled", **COMMON}, None, id="form filled"),
    pytest.param({"event": "human_input_form_timeout", **COMMON}, None, id="form timeout"),
    pytest.param({"event": "a name of next year", **COMMON}, None, id="an unknown event"),
    pytest.param({"event": ""}, None, id="an empty name"),
]


@pytest.mark.parametrize(("payload", "event"), EVENTS)
def test_an_event_means_what_it_says(payload: dict[str, Any], event: Event | None) -> None:
    assert parse_event(parse_payload(json.dumps(payload).encode())) == event


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[DONE]", id="the end of OpenAI"),
        pytest.param(b"hello", id="no JSON"),
        pytest.param(b'{"event":"message"', id="half of it"),
        pytest.param(b'"message"', id="a string"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no event"),
        pytest.param(b'{"event":null}', id="a null event"),
        pytest.param(b'{"event":5}', id="a number for an event"),
        pytest.param(b'{"event":["message"]}', id="an array for an event"),
        pytest.param(b"\xff\xfe\xfd", id="no text"),
        pytest.param(b'{"event":' + b"[" * 200_000, id="endless nesting"),
        pytest.param(b'{"event":"x","n":' + b"9" * 5000 + b"}", id="an endless number"),
    ],
)
def test_a_payload_that_is_no_event_is_refused_without_quoting_it(raw: bytes) -> None:
    with pytest.raises(NotAnEvent) as caught:
        parse_payload(raw)
    assert str(caught.value) in ("not JSON", "no event name")


BROKEN_UTF_8 = [
    pytest.param(b"a\xffb", "a\ufffdb", id="a byte of no character"),
    pytest.param(b"a\xe4\xbd", "a\ufffd", id="a character cut short"),
    pytest.param(b"\xa0b", "\ufffdb", id="the end of one"),
    pytest.param(b"a\xed\xa0\xbdb", "a\ufffd\ufffd\ufffdb", id="half a surrogate pair, as bytes"),
    pytest.param(b"a\xc0\xafb", "a\ufffd\ufffdb", id="overlong"),
]


@pytest.mark.parametrize(("broken", "text"), BROKEN_UTF_8)
@pytest.mark.parametrize(
    "event",
    [
        b'"message","answer":"%b"',
        b'"agent_message","answer":"%b"',
        b'"text_chunk","data":{"text":"%b"}',
        b'"message","answer":"fine","elsewhere":"%b"',
        b'"mess%b"',
    ],
)
def test_a_broken_character_is_lost_and_not_its_event(
    event: bytes, broken: bytes, text: str
) -> None:
    payload = parse_payload(b'{"event":' + event % broken + b"}")
    told = parse_event(payload)
    if isinstance(told, Text) and told.text != "fine":
        assert told.text == text
    json.dumps(payload, ensure_ascii=False).encode()


SURROGATES = [
    pytest.param(b"a\\ud83d\\ude00b", "a\U0001f600b", id="a pair"),
    pytest.param(b"a\\ud83db", "a\ufffdb", id="the first half"),
    pytest.param(b"a\\uDE00b", "a\ufffdb", id="the second half, in capitals"),
    pytest.param(b"a\\ude00\\ud83db", "a\ufffd\ufffdb", id="the wrong way round"),
    pytest.param(b"\\ud55c\\uae00", "\ud55c\uae00", id="Hangul, whose escapes look alike"),
    pytest.param(b"\\\\ud83d", "\\ud83d", id="a backslash and letters"),
]


@pytest.mark.parametrize(("escaped", "text"), SURROGATES)
def test_half_a_surrogate_pair_is_no_character(escaped: bytes, text: str) -> None:
    payload = parse_payload(b'{"event":"message_replace","answer":"' + escaped + b'"}')
    assert parse_event(payload) == Replaced(text)
    json.dumps(payload, ensure_ascii=False).encode()


@pytest.mark.parametrize("escaped", [rb"a\ud83d", rb"\ude00"])
@pytest.mark.parametrize(
    "event", [b'"message","answer":"%b"', b'"text_chunk","data":{"text":"%b"}']
)
def test_half_a_surrogate_pair_of_a_text_waits_for_the_other(event: bytes, escaped: bytes) -> None:
    told = parse_event(parse_payload(b'{"event":' + event % escaped + b"}"))
    assert isinstance(told, Text)
    assert told.text == json.loads(b'"' + escaped + b'"')


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON_VALUES, escaped=st.booleans())
def test_a_value_is_decoded_as_python_would(value: Any, escaped: bool) -> None:
    text = json.dumps({"event": "x", "value": value}, ensure_ascii=escaped)
    assert repr(parse_payload(text.encode())) == repr(json.loads(text))


NAMES = ["message", "agent_message", "message_file", "message_replace", "message_end", "error"]
FIELDS = st.sampled_from(
    [
        "answer",
        "metadata",
        "data",
        "status",
        "code",
        "message",
        "created_at",
        "conversation_id",
        "task_id",
        "usage",
    ]
)


@given(
    name=st.sampled_from([*NAMES, "workflow_finished", "node_started"]),
    fields=st.dictionaries(FIELDS, JSON_VALUES),
    data=st.dictionaries(st.sampled_from(["status", "error", "total_tokens"]), JSON_VALUES),
)
def test_fields_of_any_type_give_an_event_of_the_right_types(
    name: str, fields: dict[str, Any], data: dict[str, Any]
) -> None:
    payload = {"data": data, "metadata": {"usage": data}, **fields, "event": name}
    event = parse_event(payload)
    match event:
        case Text(text) | Replaced(text):
            assert isinstance(text, str)
        case MessageEnded(usage):
            assert usage is None or min(usage.prompt_tokens, usage.total_tokens) >= 0
        case RunFinished(status, total_tokens, outputs):
            assert isinstance(status, str)
            assert total_tokens >= 0
            assert isinstance(outputs, dict)
        case NodeStarted(title, kind):
            assert isinstance(title + kind, str)
        case Failed(status, code, message):
            assert isinstance(status, int)
            assert isinstance(code, str)
            assert message
        case _:
            assert event is None
    ids = collect_ids(Ids(), payload)
    assert isinstance(ids.conversation_id + ids.message_id + ids.task_id, str)
    assert isinstance(ids.created_at, int)


def test_the_first_id_that_was_received_stays() -> None:
    first = collect_ids(Ids(), {"conversation_id": "c", "task_id": "t"})
    assert first == Ids(conversation_id="c", task_id="t")
    later = {"conversation_id": "x", "task_id": "x", "message_id": "m", "created_at": 5}
    assert collect_ids(first, {**later, "workflow_run_id": "r"}) == Ids("c", "m", "t", "r", 5)


@pytest.mark.parametrize("name", [None, 5, "", "c\r\nX: y", "a b", "名", "x" * 256])
def test_what_could_stand_in_no_header_is_no_name(name: Any) -> None:
    names = ("conversation_id", "message_id", "task_id", "workflow_run_id")
    assert collect_ids(Ids(), dict.fromkeys(names, name)) == Ids()


def recorded_payloads(name: str) -> list[dict[str, Any]]:
    blocks = recording(name).body.split(b"\n\n")
    return [parse_payload(block[6:]) for block in blocks if block.startswith(b"data: ")]


# How each recorded stream ends, by the events that decide it.
ENDS = {
    "1.16.1/flow": ("message_end", "workflow_finished"),
    "1.13.2/advanced-chat": ("message_end", "workflow_finished"),
    "1.11.4/advanced-chat": ("workflow_finished", "message_end"),
}


@pytest.mark.parametrize(
    "app",
    [
        *(f"{v}/{app}" for v in ("1.11.4", "1.13.2") for app in ("chat", "agent-chat")),
        "1.11.4/advanced-chat",
        "1.13.2/advanced-chat",
        *(f"1.16.1/{app}" for app in ("chat", "agent-chat", "agent", "flow")),
    ],
)
def test_the_recorded_answers_end_in_the_order_of_their_version(app: str) -> None:
    payloads = recorded_payloads(f"{app}/stream_first")
    deciding = [
        payload["event"]
        for payload in payloads
        if isinstance(parse_event(payload), MessageEnded | RunFinished | Failed)
    ]
    assert tuple(deciding) == ENDS.get(app, ("message_end",))


def test_every_event_on_record_is_understood_or_known_to_be_a_sign_of_life() -> None:
    understood: Counter[str] = Counter()
    signs_of_life: Counter[str] = Counter()
    for name in recorded_streams():
        if recording(name).is_stream:
            for payload in recorded_payloads(name):
                event = parse_event(payload)
                (signs_of_life if event is None else understood)[payload["event"]] += 1
    assert set(understood) == {
        "message",
        "agent_message",
        "message_file",
        "message_end",
        "workflow_finished",
        "agent_thought",
        "node_started",
        "node_finished",
        "error",
        "agent_log",
        "human_input_required",
        "workflow_paused",
    }
    assert set(signs_of_life) == {"workflow_started", "agent_log"}  # rounds of an agent


def test_an_answer_about_a_file_is_text_though_dify_1_11_calls_it_a_file() -> None:
    payloads = recorded_payloads("1.11.4/chat/file_local_image_stream")
    assert {payload["event"] for payload in payloads} == {"message_file", "message_end"}
    texts = [event.text for p in payloads if isinstance(event := parse_event(p), Text)]
    assert "".join(texts).strip()


def test_the_names_of_an_answer_are_all_in_its_first_event() -> None:
    first = recorded_payloads("1.13.2/advanced-chat/stream_first")[0]
    ids = collect_ids(Ids(), first)
    assert all([ids.conversation_id, ids.message_id, ids.task_id, ids.workflow_run_id])
    assert ids.created_at > 1_700_000_000
