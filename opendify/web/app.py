"""The routes, the error answers and the limits of the Flask application."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from opendify import errors, openwebui, sse
from opendify.callers import Identity
from opendify.capacity import Capacity
from opendify.chat import HOLD_SECONDS, Asked, ChatService, find_model
from opendify.config.models import Model
from opendify.exchange import Caller
from opendify.monitoring.record import CALLER_GONE, Record
from opendify.openai import answers
from opendify.openai.requests import ChatRequest, parse_chat_request
from opendify.steps import NEEDS_THREAD, Steps
from opendify.upstream.directory import Directory
from opendify.upstream.watch import Watch
from opendify.web.access import Access, add_door, refuse_key
from opendify.web.body import json_body
from opendify.web.paths import PlainPaths, advice, plain_path
from opendify.web.recording import current_record, note_byte, to_first_byte
from opendify.web.resources import Resources, current_resources, own_resources
from opendify.web.stepped import SteppedResponse

log = logging.getLogger(__name__)

MAX_NAME = 255
DEFAULT_USER = "default_user"

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


def create_app(
    service: ChatService,
    directory: Directory,
    access: Access,
    max_body_bytes: int,
    capacity: Capacity,
    now: Callable[[], float],
    max_text_bytes: int,
    user_secret: str = "",
) -> Flask:
    """The application. ``max_text_bytes`` limits a body without the content of files.
    ``now`` gives epoch seconds; where there is a ``user_secret``, only people
    are served for whom Open WebUI vouches with it. Nothing is opened before the first
    request. The routes of other rooms are added to it."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # by a redirect; PlainPaths needs none
    app.wsgi_app = PlainPaths(app.wsgi_app)  # type: ignore[method-assign]
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.config["MAX_TEXT_BYTES"] = max_text_bytes
    app.config["MAX_CONCURRENT_STREAMS"] = capacity.max_answers
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.ensure_sync = _as_it_is  # type: ignore[method-assign]
    own_resources(app)
    add_door(app, access)
    _add_chat_routes(
        app,
        service,
        access,
        capacity,
        lambda asked: _caller(asked, access.identity(), user_secret, now()),
    )
    _add_model_routes(app, directory, access)
    app.register_error_handler(errors.OpenDifyError, _to_response)
    if access.callers_bring_dify_key:
        app.register_error_handler(errors.DifyAuthFailed, lambda exc: _to_response(refuse_key(exc)))
    app.register_error_handler(errors.CallerGone, _to_nobody)
    app.register_error_handler(HTTPException, _told_as_json)
    app.register_error_handler(Exception, _unexpected)
    return app


def _as_it_is(func: Callable[..., Any]) -> Callable[..., Any]:
    """None of ours is asynchronous, for which Flask looks at each of them for each request."""
    return func


def _add_chat_routes(
    app: Flask,
    service: ChatService,
    access: Access,
    capacity: Capacity,
    caller_of: Callable[[ChatRequest], Caller],
) -> None:
    @app.post("/v1/chat/completions")
    def chat_completions() -> Response:
        record, resources = current_record(), current_resources()
        with ExitStack() as acquired:
            acquired.callback(access.enter())
            chat_request = parse_chat_request(json_body())
            record.model, record.streamed = chat_request.model, chat_request.stream
            caller = caller_of(chat_request)
            record.user = caller.user
            model = service.answering_model(chat_request, caller)
            resources.add_permit(capacity.take_answer())
            acquired.callback(capacity.take_run(model.name))
            exchange = service.ask(chat_request, caller)
            # A run that its caller has left goes on in Dify: it counts until it is over there.
            run_permits = acquired.pop_all()
            resources.add_permit(lambda: exchange.when_over(run_permits.close))
        resources.add(lambda: _close(exchange, record))
        try:
            return _answer(service, exchange, record, resources)
        except errors.DifyError:
            exchange.end()
            raise


def _add_model_routes(app: Flask, directory: Directory, access: Access) -> None:
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


def _answer(
    service: ChatService, exchange: Asked, record: Record, resources: Resources
) -> Response:
    if exchange.request.stream:
        exchange.hold(HOLD_SECONDS)
        record.is_streaming = True
        response: Response = SteppedResponse(
            _events(service, exchange, record, resources), headers=_STREAM_HEADERS
        )
    else:
        response = jsonify(service.gather(exchange))
        exchange.end()
        if exchange.ids.message_id:
            response.headers["X-Dify-Message-Id"] = exchange.ids.message_id
    if exchange.ids.conversation_id:
        response.headers["X-Dify-Conversation-Id"] = exchange.ids.conversation_id
    if exchange.request.ignored:
        response.headers["X-OpenDify-Ignored"] = ", ".join(exchange.request.ignored)
    return response


def _events(
    service: ChatService, exchange: Asked, record: Record, resources: Resources
) -> Steps[bytes]:
    steps = service.stream(exchange)
    try:
        yield from to_first_byte(steps, record)
        yield from steps  # nothing of ours between a token and its caller
    except errors.CallerGone:
        record.ended = CALLER_GONE
        return
    except errors.OpenDifyError as exc:
        yield NEEDS_THREAD  # the request is over, and goes into the log
        yield _failure(exc, record)
    except Exception:
        yield NEEDS_THREAD
        log.exception("unexpected error in a stream")
        yield _failure(_internal_error(), record)
    if not exchange.has_ended:
        yield NEEDS_THREAD  # what is told so far does not wait for Dify
        exchange.end()
    resources.release_permits()
    yield sse.DONE
    record.is_complete = True


def _failure(error: errors.OpenDifyError, record: Record) -> bytes:
    """The event that tells of it."""
    record.failed(error)
    note_byte(record)
    return sse.encode(error.body())


def _close(exchange: Asked, record: Record) -> None:
    if usage := exchange.usage:
        record.tokens = {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens}
    record.conversation = exchange.ids.conversation_id
    exchange.close()


def _model(directory: Directory, model: Model) -> dict[str, Any]:
    app = directory.known(model)
    files = app.files.kinds if app.files else frozenset()
    told = {"name": app.name, "description": app.description, "mode": app.mode}
    abilities = {
        "vision": "image" in files,
        "files": sorted(files),
        "speech_to_text": app.speech_to_text,
    }
    known = {key: value for key, value in told.items() if value}
    return answers.model(model.name) | (known | {"capabilities": abilities} if app.mode else {})


def _caller(chat_request: ChatRequest, identity: Identity, user_secret: str, now: float) -> Caller:
    environ = request.environ
    headers = openwebui.Told(environ)
    person = openwebui.person(chat_request, headers, user_secret, now)
    user = _bounded(person.id) or DEFAULT_USER
    return Caller(
        name=identity.name,
        models=identity.models,
        user=user,
        chat_id=_bounded(openwebui.chat_id(chat_request, headers)),
        watch=Watch(
            _descriptor(environ, "gunicorn.socket"), _descriptor(environ, "opendify.ending")
        ),
        role=person.role,
        in_open_webui=bool(headers),
        task=openwebui.task(headers),
        trace_id=current_record().id,
        answer_id=openwebui.answer_id(headers),
        follows=openwebui.followed_answer_id(headers),
        is_named_user=user != DEFAULT_USER,
    )


def _descriptor(environ: Mapping[str, Any], name: str) -> int | None:
    """Of what the server tells of itself; None where this server does not."""
    told = environ.get(name)
    return told.fileno() if told is not None else None


def _bounded(name: str) -> str:
    name = name.replace("\0", "")
    return name if len(name) <= MAX_NAME else hashlib.sha256(name.encode()).hexdigest()


def _to_nobody(exc: errors.CallerGone) -> Response:
    current_record().ended = CALLER_GONE
    return Response(status=499)


def _to_response(error: errors.OpenDifyError) -> Response:
    current_record().failed(error)
    response = jsonify(error.body())
    response.status_code = error.status
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if (not error.repeatable and error.status in (408, 409, 429)) or error.status >= 500:
        response.headers["x-should-retry"] = "true" if error.repeatable else "false"
    return response


def _told_as_json(exc: HTTPException) -> Response:
    response = _to_response(_from_werkzeug(exc))
    for name, value in exc.get_headers(request.environ):
        if name in ("Allow", "Content-Range"):  # RFC 9110 wants them with 405 and 416
            response.headers[name] = value
    return response


def _from_werkzeug(exc: HTTPException) -> errors.OpenDifyError:
    if exc.code == 404:
        here = f"There is no {request.method} {request.path[:200]} here."
        return errors.RouteNotFound(f"{here} {advice(request.path)}".strip())
    if exc.code == 405:
        here = f"{request.path[:200]} does not answer {request.method}."
        return errors.MethodNotAllowed(f"{here} {advice(request.path)}".strip())
    if exc.code == 413:
        limit = (request.max_content_length or 0) // (1024 * 1024)
        return errors.RequestTooLarge(f"The request body is larger than {limit} MB (MAX_BODY_MB).")
    if exc.code == 416:
        return errors.RangeNotSatisfiable("The file has no such part.")
    if exc.code is not None and 400 <= exc.code < 500:
        return errors.InvalidRequest(exc.description or "The request cannot be read.")
    log.error("unexpected error", exc_info=exc)
    return _internal_error()


def _unexpected(exc: Exception) -> Response:
    log.error("unexpected error", exc_info=exc)
    return _to_response(_internal_error())


def _internal_error() -> errors.InternalError:
    return errors.InternalError("OpenDify failed unexpectedly; its operator finds why in the log.")
