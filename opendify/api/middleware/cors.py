"""CORS. No headers are sent unless origins are configured."""

from flask import Flask, Response, request

_METHODS = "GET, POST, DELETE, OPTIONS"
_EXPOSED_HEADERS = (
    "Retry-After, X-Dify-Conversation-Id, X-Dify-Message-Id, X-OpenDify-Ignored, X-Request-Id, "
    "request-id, x-should-retry"
)
_MAX_AGE_SECONDS = "600"


def add_cors(app: Flask, origins: frozenset[str]) -> None:
    """Allows pages from these origins; ``*`` allows all. Credentials (cookies) are not allowed and
    not used: a page needs an API key."""
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
            requested = request.headers.get("Access-Control-Request-Headers", "")
            if requested:
                response.headers["Access-Control-Allow-Headers"] = requested
            response.headers["Access-Control-Max-Age"] = _MAX_AGE_SECONDS
        return response


def is_preflight() -> bool:
    """Whether this is a CORS preflight request, which browsers send without a key."""
    if request.method != "OPTIONS":
        return False
    return "Access-Control-Request-Method" in request.headers and "Origin" in request.headers
