"""A chat completion request, checked once at the door. No I/O.

Which fields are obeyed, which are accepted and named as ignored, and which are refused because
ignoring them would make the answer wrong, is decided here and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opendify.errors import InvalidRequest
from opendify.protocols.base import ChatPrompt, Message
from opendify.protocols.json_object import JsonObject
from opendify.protocols.openai import chat_response
from opendify.protocols.openai.chat_stream import ChatStreamWriter
from opendify.protocols.openai.messages import parse_messages
from opendify.protocols.openai.request_fields import (
    COMMON_FIELDS,
    check_count,
    parse_include_usage,
    parse_prompt,
)
from opendify.protocols.request_fields import FieldTable, parse_model
from opendify.protocols.responses import WholeResponse

# Fields that Dify has no counterpart for: they are set in the Dify app. In the order in which the
# answer's header names them.
IGNORED_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "max_tokens",
    "max_completion_tokens",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "response_format",
    "modalities",
    "audio",
    "reasoning_effort",
    "verbosity",
    "service_tier",
    "store",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "moderation",
    "web_search_options",
)
# Values that equal OpenAI's default, or that change nothing for an app without client tools.
_AUTO: tuple[Any, ...] = ("auto", "none", {"type": "auto"}, {"type": "none"})
_DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": _AUTO,
    "parallel_tool_calls": (True,),
    "functions": ([],),
    "function_call": _AUTO,
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("medium",),
    "verbosity": ("medium",),
    "service_tier": ("auto",),
    "store": (False,),
}
_FIELDS = FieldTable(COMMON_FIELDS | {"messages"}, IGNORED_FIELDS, _DEFAULTS)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion request: the prompt, and what concerns this dialect alone. ``ignored``
    names the fields that have no effect here, OpenAI's first; it fits into a header."""

    prompt: ChatPrompt
    include_usage: bool
    ignored: tuple[str, ...]

    def new_writer(self) -> ChatStreamWriter:
        """For a streamed response."""
        return ChatStreamWriter(self.include_usage)

    def to_json(self, response: WholeResponse) -> dict[str, Any]:
        """For a whole one."""
        return chat_response.completion(response)


def parse_chat_request(body: JsonObject) -> ChatRequest:
    """Checks a body. Raises InvalidRequest and RequestTooLarge, which name the field."""
    model = parse_model(body)
    _refuse_what_would_answer_wrongly(body)
    return ChatRequest(
        parse_prompt(body, model, _parse_messages(body)),
        include_usage=parse_include_usage(body),
        ignored=_FIELDS.without_effect(body),
    )


def _parse_messages(body: JsonObject) -> tuple[Message, ...]:
    messages = parse_messages(body.with_files("messages"))
    body.check_text("messages", sum(len(message.text) for message in messages))
    return messages


def _refuse_what_would_answer_wrongly(body: Mapping[str, Any]) -> None:
    check_count(body)
    for name in ("tool_choice", "function_call"):
        if _forces_a_tool(body.get(name)):
            raise InvalidRequest(
                f"'{name}' cannot force a tool: the tools of a Dify app are set in Dify. "
                "Leave it out, or say 'auto' or 'none'.",
                param=name,
            )
    modalities = body.get("modalities")
    if isinstance(modalities, list) and "audio" in modalities:
        raise InvalidRequest(
            "'modalities' may hold only 'text': audio answers are not available.",
            param="modalities",
        )


def _forces_a_tool(choice: Any) -> bool:
    if isinstance(choice, dict):
        allowed, kind = choice.get("allowed_tools"), choice.get("type")
        mode = allowed.get("mode") if isinstance(allowed, dict) else choice.get("mode")
        return kind not in ("auto", "none") and not (kind == "allowed_tools" and mode == "auto")
    return choice is not None and choice not in ("auto", "none")
