"""Responds to requests of every protocol: limits, the caller, and the response, streamed or not."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from flask import Response, jsonify, request

from opendify import errors
from opendify.api.middleware.auth import Authorizer
from opendify.api.middleware.error_handlers import internal_error
from opendify.api.middleware.request_log import current_record, mark_first_byte, until_first_byte
from opendify.api.request_body import json_body
from opendify.api.resources import Resources, current_resources
from opendify.api.streaming_response import StreamingResponse
from opendify.chat.context import RequestContext
from opendify.chat.service import HOLD_SECONDS, ChatService, Turn, find_model
from opendify.config.id_headers import IdHeaders
from opendify.limits.capacity import ServerCapacity
from opendify.observability.record import CLIENT_DISCONNECTED, Record
from opendify.protocols import client_ids
from opendify.protocols.base import ChatPrompt
from opendify.protocols.json_object import JsonObject
from opendify.protocols.request_fields import nameable
from opendify.protocols.responses import ParsedRequest, StreamWriter
from opendify.streaming import BLOCKING, ResumableBody
from opendify.upstream.cancellation import Cancellation

log = logging.getLogger(__name__)

# This many bytes may be sent together with the end of a stream, after which its slot is free.
_MAX_TAIL_BYTES = 4 * 1024

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class Responder:
    """``id_headers`` are the headers in which clients other than Open WebUI send their ids.
    ``user_secret`` is the secret of Open WebUI's user tokens: if set, a valid token is required.
    ``now`` returns epoch seconds."""

    def __init__(
        self,
        service: ChatService,
        authorizer: Authorizer,
        capacity: ServerCapacity,
        id_headers: IdHeaders,
        user_secret: str,
        now: Callable[[], float],
    ) -> None:
        self._service = service
        self._authorizer = authorizer
        self._capacity = capacity
        self._id_headers = id_headers
        self._user_secret = user_secret
        self._now = now

    def respond(self, parse: Callable[[JsonObject], ParsedRequest]) -> Response:
        """Responds to the current request, which ``parse`` parses. Raises OpenDifyError."""
        record, resources = current_record(), current_resources()
        with ExitStack() as acquired:
            acquired.callback(self._authorizer.acquire_slot())
            parsed = parse(self.body())
            prompt = parsed.prompt
            record.model, record.streamed = prompt.model, prompt.stream
            caller = self._caller(prompt)
            record.user = caller.user
            route = self._service.route(prompt, caller)
            record.model = route.model.name
            resources.add_permit(self._capacity.acquire_response())
            acquired.callback(self._capacity.acquire_run(route.answering_model.name))
            turn = self._service.start(route, prompt, caller)
            # A run goes on in Dify after its client has disconnected: it counts until it is over
            # there.
            run_permits = acquired.pop_all()
            resources.add_permit(lambda: turn.add_done_callback(run_permits.close))
        resources.add(lambda: _close(turn, record))
        try:
            response = self._response(parsed, turn, record, resources)
        except errors.DifyError:
            turn.stop_and_wait()
            raise
        return _with_headers(response, turn, parsed)

    def body(self) -> JsonObject:
        """The body of the current request, which names DEFAULT_MODEL where it named no model.
        Raises OpenDifyError."""
        default = self._service.default_model(self._authorizer.principal().models)
        return json_body().with_default("model", default) if default else json_body()

    def check_model(self, name: str) -> None:
        """Raises ModelNotFound if no model of the caller would answer to this name."""
        models = self._authorizer.principal().models
        find_model(name, models, self._service.default_model(models))

    def _response(
        self, parsed: ParsedRequest, turn: Turn, record: Record, resources: Resources
    ) -> Response:
        if parsed.prompt.stream:
            turn.await_status(HOLD_SECONDS)
            record.is_streaming = True
            events = self._events(turn, parsed.new_writer(), record, resources)
            return StreamingResponse(events, headers=_STREAM_HEADERS)
        response = jsonify(parsed.to_json(self._service.complete(turn)))
        turn.stop_and_wait()
        if turn.ids.message_id:
            response.headers["X-Dify-Message-Id"] = turn.ids.message_id
        return response

    def _events(
        self, turn: Turn, writer: StreamWriter, record: Record, resources: Resources
    ) -> ResumableBody[bytes]:
        steps = self._service.stream(turn, writer)
        try:
            yield from until_first_byte(steps, record, writer.keep_alive())
            tail = yield from steps  # the fast path: no per-token work here
        except errors.ClientDisconnected:
            record.ended = CLIENT_DISCONNECTED
            return
        except errors.OpenDifyError as exc:
            yield BLOCKING  # ends the run and logs
            tail = _failure(exc, writer, record)
        except Exception:
            yield BLOCKING
            log.exception("unexpected error in a stream")
            tail = _failure(internal_error(), writer, record)
        before, last = _split_last_event(tail)
        if before:
            yield before
        if not turn.has_ended or len(before) > _MAX_TAIL_BYTES:
            yield BLOCKING  # send these bytes before waiting for Dify
            turn.stop_and_wait()
        resources.release_permits()
        yield last  # the end marker: the slot is free before clients see it
        record.is_complete = True

    def _caller(self, prompt: ChatPrompt) -> RequestContext:
        environ, identity = request.environ, self._authorizer.principal()
        ids = client_ids.identify(prompt, environ, self._id_headers, self._user_secret, self._now())
        return RequestContext(
            name=identity.name,
            models=identity.models,
            user=ids.user,
            chat_id=ids.chat_id,
            is_temporary_chat=ids.is_temporary_chat,
            cancellation=Cancellation(
                _descriptor(environ, "gunicorn.socket"), _descriptor(environ, "opendify.ending")
            ),
            role=ids.role,
            in_open_webui=ids.in_open_webui,
            sends_whole_history=ids.sends_whole_history,
            task=ids.task,
            trace_id=current_record().id,
            answer_id=ids.answer_id,
            parent_answer_id=ids.parent_answer_id,
            is_named_user=ids.is_named_user,
        )


def _with_headers(response: Response, turn: Turn, parsed: ParsedRequest) -> Response:
    if turn.ids.conversation_id:
        response.headers["X-Dify-Conversation-Id"] = turn.ids.conversation_id
    if ignored := nameable((*turn.ignored, *parsed.ignored)):
        response.headers["X-OpenDify-Ignored"] = ", ".join(ignored)
    return response


def _failure(error: errors.OpenDifyError, writer: StreamWriter, record: Record) -> bytes:
    record.set_error(error)
    mark_first_byte(record)
    return writer.fail(error)


def _split_last_event(events: bytes) -> tuple[bytes, bytes]:
    start = events.rfind(b"\n\n", 0, -2)
    return (events[: start + 2], events[start + 2 :]) if start >= 0 else (b"", events)


def _close(turn: Turn, record: Record) -> None:
    if usage := turn.usage:
        record.tokens = {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens}
    record.conversation, record.continuity = turn.ids.conversation_id, turn.continuity
    turn.close()


def _descriptor(environ: Mapping[str, Any], name: str) -> int | None:
    """The file descriptor of an object in the WSGI environment; None if this server does not
    provide it."""
    found = environ.get(name)
    return found.fileno() if found is not None else None
