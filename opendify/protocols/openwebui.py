"""Reads user, chat, task and message ids of a request from the headers of Open WebUI. No I/O.

Header names are case-insensitive. With ``ENABLE_FORWARD_USER_INFO_HEADERS`` Open WebUI sends user
and chat; its custom headers with templates (0.10 and later) add the task, and the position of the
request and the response in the tree of the chat's messages. With
``FORWARD_USER_INFO_HEADER_JWT_SECRET`` it sends one signed token instead of the headers that name
the user. Its ``utils/headers.py`` writes these claims, signed with HS256: ``sub`` (the user id),
``email``, ``name``, ``role``, ``iss`` (always ``open-webui``), ``iat`` and ``exp`` (300 s later by
default).
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jwt

from opendify.errors import InvalidUserToken

_TEMPORARY_PREFIXES = ("temporary:", "local:")  # local: before the chats had a socket's id

_HEADER_PREFIX = "HTTP_X_OPENWEBUI_"

_ISSUER = "open-webui"

# Tolerated difference between the clocks of two machines.
_LEEWAY_SECONDS = 60.0

_NOT_SENT = (
    "This service serves people whom Open WebUI vouches for, and the request has no header "
    "X-OpenWebUI-User-Jwt. Set ENABLE_FORWARD_USER_INFO_HEADERS=true and "
    "FORWARD_USER_INFO_HEADER_JWT_SECRET in Open WebUI."
)
_NOT_GENUINE = (
    "The header X-OpenWebUI-User-Jwt is not a token of Open WebUI, or is signed with another "
    "secret: FORWARD_USER_INFO_HEADER_JWT_SECRET of Open WebUI and OPENWEBUI_JWT_SECRET of this "
    "service must be the same."
)
_EXPIRED = (
    "The token in X-OpenWebUI-User-Jwt has expired. If all of them are, the clocks of Open WebUI "
    "and of this service differ."
)


class Headers(Protocol):
    """A case-insensitive lookup, as the headers of web frameworks have it."""

    def get(self, key: str, default: str) -> str: ...


class OpenWebUiHeaders:
    """The headers of Open WebUI in a WSGI ``environ`` (``HTTP_X_OPENWEBUI_TASK`` ...). False in a
    boolean context if there is none, as in most requests."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._values = {name: environ[name] for name in environ if name.startswith(_HEADER_PREFIX)}

    def __bool__(self) -> bool:
        return bool(self._values)

    def get(self, key: str, default: str) -> str:
        if not self._values:
            return default
        return str(self._values.get(f"HTTP_{key.upper().replace('-', '_')}", default))


def chat_id(headers: Headers) -> str:
    """Open WebUI's id of the chat, or ""."""
    return _filled_in(headers, "X-OpenWebUI-Chat-Id")


def is_temporary(chat_id: str) -> bool:
    """Whether Open WebUI itself does not store the chat with this id."""
    return chat_id.startswith(_TEMPORARY_PREFIXES)


def verified_user(headers: Headers, secret: str, now: float) -> tuple[str, str]:
    """The id and role of the user in the token of a request, which must be signed with the
    ``secret``; ``now`` is in epoch seconds. Raises InvalidUserToken."""
    return _from_jwt(_value(headers, "X-OpenWebUI-User-Jwt"), secret, now)


def user_id(headers: Headers) -> str:
    """The user's id; "" where it is not sent."""
    return _value(headers, "X-OpenWebUI-User-Id")


def role(headers: Headers) -> str:
    """The user's role (``admin``, ``user``); "" where it is not sent."""
    return _value(headers, "X-OpenWebUI-User-Role")


def task(headers: Headers) -> str:
    """The background task (``title_generation`` ...) of the request; "" for a chat turn."""
    return _value(headers, "X-OpenWebUI-Task")


def answer_id(headers: Headers) -> str:
    """Open WebUI's id of the requested response; "" where it is not sent."""
    return _filled_in(headers, "X-OpenWebUI-Message-Id")


def parent_answer_id(headers: Headers) -> str | None:
    """Open WebUI's id of the response before the user's message: "" for the first message of a
    chat, None where it is not sent."""
    if not answer_id(headers):
        return None
    return _filled_in(headers, "X-OpenWebUI-User-Message-Parent-Id")


def _filled_in(headers: Headers, name: str) -> str:
    """The value of a header; "" for a template that was not filled in (before Open WebUI 0.10)."""
    value = _value(headers, name)
    return "" if value.startswith("{{") else value


def _value(headers: Headers, name: str) -> str:
    """Strips only space and tab: WSGI decodes as Latin-1, where the last byte of a UTF-8 letter may
    look like other whitespace."""
    return headers.get(name, "").strip(" \t")


def _from_jwt(token: str, secret: str, now: float) -> tuple[str, str]:
    if not token:
        raise InvalidUserToken(_NOT_SENT)
    claims = _verified(token, secret)
    if not _is_time(claims["exp"]) or claims["exp"] <= now - _LEEWAY_SECONDS:
        raise InvalidUserToken(_EXPIRED)
    id_, role = claims["sub"], claims.get("role")
    if not isinstance(id_, str) or not id_.strip():
        raise InvalidUserToken(_NOT_GENUINE)
    return id_.strip(), role.strip() if isinstance(role, str) else ""


def _verified(token: str, secret: str) -> Mapping[str, Any]:
    """The claims of a token with a valid signature. The caller checks ``exp`` against its own
    clock."""
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token,
            secret,
            algorithms=["HS256"],
            issuer=_ISSUER,
            options={
                "require": ["sub", "iss", "exp"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
    except (jwt.PyJWTError, RecursionError) as exc:
        raise InvalidUserToken(_NOT_GENUINE) from exc
    return claims


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
