"""``GET /v1/models``: the models that the caller may use, by their names and aliases."""

from flask import Flask, Response, jsonify

from opendify.api.middleware.auth import Authorizer
from opendify.api.middleware.paths import normalize_path
from opendify.chat.service import find_model
from opendify.config.aliases import is_pattern
from opendify.config.models import Model
from opendify.dify.apps import App
from opendify.protocols.openai import model_list
from opendify.upstream.app_registry import AppRegistry


def add_model_routes(app: Flask, registry: AppRegistry, authorizer: Authorizer) -> None:
    """Adds the list and the single models. Neither waits for Dify."""

    def known_apps() -> list[tuple[Model, App]]:
        registry.keep_fresh()
        allowed = authorizer.principal().models.values()
        return [(model, registry.known(model)) for model in allowed]

    @app.get("/v1/models")
    def models() -> Response:
        return jsonify(model_list.model_list(known_apps()))

    @app.get("/v1/models/<path:name>")
    def model(name: str) -> Response:
        allowed = authorizer.principal().models
        known = find_model(name if name in allowed else normalize_path(f"/{name}")[1:], allowed)
        return jsonify(model_list.model_entries(known_apps())[known.name])
