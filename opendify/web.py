"""The routes, the error answers and the limits of the Flask application."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from opendify import errors, openwebui, sse
from opendify.chat import HOLD_SECONDS, ChatService
from opendify.conversations.contract import Conversations
from opendify.directory import Directory
from opendify.exchange import Caller, Exchange
from opendify.openai import answers
from opendify.openai.requests import ChatRequest, parse_chat_request

log = logging.getLogger(__name__)

MAX_NAME = 255
DEFAULT_USER = "default_user"
DEFAULT_MAX_AGE_DAYS = 30

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


def create_app(
    service: ChatService,
    directory: Directory,
    conversations: Conversations,
    model_names: list[str],
    max_body_bytes: int,
    now: Callable[[], float],
) -> Flask:
    """The application. ``now`` gives epoch seconds. Nothing is opened before the first request."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.json.sort_keys = False  # type: ignore[attr-defined]
    _add_chat_routes(app, service, directory, model_names)
    _add_operator_routes(app, conversations, now)
    app.register_error_handler(errors.OpenDifyError, _to_response)
    app.register_error_handler(errors.CallerGone, lambda exc: Response(status=499))
    app.register_error_handler(HTTPException, lambda exc: _to_response(_from_werkzeug(exc)))
    app.register_error_handler(Exception, _unexpected)
    return app


def _add_chat_routes(
    app: Flask, service: ChatService, directory: Directory, model_names: list[str]
) -> None:
    @app.post("/v1/chat/completions")
    def chat_completions() -> Response:
        chat_request = parse_chat_request(_json_body())
        exchange = service.ask(chat_request, _caller(chat_request))
        try:
            response = _answer(service, exchange)
        except BaseException:
            exchange.close()
            raise
        response.call_on_close(exchange.close)
        return response

    @app.get("/v1/models")
    def models() -> Response:
        directory.keep_fresh()
        return jsonify(answers.model_list([_model(directory, name) for name in model_names]))

    @app.get("/v1/models/<path:name>")
    def model(name: str) -> Response:
        if name not in model_names:
            raise errors.ModelNotFound(
                f"There is no model '{name}'; GET /v1/models lists them.", param="model"
            )
        directory.keep_fresh()
        return jsonify(_model(directory, name))


def _add_operator_routes(
    app: Flask, conversations: Conversations, now: Callable[[], float]
) -> None:
    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/v1/conversation/mappings")
    def mappings() -> Response:
        stats = conversations.stats()
        return jsonify(
            {
                "mapping_count": stats.count,
                "oldest_mapping": stats.oldest,
                "newest_mapping": stats.newest,
                "timestamp": int(now()),
            }
        )

    @app.post("/v1/conversation/cleanup")
    def cleanup() -> Response:
        days = _max_age_days(_json_body(or_else={}))
        return jsonify(
            {
                "removed_count": conversations.cleanup(days),
                "max_age_days": days,
                "timestamp": int(now()),
            }
        )


def _answer(service: ChatService, exchange: Exchange) -> Response:
    if exchange.request.stream:
        exchange.hold(HOLD_SECONDS)
        response = Response(_events(service, exchange), headers=_STREAM_HEADERS)
    else:
        response = jsonify(service.gather(exchange))
        response.headers["X-Dify-Message-Id"] = exchange.ids.message_id
    if exchange.ids.conversation_id:
        response.headers["X-Dify-Conversation-Id"] = exchange.ids.conversation_id
    if exchange.request.ignored:
        response.headers["X-OpenDify-Ignored"] = ", ".join(exchange.request.ignored)
    return response


def _events(service: ChatService, exchange: Exchange) -> Iterator[bytes]:
    try:
        for chunk in service.chunks(exchange):
            yield sse.KEEP_ALIVE if chunk is None else sse.encode(chunk)
    except errors.CallerGone:
        return
    except errors.OpenDifyError as exc:
        log.warning("an answer failed code=%s dify_code=%s", exc.code, exc.dify_code)
        yield sse.encode(exc.body())
    except Exception:
        log.exception("unexpected error in a stream")
        yield sse.encode(_internal_error().body())
    yield sse.DONE


def _model(directory: Directory, name: str) -> dict[str, Any]:
    app = directory.known(name)
    files = app.files.kinds if app.files else frozenset()
    told = {"name": app.name, "description": app.description, "mode": app.mode}
    abilities = {
        "vision": "image" in files,
        "files": sorted(files),
        "speech_to_text": app.speech_to_text,
    }
    known = {key: value for key, value in told.items() if value}
    return answers.model(name) | (known | {"capabilities": abilities} if app.mode else {})


def _caller(chat_request: ChatRequest) -> Caller:
    headers = request.headers
    socket = request.environ.get("gunicorn.socket")
    chat_id = "" if openwebui.task(headers) else openwebui.chat_id(chat_request, headers)
    return Caller(
        name=_caller_name(headers.get("Authorization", "")),
        user=_bounded(openwebui.user_id(chat_request, headers)) or DEFAULT_USER,
        chat_id=_bounded(chat_id),
        socket=socket.fileno() if socket is not None else None,
        role=openwebui.role(headers),
        in_open_webui=openwebui.sent_by_open_webui(headers.keys()),
    )


def _caller_name(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        return "-"
    return hashlib.sha256(key.strip().encode("utf-8", "replace")).hexdigest()[:12]


def _bounded(name: str) -> str:
    name = name.replace("\0", "")
    return name if len(name) <= MAX_NAME else hashlib.sha256(name.encode()).hexdigest()


def _json_body(or_else: Any = None) -> Any:
    """The decoded body. Raises InvalidRequest and UnsupportedMediaType."""
    data = request.get_data(cache=False)
    length = request.content_length
    if length is not None and len(data) < length:
        raise errors.InvalidRequest("The request body is shorter than its Content-Length.")
    if not data.strip() and or_else is not None:
        return or_else
    if request.mimetype and not request.mimetype.endswith("json"):
        raise errors.UnsupportedMediaType(
            "Send JSON, with the header Content-Type: application/json."
        )
    try:
        text = data.decode("utf-8-sig")
        body = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except UnicodeError as exc:
        raise errors.InvalidRequest("The request body is not valid UTF-8 text.") from exc
    except RecursionError as exc:
        raise errors.InvalidRequest("The request body is nested too deeply.") from exc
    except ValueError as exc:
        raise errors.InvalidRequest("The request body is not valid JSON.") from exc
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _max_age_days(body: Any) -> float:
    days = body.get("max_age_days", DEFAULT_MAX_AGE_DAYS) if isinstance(body, dict) else None
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 <= days <= 36500:
        raise errors.InvalidRequest(
            "'max_age_days' must be a number of days, 0 or more.", param="max_age_days"
        )
    return days


def _to_response(error: errors.OpenDifyError) -> Response:
    if error.status >= 500:
        log.warning("a request failed code=%s dify_code=%s", error.code, error.dify_code)
    response = jsonify(error.body())
    response.status_code = error.status
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if (not error.repeatable and error.status in (408, 409, 429)) or error.status >= 500:
        response.headers["x-should-retry"] = "true" if error.repeatable else "false"
    return response


def _from_werkzeug(exc: HTTPException) -> errors.OpenDifyError:
    if exc.code == 404:
        return errors.RouteNotFound(f"There is no {request.method} {request.path} here.")
    if exc.code == 405:
        return errors.MethodNotAllowed(f"{request.path} does not answer {request.method}.")
    if exc.code == 413:
        limit = (request.max_content_length or 0) // (1024 * 1024)
        return errors.RequestTooLarge(f"The request body is larger than {limit} MB (MAX_BODY_MB).")
    if exc.code is not None and 400 <= exc.code < 500:
        return errors.InvalidRequest(exc.description or "The request cannot be read.")
    log.error("unexpected error", exc_info=exc)
    return _internal_error()


def _unexpected(exc: Exception) -> Response:
    log.error("unexpected error", exc_info=exc)
    return _to_response(_internal_error())


def _internal_error() -> errors.InternalError:
    return errors.InternalError("OpenDify failed unexpectedly; its operator finds why in the log.")
