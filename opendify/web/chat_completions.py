"""``POST /v1/chat/completions``."""

from flask import Flask, Response

from opendify.openai.requests import parse_chat_request
from opendify.web.responder import Responder


def add_chat_completions(app: Flask, responder: Responder) -> None:
    """Adds the route."""

    @app.post("/v1/chat/completions")
    def chat_completions() -> Response:
        return responder.respond(parse_chat_request)
