"""Error responses."""

import logging

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from opendify import errors
from opendify.api.dialect import error_body
from opendify.api.middleware.auth import Authorizer, invalid_dify_key
from opendify.api.middleware.paths import path_hint
from opendify.api.middleware.request_log import current_record
from opendify.observability.record import CLIENT_DISCONNECTED

log = logging.getLogger(__name__)


def add_error_handlers(app: Flask, authorizer: Authorizer) -> None:
    """Converts OpenDify's, Werkzeug's and unexpected errors to the error format of the
    client's API."""
    app.register_error_handler(errors.OpenDifyError, _to_response)
    if authorizer.uses_key_passthrough:
        app.register_error_handler(
            errors.UpstreamAuthError, lambda exc: _to_response(invalid_dify_key(exc))
        )
    app.register_error_handler(errors.ClientDisconnected, _client_disconnected)
    app.register_error_handler(HTTPException, _from_http_exception)
    app.register_error_handler(Exception, _unexpected)


def internal_error() -> errors.InternalError:
    """The response to an unexpected error; it contains no details."""
    return errors.InternalError(
        "OpenDify failed unexpectedly; the operator can find the cause in the log."
    )


def _client_disconnected(exc: errors.ClientDisconnected) -> Response:
    current_record().ended = CLIENT_DISCONNECTED
    return Response(status=499)


def _to_response(error: errors.OpenDifyError) -> Response:
    current_record().set_error(error)
    response = jsonify(error_body(error))
    response.status_code = error.status
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if (not error.retryable and error.status in (408, 409, 429)) or error.status >= 500:
        response.headers["x-should-retry"] = "true" if error.retryable else "false"
    return response


def _from_http_exception(exc: HTTPException) -> Response:
    response = _to_response(_from_werkzeug(exc))
    for name, value in exc.get_headers(request.environ):
        if name in ("Allow", "Content-Range"):  # required by RFC 9110 for 405 and 416
            response.headers[name] = value
    return response


def _from_werkzeug(exc: HTTPException) -> errors.OpenDifyError:
    if exc.code == 404:
        here = f"There is no {request.method} {request.path[:200]} here."
        return errors.RouteNotFound(f"{here} {path_hint(request.path)}".strip())
    if exc.code == 405:
        here = f"{request.path[:200]} does not support {request.method}."
        return errors.MethodNotAllowed(f"{here} {path_hint(request.path)}".strip())
    if exc.code == 413:
        limit = (request.max_content_length or 0) // (1024 * 1024)
        return errors.RequestTooLarge(f"The request body is larger than {limit} MB (MAX_BODY_MB).")
    if exc.code == 416:
        return errors.RangeNotSatisfiable("The file has no such part.")
    if exc.code is not None and 400 <= exc.code < 500:
        return errors.InvalidRequest(exc.description or "The request cannot be read.")
    log.error("unexpected error", exc_info=exc)
    return internal_error()


def _unexpected(exc: Exception) -> Response:
    log.error("unexpected error", exc_info=exc)
    return _to_response(internal_error())
