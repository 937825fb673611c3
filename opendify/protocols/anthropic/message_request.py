"""A request of the Messages API, checked once. No I/O.

Which fields are obeyed, which are accepted and named as ignored, and which are refused because
ignoring them would make the answer wrong, is decided here and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opendify.errors import InvalidRequest
from opendify.protocols.anthropic import message
from opendify.protocols.anthropic.blocks import parse_messages
from opendify.protocols.anthropic.message_stream import MessageStreamWriter
from opendify.protocols.base import ChatPrompt, Message
from opendify.protocols.client_ids import OTHER_CHAT_FIELDS, body_chat_id
from opendify.protocols.json_object import JsonObject
from opendify.protocols.request_fields import (
    OPTIONS,
    FieldTable,
    is_given,
    metadata_task,
    metadata_user,
    parse_boolean,
    parse_mapping,
    parse_model,
    parse_options,
    parse_stops,
)
from opendify.protocols.responses import WholeResponse

# Fields that Dify has no counterpart for: they are set in the Dify app. In the order in which the
# answer's header names them.
IGNORED_FIELDS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "tools",
    "tool_choice",
    "output_config",
    "output_format",
    "service_tier",
    "container",
    "context_management",
    "cache_control",
    "mcp_servers",
    "inference_geo",
    "speed",
)
# Values that equal Anthropic's default, or that change nothing for an app without client tools.
_DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "tools": ([],),
    "tool_choice": ({"type": "auto"}, {"type": "none"}),
    "service_tier": ("auto",),
    "mcp_servers": ([],),
    "context_management": ({}, {"edits": []}),
}
_OBEYED = OPTIONS | {
    "model",
    "messages",
    "system",
    "stream",
    "stop_sequences",
    "thinking",
    "thread",
    "metadata",
    "chat_id",
    *OTHER_CHAT_FIELDS,
}
_FIELDS = FieldTable(_OBEYED, IGNORED_FIELDS, _DEFAULTS)


@dataclass(frozen=True, slots=True)
class MessageRequest:
    """A request of the Messages API: the prompt, and what concerns this dialect alone.

    ``shows_thinking`` is whether it asks for thinking blocks, and errors name ``request_id``.
    ``ignored`` names the fields that have no effect here, Anthropic's first; it fits into a header.
    """

    prompt: ChatPrompt
    shows_thinking: bool
    request_id: str
    ignored: tuple[str, ...]

    def new_writer(self) -> MessageStreamWriter:
        """For a streamed response."""
        return MessageStreamWriter(self.shows_thinking, self.request_id)

    def to_json(self, response: WholeResponse) -> dict[str, Any]:
        """For a whole one."""
        return message.whole_message(response, self.shows_thinking)


def parse_message_request(body: JsonObject, request_id: str) -> MessageRequest:
    """Checks a body. Raises InvalidRequest and RequestTooLarge, which name the field."""
    model = parse_model(body)
    _check_max_tokens(body.get("max_tokens"))
    _refuse_what_would_answer_wrongly(body)
    metadata = parse_mapping(body, "metadata")
    prompt = ChatPrompt(
        model=model,
        messages=_parse_messages(body),
        stream=parse_boolean(body, "stream"),
        stop=parse_stops(body, "stop_sequences"),
        fallback_user=metadata_user(metadata),
        chat_id=body_chat_id(body, metadata),
        task=metadata_task(metadata),
        has_tools=is_given(body, "tools"),
        options=parse_options(body, metadata),
    )
    return MessageRequest(
        prompt, _shows_thinking(body), request_id, ignored=_FIELDS.without_effect(body)
    )


@dataclass(frozen=True, slots=True)
class CountRequest:
    """A request for the number of tokens of a prompt. ``messages`` include the system prompt, and
    ``tools_size`` is the length of the JSON of the tools."""

    model: str
    messages: tuple[Message, ...]
    tools_size: int


def parse_count_request(body: JsonObject) -> CountRequest:
    """Checks a body. Raises InvalidRequest and RequestTooLarge, which name the field."""
    return CountRequest(parse_model(body), _parse_messages(body), body.size("tools"))


def _parse_messages(body: JsonObject) -> tuple[Message, ...]:
    messages = parse_messages(body.with_files("messages"), body.get("system"))
    body.check_text("messages", sum(len(message.text) for message in messages))
    return messages


def _check_max_tokens(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequest(
            "'max_tokens' must be a whole number above 0. Anthropic's API requires it; a Dify app "
            "has its own limit, and this one has no effect.",
            param="max_tokens",
        )


def _refuse_what_would_answer_wrongly(body: Mapping[str, Any]) -> None:
    if body.get("thread") is not None:
        raise InvalidRequest(
            "'thread' is not supported: send all messages of the chat each time, without 'thread'.",
            param="thread",
            code=message.THREAD_UNSUPPORTED,
        )
    choice = parse_mapping(body, "tool_choice")
    if choice and choice.get("type") not in ("auto", "none"):
        raise InvalidRequest(
            "'tool_choice' cannot force a tool: the tools of a Dify app are set in Dify. "
            "Leave it out, or say 'auto' or 'none'.",
            param="tool_choice",
        )


def _shows_thinking(body: Mapping[str, Any]) -> bool:
    """Clients that do not ask for thinking may take the first block for the answer."""
    thinking = parse_mapping(body, "thinking")
    return thinking.get("type") in ("enabled", "adaptive") and thinking.get("display") != "omitted"
