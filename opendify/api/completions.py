"""``POST /v1/completions``, OpenAI's older endpoint for texts."""

from flask import Flask, Response

from opendify.api.responder import Responder
from opendify.protocols.openai.completion_request import parse_completion_request


def add_completions(app: Flask, responder: Responder) -> None:
    """Adds the route."""

    @app.post("/v1/completions")
    def completions() -> Response:
        return responder.respond(parse_completion_request)
