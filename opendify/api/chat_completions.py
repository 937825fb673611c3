"""``POST /v1/chat/completions``."""

from flask import Flask, Response

from opendify.api.responder import Responder
from opendify.protocols.openai.chat_request import parse_chat_request


def add_chat_completions(app: Flask, responder: Responder) -> None:
    """Adds the route."""

    @app.post("/v1/chat/completions")
    def chat_completions() -> Response:
        return responder.respond(parse_chat_request)
