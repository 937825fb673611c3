"""Every object that we answer, in OpenAI's words (OpenAPI document 2.3.0). No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# /v1/models wants a creation time. Dify tells none, and one that moved with each restart would
# make clients take every model for a new one.
MODEL_CREATED = 1735689600


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of one answer share; ``created`` in epoch seconds."""

    id: str
    created: int
    model: str
    include_usage: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens used by one answer."""

    prompt: int
    completion: int
    total: int


def chunk(head: Head, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """One piece of a streamed answer.

    Where usage was asked for, every chunk but the last carries a null ``usage``.
    """
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _chunk(head, [choice]) | ({"usage": None} if head.include_usage else {})


def usage_chunk(head: Head, tokens: Tokens) -> dict[str, Any]:
    """The chunk with empty ``choices`` that closes a stream for which usage was asked."""
    return _chunk(head, []) | {"usage": _usage(tokens)}


def completion(
    head: Head,
    content: str,
    finish_reason: str,
    tokens: Tokens,
    reasoning: str = "",
    annotations: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A whole answer. ``reasoning_content``, which OpenAI does not have, is left out when empty;
    its place and name are those that clients of reasoning models read."""
    return {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": content,
                    "refusal": None,
                    "annotations": list(annotations),
                }
                | ({"reasoning_content": reasoning} if reasoning else {}),
                "logprobs": None,
                "finish_reason": finish_reason,
            }
        ],
        "usage": _usage(tokens),
    }


def model(name: str) -> dict[str, Any]:
    """One entry of the model list."""
    return {"id": name, "object": "model", "created": MODEL_CREATED, "owned_by": "dify"}


def model_list(models: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer of ``GET /v1/models``."""
    return {"object": "list", "data": models}


def _chunk(head: Head, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": "chat.completion.chunk",
        "created": head.created,
        "model": head.model,
        "choices": choices,
    }


def _usage(tokens: Tokens) -> dict[str, int]:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.total,
    }
