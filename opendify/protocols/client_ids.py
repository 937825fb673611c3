"""Reads what a request says about itself: who asks, in which chat, and where in it. No I/O.

The headers of Open WebUI come first, then the fields of the body (which comes before all for the
user), then the headers of other clients, whose names are configured. All are as trustworthy as the
caller. With a secret for Open WebUI's user tokens, nothing but such a token names the user.

Fields of the body with which clients name a chat, besides ``metadata.chat_id`` and ``chat_id``:
``chatId``, ``conversationId`` (LibreChat's spelling), ``session_id`` (OpenRouter's) and
``conversation``, a text or an object with ``id`` (as in OpenAI's Responses API).
``conversation_id`` is none of them: it is the id of a conversation in Dify.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opendify.config.id_headers import IdHeaders
from opendify.protocols import openwebui
from opendify.protocols.base import ChatPrompt
from opendify.protocols.openwebui import OpenWebUiHeaders
from opendify.protocols.request_fields import parse_name

# Longer ids are replaced by their digest.
MAX_ID = 255

DEFAULT_USER = "default_user"

# Read where the body has no ``chat_id``. A value that is no id is ignored: other services give
# these names another meaning.
OTHER_CHAT_FIELDS = ("chatId", "conversationId", "conversation", "session_id")


@dataclass(frozen=True, slots=True)
class ClientIds:
    """Who sends a request, and from where; texts are empty where nothing is known.

    ``sends_whole_history`` says whether the client is known to send all messages of the chat each
    time. ``answer_id`` is the client's id of the answer to come, ``parent_answer_id`` that of the
    answer before the user's message: "" for the first message of a chat, None where it is not sent.
    ``task`` is the background task that a header names.
    """

    user: str
    role: str
    is_named_user: bool
    chat_id: str
    is_temporary_chat: bool
    in_open_webui: bool
    sends_whole_history: bool
    answer_id: str
    parent_answer_id: str | None
    task: str


def identify(
    prompt: ChatPrompt, environ: Mapping[str, Any], names: IdHeaders, secret: str, now: float
) -> ClientIds:
    """The ids of a request with this WSGI ``environ``. ``secret`` is that of Open WebUI's user
    tokens, ``now`` in epoch seconds. Raises InvalidUserToken."""
    headers = OpenWebUiHeaders(environ)
    id_, role = _person(prompt, headers, environ, names, secret, now)
    user = _bounded(id_) or DEFAULT_USER
    own_chat_id = _bounded(openwebui.chat_id(headers))
    chat_id = own_chat_id or _bounded(prompt.chat_id)
    is_temporary = openwebui.is_temporary(chat_id)
    answer_id, parent_answer_id = openwebui.answer_id(headers), openwebui.parent_answer_id(headers)
    if not own_chat_id:
        chat_id = chat_id or _first(environ, names.chat)
    if not own_chat_id and not answer_id:
        answer_id, parent_answer_id = _position(environ, names)
    return ClientIds(
        user=user,
        role=role,
        is_named_user=user != DEFAULT_USER,
        chat_id=chat_id,
        is_temporary_chat=is_temporary,
        in_open_webui=bool(headers),
        sends_whole_history=bool(own_chat_id),
        answer_id=answer_id,
        parent_answer_id=parent_answer_id,
        task=openwebui.task(headers),
    )


def body_chat_id(body: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """The chat id in a body with this ``metadata``; "" for none. Raises InvalidRequest."""
    return (
        parse_name(metadata, "chat_id", "metadata.")
        or parse_name(body, "chat_id")
        or _other_chat_id(body)
    )


def _other_chat_id(body: Mapping[str, Any]) -> str:
    """The chat id in a body without ``chat_id``, by the names of other clients; "" for none."""
    for name in OTHER_CHAT_FIELDS:
        value = body.get(name)
        if isinstance(value, dict):
            value = value.get("id")
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and (id_ := _filled_in(value.replace("\0", "").strip())):
            return id_
    return ""


def _person(
    prompt: ChatPrompt,
    headers: OpenWebUiHeaders,
    environ: Mapping[str, Any],
    names: IdHeaders,
    secret: str,
    now: float,
) -> tuple[str, str]:
    """The user's id and role. Raises InvalidUserToken."""
    if secret:
        return openwebui.verified_user(headers, secret, now)
    id_ = (
        prompt.user
        or openwebui.user_id(headers)
        or _first(environ, names.user)
        or prompt.fallback_user
    )
    return id_, openwebui.role(headers)


def _position(environ: Mapping[str, Any], names: IdHeaders) -> tuple[str, str | None]:
    """The ids of the answer to come and of the answer before. An answer that is not named has no
    position; unlike Open WebUI, other clients name an answer without the one before it."""
    answer_id = _first(environ, names.message)
    return answer_id, (_first(environ, names.parent) or None) if answer_id else None


def _first(environ: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The value of the first header that has one."""
    values = (_filled_in(str(environ.get(name, "")).strip(" \t")) for name in names)
    return _bounded(next(filter(None, values), ""))


def _filled_in(value: str) -> str:
    """ "" for a template that its client has not filled in, such as ``{{CHAT_ID}}``."""
    return "" if value.startswith("{{") else value


def _bounded(id_: str) -> str:
    id_ = id_.replace("\0", "")
    return id_ if len(id_) <= MAX_ID else _digest(id_)


def _digest(id_: str) -> str:
    return hashlib.sha256(id_.encode("utf-8", "replace")).hexdigest()
