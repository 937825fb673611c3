"""What the requests of all endpoints of OpenAI's dialect have in common. No I/O."""

from collections.abc import Mapping
from typing import Any

from opendify.errors import InvalidRequest
from opendify.protocols.base import ChatPrompt, Message
from opendify.protocols.client_ids import OTHER_CHAT_FIELDS, body_chat_id
from opendify.protocols.json_object import JsonObject
from opendify.protocols.request_fields import (
    OPTIONS,
    is_given,
    metadata_task,
    metadata_user,
    parse_boolean,
    parse_mapping,
    parse_name,
    parse_options,
    parse_stops,
)

# The fields that the functions below and ``parse_model`` read.
COMMON_FIELDS = OPTIONS | {
    "model",
    "stream",
    "stream_options",
    "n",
    "user",
    "safety_identifier",
    "metadata",
    "chat_id",
    "stop",
    *OTHER_CHAT_FIELDS,
}


def check_count(body: Mapping[str, Any]) -> None:
    """Raises InvalidRequest if more than one answer is asked for."""
    count = body.get("n")
    if count is not None and (isinstance(count, bool) or count != 1):
        raise InvalidRequest("'n' must be 1: Dify gives one answer to a question.", param="n")


def parse_prompt(body: JsonObject, model: str, messages: tuple[Message, ...]) -> ChatPrompt:
    """The prompt of a body whose model and messages are parsed. Raises InvalidRequest."""
    metadata = parse_mapping(body, "metadata")
    return ChatPrompt(
        model=model,
        messages=messages,
        stream=parse_boolean(body, "stream"),
        stop=parse_stops(body, "stop"),
        user=parse_name(body, "user"),
        fallback_user=metadata_user(metadata) or parse_name(body, "safety_identifier"),
        chat_id=body_chat_id(body, metadata),
        task=metadata_task(metadata),
        has_tools=is_given(body, "tools"),
        options=parse_options(body, metadata),
    )


def parse_include_usage(body: Mapping[str, Any]) -> bool:
    """Whether a stream is to end with the usage. Raises InvalidRequest."""
    stream_options = parse_mapping(body, "stream_options")
    return parse_boolean(stream_options, "include_usage", "stream_options.")
