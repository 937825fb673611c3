"""Lets pages of other origins call. Nothing of it is sent unless origins are listed."""

from flask import Flask, Response, request

_METHODS = "GET, POST, DELETE, OPTIONS"
_EXPOSED_HEADERS = (
    "Retry-After, X-Dify-Conversation-Id, X-Dify-Message-Id, X-OpenDify-Ignored, X-Request-Id, "
    "x-should-retry"
)
_MAX_AGE_SECONDS = "600"


def add_cors(app: Flask, origins: frozenset[str]) -> None:
    """Answers the browsers of pages from these origins; ``*`` is all. No cookies are allowed with
    it, and none are used: a page has to know a key."""
    if not origins:
        return

    @app.before_request
    def answer_preflight() -> Response | None:
        return Response(status=204) if is_preflight() else None

    @app.after_request
    def allow(response: Response) -> Response:
        origin = request.headers.get("Origin", "")
        if "*" in origins:
            response.headers["Access-Control-Allow-Origin"] = "*"
        else:
            response.vary.add("Origin")
            if origin.lower() not in origins:
                return response
            response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
        if is_preflight():
            response.headers["Access-Control-Allow-Methods"] = _METHODS
            asked = request.headers.get("Access-Control-Request-Headers", "")
            if asked:
                response.headers["Access-Control-Allow-Headers"] = asked
            response.headers["Access-Control-Max-Age"] = _MAX_AGE_SECONDS
        return response


def is_preflight() -> bool:
    """Whether a browser asks if it may send what a page wants it to send. It sends no key."""
    if request.method != "OPTIONS":
        return False
    return "Access-Control-Request-Method" in request.headers and "Origin" in request.headers
