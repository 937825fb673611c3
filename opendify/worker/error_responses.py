"""The worker's error responses, for requests that never reach the application. No I/O."""

import http
import json

from opendify.worker import gunicorn_api

_STATUS: list[tuple[type[Exception], int]] = [
    # Raised for the headers of the application's response.
    (gunicorn_api.InvalidResponseHeader, 500),
    (gunicorn_api.InvalidResponseHeaderName, 500),
    (gunicorn_api.ConfigurationProblem, 500),
    (gunicorn_api.LimitRequestLine, 414),
    (gunicorn_api.LimitRequestHeaders, 431),
    (gunicorn_api.UnsupportedTransferCoding, 501),
    (gunicorn_api.ExpectationFailed, 417),
    (gunicorn_api.ForbiddenProxyRequest, 403),
    (gunicorn_api.ParseException, 400),
]

# Code and message by status. Clients see them, so they contain nothing of the request.
_MESSAGES: dict[int, tuple[str, str]] = {
    400: ("invalid_http", "The request is not valid HTTP."),
    403: ("forbidden", "This address may not send requests of this kind."),
    408: ("request_timeout", "The request did not arrive in time; send it faster."),
    414: ("url_too_long", "The URL of the request is too long."),
    417: ("expectation_failed", "The only expectation that can be met is 100-continue."),
    431: ("headers_too_large", "The headers of the request are too large."),
    500: ("internal_error", "The server failed unexpectedly; its operator finds why in the log."),
    501: ("unsupported_encoding", "Send the body in chunks or with a Content-Length."),
    503: ("overloaded", "Too many large requests are being received; try again in a moment."),
}


def status_of(exc: BaseException) -> int:
    """The response status for a request that failed with this exception."""
    return next((status for kind, status in _STATUS if isinstance(exc, kind)), 500)


def code_and_message(status: int) -> tuple[str, str]:
    """The error code and the message for this status."""
    return _MESSAGES[status]


def render(status: int, request_id: str) -> bytes:
    """A complete HTTP response, after which the connection is closed."""
    code, message = code_and_message(status)
    kind = "api_error" if status in (500, 503) else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    content = json.dumps(body).encode()
    head = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        f"X-Request-Id: {request_id}",
    ]
    if status == 503:
        head.append("Retry-After: 5")
    return "\r\n".join([*head, "", ""]).encode() + content
