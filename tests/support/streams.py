"""What a streamed answer said, and whether it kept to OpenAI's rules."""

import json
from dataclasses import dataclass
from typing import Any

from tests.support import schemas


@dataclass
class Streamed:
    """``finish_reason`` or ``error`` is None, never both."""

    chunks: list[dict[str, Any]]
    text: str
    finish_reason: str | None
    error: dict[str, Any] | None
    usage: dict[str, Any] | None
    comments: int
    reasoning: str
    annotations: list[dict[str, Any]]


def read_stream(raw: bytes) -> Streamed:
    """Takes a whole body apart; asserts every rule that all streams have to keep."""
    assert raw.endswith(b"data: [DONE]\n\n")
    blocks = raw.decode().removesuffix("\n\n").split("\n\n")
    comments = [block for block in blocks if block.startswith(":")]
    data = [block.removeprefix("data: ") for block in blocks if block not in comments]
    assert len(data) + len(comments) == len(blocks)
    assert all("\n" not in block for block in data)
    assert data.pop() == "[DONE]"
    assert "[DONE]" not in data
    chunks = [json.loads(block) for block in data]
    error = chunks.pop()["error"] if chunks and "error" in chunks[-1] else None
    if error is not None:
        schemas.assert_error({"error": error})
    usage = chunks.pop()["usage"] if chunks and chunks[-1].get("choices") == [] else None
    reasoning = "".join(c["choices"][0]["delta"].get("reasoning_content", "") for c in chunks)
    annotations = _annotations(chunks)
    reason = _finish_reason(chunks, error)
    return Streamed(
        chunks, _text(chunks), reason, error, usage, len(comments), reasoning, annotations
    )


def _text(chunks: list[dict[str, Any]]) -> str:
    """The joined text; asserts what holds for all chunks together."""
    for chunk in chunks:
        schemas.assert_chunk(chunk)
        assert len(chunk["choices"]) == 1
        assert not isinstance(chunk.get("event"), str)  # Open WebUI would take it for its own
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) <= 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    if deltas:
        assert deltas[0] == {"role": "assistant", "content": ""}
    assert all("role" not in delta for delta in deltas[1:])
    return "".join(delta.get("content", "") for delta in deltas)


def _annotations(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    return [one for delta in deltas for one in delta.get("annotations", [])]


def _finish_reason(chunks: list[dict[str, Any]], error: dict[str, Any] | None) -> str | None:
    """The one finish reason, in the last chunk, where nothing failed."""
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    if error is not None:
        assert not any(reasons)
        return None
    assert chunks, "a stream that says nothing is an empty answer to every client"
    assert not any(reasons[:-1])
    assert reasons[-1] in ("stop", "length", "content_filter")
    assert set(chunks[-1]["choices"][0]["delta"]) <= {"annotations"}
    return str(reasons[-1])
