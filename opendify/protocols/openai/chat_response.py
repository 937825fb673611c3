"""Every object that we answer, in OpenAI's words (OpenAPI document 2.3.0). No I/O."""

from dataclasses import dataclass
from typing import Any

from opendify.dify.events import Usage
from opendify.errors import OpenDifyError
from opendify.protocols.responses import ResponseMeta, WholeResponse, dify_metadata
from opendify.rendering.deltas import Completion


@dataclass(frozen=True, slots=True)
class ChunkMeta:
    """What all chunks of one answer share; ``created`` in epoch seconds."""

    id: str
    created: int
    model: str
    include_usage: bool = False


def to_head(meta: ResponseMeta, include_usage: bool = False) -> ChunkMeta:
    """The head of a response."""
    return ChunkMeta(f"chatcmpl-{meta.id}", meta.created, meta.model, include_usage)


def chunk(
    head: ChunkMeta, delta: dict[str, Any], finish_reason: str | None = None
) -> dict[str, Any]:
    """One piece of a streamed answer.

    Where usage was asked for, every chunk but the last carries a null ``usage``.
    """
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _chunk(head, [choice]) | ({"usage": None} if head.include_usage else {})


def last_chunk(head: ChunkMeta, meta: ResponseMeta, completion: Completion) -> dict[str, Any]:
    """The chunk with the finish reason, and with what is known only at the end."""
    delta = {"annotations": completion.annotations} if completion.annotations else {}
    dify = {"dify": dify_metadata(meta, completion)}
    return chunk(head, delta, completion.finish_reason) | dify


def usage_chunk(head: ChunkMeta, usage: Usage) -> dict[str, Any]:
    """The chunk with empty ``choices`` that closes a stream for which usage was asked."""
    return _chunk(head, []) | {"usage": usage_counts(usage)}


def completion(response: WholeResponse) -> dict[str, Any]:
    """A whole answer. ``reasoning_content``, which OpenAI does not have, is left out when empty;
    its place and name are those that clients of reasoning models read."""
    head, ended = to_head(response.meta), response.completion
    message = {
        "role": "assistant",
        "content": response.text,
        "refusal": None,
        "annotations": list(ended.annotations),
    }
    if response.reasoning:
        message["reasoning_content"] = response.reasoning
    return {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": ended.finish_reason,
            }
        ],
        "usage": usage_counts(ended.usage),
        "dify": dify_metadata(response.meta, ended),
    }


def usage_counts(usage: Usage | None) -> dict[str, int]:
    """The tokens of a response; zeros where Dify sent none."""
    usage = usage or Usage(0, 0, 0)
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def error_body(error: OpenDifyError) -> dict[str, Any]:
    """An error, in a response and in a stream alike."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def _chunk(head: ChunkMeta, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": "chat.completion.chunk",
        "created": head.created,
        "model": head.model,
        "choices": choices,
    }
