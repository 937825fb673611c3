"""Which API the client of the current request speaks, where a route serves more than one."""

from typing import Any

from flask import Flask, Response, request

from opendify.api.middleware.request_log import current_record
from opendify.errors import OpenDifyError
from opendify.protocols.anthropic import message
from opendify.protocols.openai import chat_response

_MESSAGES = "/v1/messages"
# The routes of both APIs; Anthropic's clients send their header there.
_SHARED = "/v1/models"


def is_anthropic() -> bool:
    """Whether the client of the current request speaks Anthropic's API."""
    path = request.path
    if path == _MESSAGES or path.startswith(f"{_MESSAGES}/"):
        return True
    is_shared = path == _SHARED or path.startswith(f"{_SHARED}/")
    return is_shared and "anthropic-version" in request.headers


def error_body(error: OpenDifyError) -> dict[str, Any]:
    """The body of an error response, in the client's API."""
    if is_anthropic():
        return message.error_body(error, current_record().id)
    return chat_response.error_body(error)


def name_anthropic_requests(app: Flask) -> None:
    """Adds the header in which Anthropic's clients look for the id of a request."""

    @app.after_request
    def add_id(response: Response) -> Response:
        if is_anthropic():
            response.headers["request-id"] = current_record().id
        return response
