"""The description of our own API, for programs: openapi.json, beside this file."""

from pathlib import Path

from flask import Flask, Response

DESCRIPTION = Path(__file__).with_name("openapi.json")


def add_description(app: Flask) -> None:
    """Serves it as it is written."""
    text = DESCRIPTION.read_bytes()

    @app.get("/openapi.json")
    def openapi() -> Response:
        return Response(text, mimetype="application/json")
