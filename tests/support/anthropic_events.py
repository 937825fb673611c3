"""What a response of the Messages API said, and whether it kept to Anthropic's rules: the fields
that its SDKs require, and the order of events that clients need."""

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

_TEXT = {"type": "string"}
_USAGE = {
    "type": "object",
    "required": ["input_tokens", "output_tokens"],
    "properties": {
        "input_tokens": {"type": "integer", "minimum": 0},
        "output_tokens": {"type": "integer", "minimum": 0},
    },
    "additionalProperties": False,
}
_BLOCK = {
    "oneOf": [
        {
            "required": ["type", "text"],
            "properties": {"type": {"const": "text"}, "text": _TEXT},
            "additionalProperties": False,
        },
        {
            "required": ["type", "thinking", "signature"],
            "properties": {
                "type": {"const": "thinking"},
                "thinking": _TEXT,
                "signature": _TEXT,
            },
            "additionalProperties": False,
        },
    ]
}
_REASONS = ["end_turn", "max_tokens", "stop_sequence", "refusal"]
_MESSAGE = {
    "type": "object",
    "required": [
        "id",
        "type",
        "role",
        "model",
        "content",
        "stop_reason",
        "stop_sequence",
        "usage",
    ],
    "properties": {
        "id": {"type": "string", "pattern": "^msg_[A-Za-z0-9-]+$"},
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": {"type": "string", "minLength": 1},
        "content": {"type": "array", "items": _BLOCK},
        "stop_reason": {"enum": [*_REASONS, None]},
        "stop_sequence": {"type": ["string", "null"]},
        "usage": _USAGE,
        "dify": {"type": "object"},
    },
    "additionalProperties": False,
}
_ERROR = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {
                "type": {
                    "enum": [
                        "invalid_request_error",
                        "authentication_error",
                        "permission_error",
                        "not_found_error",
                        "request_too_large",
                        "rate_limit_error",
                        "api_error",
                        "overloaded_error",
                        "timeout_error",
                    ]
                },
                "message": {"type": "string", "minLength": 1},
                "details": {"type": "object", "required": ["error_code"]},
            },
            "additionalProperties": False,
        },
        "request_id": {"type": "string", "minLength": 1},
    },
    "additionalProperties": False,
}
_MODEL = {
    "type": "object",
    "required": ["type", "id", "display_name", "created_at", "lifecycle"],
    "properties": {
        "type": {"const": "model"},
        "id": _TEXT,
        "display_name": {"type": "string", "minLength": 1},
        "created_at": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"},
        "lifecycle": {"const": "active"},
    },
    "additionalProperties": False,
}
_DELTA_FIELDS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("thinking", "signature"),
}


@dataclass
class StreamedMessage:
    """``message`` is put together as the SDKs do it. ``stop_reason`` of it or ``error`` is None,
    never both. ``events`` are the names in order; ``pings`` and ``comments`` are counted."""

    message: dict[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None
    pings: int = 0
    comments: int = 0

    @property
    def text(self) -> str:
        return "".join(block.get("text", "") for block in self.message.get("content", []))

    @property
    def thinking(self) -> str:
        return "".join(block.get("thinking", "") for block in self.message.get("content", []))


def assert_message(value: Any) -> None:
    """A whole message, which has ended."""
    _assert_valid(_MESSAGE, value)
    assert value["stop_reason"] is not None
    assert (value["stop_reason"] == "stop_sequence") == (value["stop_sequence"] is not None)
    assert value["content"], "clients take the text of the last block"


def assert_error(value: Any) -> None:
    _assert_valid(_ERROR, value)


def assert_model(value: Any) -> None:
    _assert_valid(_MODEL, value)


def read_message_stream(raw: bytes) -> StreamedMessage:
    """Takes a whole body apart; asserts every rule that all streams have to keep."""
    assert raw.endswith(b"\n\n")
    streamed, state = StreamedMessage(), _State()
    for block in raw.decode().removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            assert "\n" not in block
            streamed.comments += 1
            continue
        named, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert named == f"event: {event['type']}"
        assert not state.has_ended, f"{event} comes after the end"
        _take(event, streamed, state)
    assert state.has_ended, "the stream has no end"
    return streamed


@dataclass
class _State:
    open_block: int | None = None
    has_stop_reason: bool = False
    has_ended: bool = False


def _take(event: dict[str, Any], streamed: StreamedMessage, state: _State) -> None:  # noqa: C901
    """Adds an event. What it must look like, and what may come before it, is asserted."""
    kind = event["type"]
    if kind == "error":
        assert_error(event)
        streamed.error, state.has_ended = event, True
        return
    assert streamed.message or kind == "message_start", f"{kind} comes before message_start"
    if kind == "ping":
        assert event == {"type": "ping"}
        streamed.pings += 1
        return
    streamed.events.append(kind)
    content = streamed.message.get("content", [])
    match kind:
        case "message_start":
            assert not streamed.message
            assert set(event) == {"type", "message"}
            streamed.message = event["message"]
            _assert_valid(_MESSAGE, streamed.message)
            assert streamed.message["content"] == []
            assert streamed.message["stop_reason"] is None
        case "content_block_start":
            assert state.open_block is None
            assert event["index"] == len(content)
            state.open_block = event["index"]
            _assert_valid(_BLOCK, event["content_block"])
            assert not any(v for k, v in event["content_block"].items() if k != "type")
            content.append(dict(event["content_block"]))
        case "content_block_delta":
            assert event["index"] == state.open_block
            assert set(event) == {"type", "index", "delta"}
            block_type, name = _DELTA_FIELDS[event["delta"]["type"]]
            assert set(event["delta"]) == {"type", name}
            assert event["delta"][name]
            block = content[event["index"]]
            assert block["type"] == block_type
            assert not block.get("signature"), "the signature comes last"
            block[name] += event["delta"][name]
        case "content_block_stop":
            assert event["index"] == state.open_block
            assert content[event["index"]].get("signature", "signed")
            state.open_block = None
        case "message_delta":
            assert state.open_block is None
            assert not state.has_stop_reason
            state.has_stop_reason = True
            assert set(event) == {"type", "delta", "usage", "dify"}
            streamed.message |= {**event["delta"], "usage": event["usage"], "dify": event["dify"]}
            assert_message(streamed.message)
        case "message_stop":
            assert event == {"type": "message_stop"}
            assert state.has_stop_reason
            state.has_ended = True
        case _:
            raise AssertionError(f"there is no event {kind}")


def _assert_valid(schema: dict[str, Any], value: Any) -> None:
    validator = _validator(json.dumps(schema))
    problems = [f"{e.json_path}: {e.message}" for e in validator.iter_errors(value)]
    assert not problems, f"{problems}\n{value!r}"


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))
