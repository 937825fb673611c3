"""The OpenAPI description of this service: openapi.json in this directory."""

from pathlib import Path

from flask import Flask, Response

DESCRIPTION = Path(__file__).with_name("openapi.json")


def add_openapi_route(app: Flask) -> None:
    """Serves the file unchanged."""
    text = DESCRIPTION.read_bytes()

    @app.get("/openapi.json")
    def openapi() -> Response:
        return Response(text, mimetype="application/json")
