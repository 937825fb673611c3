"""``GET /v1/models``: the models that a caller may use."""

from typing import Any

from flask import Flask, Response, jsonify

from opendify.chat import find_model
from opendify.config.models import Model
from opendify.openai import answers
from opendify.upstream.directory import Directory
from opendify.web.access import Access
from opendify.web.paths import plain_path


def add_model_routes(app: Flask, directory: Directory, access: Access) -> None:
    """Adds the list and its entries."""

    @app.get("/v1/models")
    def models() -> Response:
        directory.keep_fresh()
        known = access.identity().models.values()
        return jsonify(answers.model_list([_model(directory, model) for model in known]))

    @app.get("/v1/models/<path:name>")
    def model(name: str) -> Response:
        allowed = access.identity().models
        known = find_model(name if name in allowed else plain_path(f"/{name}")[1:], allowed)
        directory.keep_fresh()
        return jsonify(_model(directory, known))


def _model(directory: Directory, model: Model) -> dict[str, Any]:
    app = directory.known(model)
    files = app.files.kinds if app.files else frozenset()
    about = {"name": app.name, "description": app.description, "mode": app.mode}
    abilities = {
        "vision": "image" in files,
        "files": sorted(files),
        "speech_to_text": app.speech_to_text,
    }
    known = {key: value for key, value in about.items() if value}
    return answers.model(model.name) | (known | {"capabilities": abilities} if app.mode else {})
