"""``GET /v1/models``: the models that the caller may use, by their names and aliases."""

from typing import Any

from flask import Flask, Response, jsonify

from opendify.api.middleware.auth import Authorizer
from opendify.api.middleware.paths import normalize_path
from opendify.chat.service import find_model
from opendify.config.aliases import is_pattern
from opendify.config.models import Model
from opendify.protocols.openai import chat_response
from opendify.upstream.app_registry import AppRegistry


def add_model_routes(app: Flask, registry: AppRegistry, authorizer: Authorizer) -> None:
    """Adds the list and the single models."""

    @app.get("/v1/models")
    def models() -> Response:
        registry.keep_fresh()
        known = authorizer.principal().models.values()
        names = [(model.name, model) for model in known]
        names += [(alias, m) for m in known for alias in m.aliases if not is_pattern(alias)]
        entries = [_model(registry, model, name) for name, model in names]
        return jsonify(chat_response.model_list(entries))

    @app.get("/v1/models/<path:name>")
    def model(name: str) -> Response:
        allowed = authorizer.principal().models
        asked = name if name in allowed else normalize_path(f"/{name}")[1:]
        known = find_model(asked, allowed)
        registry.keep_fresh()
        return jsonify(_model(registry, known, asked))


def _model(registry: AppRegistry, model: Model, name: str) -> dict[str, Any]:
    app = registry.known(model)
    files = app.files.kinds if app.files else frozenset()
    about = {"name": app.name, "description": app.description, "mode": app.mode}
    capabilities = {
        "vision": "image" in files,
        "files": sorted(files),
        "speech_to_text": app.speech_to_text,
    }
    known = {key: value for key, value in about.items() if value}
    return chat_response.model(name) | (known | {"capabilities": capabilities} if app.mode else {})
