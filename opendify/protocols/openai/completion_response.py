"""The objects of the older completions endpoint, in OpenAI's words. No I/O."""

from typing import Any

from opendify.dify.events import Usage
from opendify.protocols.openai.chat_response import ChunkMeta, usage_counts
from opendify.protocols.responses import ResponseMeta, WholeResponse, dify_metadata
from opendify.rendering.deltas import Completion


def to_head(meta: ResponseMeta, include_usage: bool = False) -> ChunkMeta:
    """The head of a response."""
    return ChunkMeta(f"cmpl-{meta.id}", meta.created, meta.model, include_usage)


def chunk(head: ChunkMeta, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    """One piece of a streamed response, which has the form of a whole one.

    Where usage was asked for, every chunk but the last carries a null ``usage``.
    """
    usage = {"usage": None} if head.include_usage else {}
    return _object(head, [_choice(text, finish_reason)]) | usage


def last_chunk(head: ChunkMeta, meta: ResponseMeta, ended: Completion) -> dict[str, Any]:
    """The chunk with the finish reason, and with what is known only at the end."""
    return chunk(head, "", ended.finish_reason) | {"dify": dify_metadata(meta, ended)}


def usage_chunk(head: ChunkMeta, usage: Usage) -> dict[str, Any]:
    """The chunk with empty ``choices`` that closes a stream for which usage was asked."""
    return _object(head, []) | {"usage": usage_counts(usage)}


def completion(response: WholeResponse, echo: str = "") -> dict[str, Any]:
    """A whole response, whose text begins with ``echo``."""
    ended = response.completion
    return _object(to_head(response.meta), [_choice(echo + response.text, ended.finish_reason)]) | {
        "usage": usage_counts(ended.usage),
        "dify": dify_metadata(response.meta, ended),
    }


def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}


def _object(head: ChunkMeta, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": choices,
    }
