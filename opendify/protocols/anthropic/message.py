"""Every object of the Messages API that we answer (anthropic-version 2023-06-01). No I/O."""

from collections.abc import Sequence
from typing import Any

from opendify import errors
from opendify.dify.events import Usage
from opendify.protocols.responses import ResponseMeta, WholeResponse, dify_metadata
from opendify.rendering.deltas import Completion

# Dify tells no time of creation, and one that moved with each restart would make clients take every
# model for a new one.
MODEL_CREATED = "2025-01-01T00:00:00Z"

# The SDKs require a signature in thinking blocks, which only Anthropic could check: thoughts that
# come back in a history are not read here.
SIGNATURE = "b3BlbmRpZnk="

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}

# The code by which Anthropic's SDKs know to send the whole history instead of a thread.
THREAD_UNSUPPORTED = "thread_unsupported_request"

# By HTTP status; every other failure of the server is an ``api_error``.
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def message(
    meta: ResponseMeta, content: Sequence[dict[str, Any]], usage: Usage | None
) -> dict[str, Any]:
    """A message that has not ended."""
    return {
        "id": f"msg_{meta.id}",
        "type": "message",
        "role": "assistant",
        "model": meta.model,
        "content": list(content),
        "stop_reason": None,
        "stop_sequence": None,
        "usage": to_usage(usage),
    }


def whole_message(response: WholeResponse, shows_thinking: bool) -> dict[str, Any]:
    """A whole answer. Its last block is text, which may be empty."""
    content = [{"type": "text", "text": response.text}]
    if shows_thinking and response.reasoning:
        thinking = {"type": "thinking", "thinking": response.reasoning, "signature": SIGNATURE}
        content.insert(0, thinking)
    ended = response.completion
    return (
        message(response.meta, content, ended.usage)
        | stop(ended)
        | {"dify": dify_metadata(response.meta, ended)}
    )


def stop(completion: Completion) -> dict[str, Any]:
    """Why an answer ended."""
    sequence = completion.stop_sequence or None
    reason = "stop_sequence" if sequence else _STOP_REASONS[completion.finish_reason]
    return {"stop_reason": reason, "stop_sequence": sequence}


def to_usage(usage: Usage | None) -> dict[str, int]:
    """Zeros where Dify sent none."""
    usage = usage or Usage(0, 0, 0)
    return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}


def error_body(error: errors.OpenDifyError, request_id: str) -> dict[str, Any]:
    """An error, in a response and in a stream alike. ``details``, where Anthropic's SDKs look for
    codes, has the code and the field as OpenAI's form has them."""
    details: dict[str, Any] = {"error_code": error.code}
    if error.code == THREAD_UNSUPPORTED:
        details["unsupported"] = [error.param]
    elif error.param:
        details["param"] = error.param
    other_type = "api_error" if error.status >= 500 else "invalid_request_error"
    return {
        "type": "error",
        "error": {
            "type": _ERROR_TYPES.get(error.status, other_type),
            "message": error.message,
            "details": details,
        },
        "request_id": request_id,
    }


def model(name: str, display_name: str) -> dict[str, Any]:
    """One entry of the model list."""
    return {
        "type": "model",
        "id": name,
        "display_name": display_name or name,
        "created_at": MODEL_CREATED,
        "lifecycle": "active",
    }


def model_list(models: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer of ``GET /v1/models``: one page."""
    return {
        "data": models,
        "has_more": False,
        "first_id": models[0]["id"] if models else None,
        "last_id": models[-1]["id"] if models else None,
    }
