"""Request bodies as the application gets them."""

import json
from typing import Any

from opendify.protocols.base import ChatPrompt
from opendify.protocols.json_object import JsonObject, parse_object
from opendify.protocols.openai.chat_request import ChatRequest, parse_chat_request

MAX_TEXT_BYTES = 8 * 1024 * 1024


def to_object(value: Any) -> JsonObject:
    return parse_object(json.dumps(value).encode(), MAX_TEXT_BYTES)


def to_request(value: Any) -> ChatRequest:
    """What is asked for by a body of this value."""
    return parse_chat_request(to_object(value))


def to_prompt(value: Any) -> ChatPrompt:
    """The prompt in a body of this value."""
    return to_request(value).prompt
