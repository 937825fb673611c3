"""``GET /v1/models``: the models that the caller may use, by their names and aliases, in the form
of the client's API."""

from typing import Any

from flask import Flask, Response, jsonify

from opendify.api.dialect import is_anthropic
from opendify.api.middleware.auth import Authorizer
from opendify.api.middleware.paths import normalize_path
from opendify.chat.service import find_model
from opendify.config.models import Model
from opendify.dify.apps import App
from opendify.protocols.anthropic import message
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
        listed = model_list.model_list(known_apps())
        if not is_anthropic():
            return jsonify(listed)
        return jsonify(message.model_list([_in_anthropics_form(one) for one in listed["data"]]))

    @app.get("/v1/models/<path:name>")
    def model(name: str) -> Response:
        allowed = authorizer.principal().models
        asked = name if name in allowed else normalize_path(f"/{name}")[1:]
        known = find_model(asked, allowed)
        entry = model_list.model_entries(known_apps())[known.name] | {"id": asked}
        return jsonify(_in_anthropics_form(entry) if is_anthropic() else entry)


def _in_anthropics_form(entry: dict[str, Any]) -> dict[str, Any]:
    return message.model(entry["id"], entry.get("name", ""))
