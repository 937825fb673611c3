"""``GET /v1/models``: the models that a caller may use."""

from typing import Any

from flask import Flask, Response, jsonify

from opendify.api.middleware.auth import Authorizer
from opendify.api.middleware.paths import normalize_path
from opendify.chat.service import find_model
from opendify.config.models import Model
from opendify.protocols.openai import chat_response
from opendify.upstream.app_registry import AppRegistry


def add_model_routes(app: Flask, directory: AppRegistry, access: Authorizer) -> None:
    """Adds the list and its entries."""

    @app.get("/v1/models")
    def models() -> Response:
        directory.keep_fresh()
        known = access.principal().models.values()
        return jsonify(chat_response.model_list([_model(directory, model) for model in known]))

    @app.get("/v1/models/<path:name>")
    def model(name: str) -> Response:
        allowed = access.principal().models
        known = find_model(name if name in allowed else normalize_path(f"/{name}")[1:], allowed)
        directory.keep_fresh()
        return jsonify(_model(directory, known))


def _model(directory: AppRegistry, model: Model) -> dict[str, Any]:
    app = directory.known(model)
    files = app.files.kinds if app.files else frozenset()
    about = {"name": app.name, "description": app.description, "mode": app.mode}
    abilities = {
        "vision": "image" in files,
        "files": sorted(files),
        "speech_to_text": app.speech_to_text,
    }
    known = {key: value for key, value in about.items() if value}
    return chat_response.model(model.name) | (
        known | {"capabilities": abilities} if app.mode else {}
    )
