"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from flask import Flask, Response, jsonify

from opendify.api.middleware.request_log import current_record
from opendify.api.responder import Responder
from opendify.protocols.anthropic.message_request import (
    parse_count_request,
    parse_message_request,
)
from opendify.protocols.anthropic.token_count import token_count


def add_messages(app: Flask, responder: Responder) -> None:
    """Adds the routes."""

    @app.post("/v1/messages")
    def messages() -> Response:
        request_id = current_record().id
        return responder.respond(lambda body: parse_message_request(body, request_id))

    @app.post("/v1/messages/count_tokens")
    def count_tokens() -> Response:
        counted = parse_count_request(responder.body())
        responder.check_model(counted.model)
        return jsonify(token_count(counted))
