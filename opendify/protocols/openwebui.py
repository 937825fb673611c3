"""Which chat, person and task a request belongs to: what Open WebUI says in its headers. No I/O.

Header names match in any case. ``ENABLE_FORWARD_USER_INFO_HEADERS`` of Open WebUI sends user and
chat; its custom headers with templates (0.10 and later) also the task, and the places of the
question and the answer in the tree of the chat's messages. With
``FORWARD_USER_INFO_HEADER_JWT_SECRET`` Open WebUI sends one signed token in the place of the
headers that name the person. Its ``utils/headers.py`` writes these claims, signed with HS256:
``sub`` (the id of the person), ``email``, ``name``, ``role``, ``iss`` (always ``open-webui``),
``iat`` and ``exp`` (300 s later, by default).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jwt

from opendify.errors import InvalidUserToken
from opendify.protocols.base import ChatPrompt

_TEMPORARY = ("temporary:", "local:")  # local: before the chats had a socket's id

_OURS = "HTTP_X_OPENWEBUI_"

_ISSUER = "open-webui"

# How far the clocks of two machines may differ.
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
    """What is needed of a framework's headers: a look-up that ignores case."""

    def get(self, key: str, default: str) -> str: ...


class OpenWebUiHeaders:
    """The headers of Open WebUI among those of a request, which most requests have none of; true
    where there is one. ``environ`` names them as WSGI does: ``HTTP_X_OPENWEBUI_TASK``."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._values = {name: environ[name] for name in environ if name.startswith(_OURS)}

    def __bool__(self) -> bool:
        return bool(self._values)

    def get(self, key: str, default: str) -> str:
        if not self._values:
            return default
        return str(self._values.get(f"HTTP_{key.upper().replace('-', '_')}", default))


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks: the id, and the role (``admin``, ``user``), each "" where it is not told."""

    id: str
    role: str


def chat_id(prompt: ChatPrompt, headers: Headers) -> str:
    """The client's name of the chat, or "" where it told none."""
    return _told(headers, "X-OpenWebUI-Chat-Id") or prompt.chat_id


def is_temporary(chat_id: str) -> bool:
    """Whether a chat of this id is one that Open WebUI itself does not keep."""
    return chat_id.startswith(_TEMPORARY)


def identify_user(prompt: ChatPrompt, headers: Headers, secret: str, now: float) -> Person:
    """Who asks. With a ``secret``, a token that is signed with it must tell, and nothing else
    does; ``now`` is in epoch seconds. Raises UserNotVerified."""
    if secret:
        return _from_jwt(_value(headers, "X-OpenWebUI-User-Jwt"), secret, now)
    return Person(_user_id(prompt, headers), _value(headers, "X-OpenWebUI-User-Role"))


def task(headers: Headers) -> str:
    """The background task (``title_generation`` ...) that the request serves; "" for a turn."""
    return _value(headers, "X-OpenWebUI-Task")


def answer_id(headers: Headers) -> str:
    """Open WebUI's name for the answer that it asks for; "" where it told none."""
    return _told(headers, "X-OpenWebUI-Message-Id")


def followed_answer_id(headers: Headers) -> str | None:
    """Its name for the answer that the person's message comes after: "" for the first message of
    a chat, None where it told none."""
    if not answer_id(headers):
        return None
    return _told(headers, "X-OpenWebUI-User-Message-Parent-Id")


def _told(headers: Headers, name: str) -> str:
    """The value of a header; "" for a template that was not filled in (before 0.10)."""
    value = _value(headers, name)
    return "" if value.startswith("{{") else value


def _value(headers: Headers, name: str) -> str:
    """WSGI has the bytes as Latin-1, where a letter in UTF-8 may end in what looks like a blank:
    only those that may stand around a value are taken off."""
    return headers.get(name, "").strip(" \t")


def _user_id(prompt: ChatPrompt, headers: Headers) -> str:
    return prompt.user or _value(headers, "X-OpenWebUI-User-Id") or prompt.fallback_user


def _from_jwt(token: str, secret: str, now: float) -> Person:
    if not token:
        raise InvalidUserToken(_NOT_SENT)
    claims = _verified(token, secret)
    if not _is_time(claims["exp"]) or claims["exp"] <= now - _LEEWAY_SECONDS:
        raise InvalidUserToken(_EXPIRED)
    id_, role = claims["sub"], claims.get("role")
    if not isinstance(id_, str) or not id_.strip():
        raise InvalidUserToken(_NOT_GENUINE)
    return Person(id_.strip(), role.strip() if isinstance(role, str) else "")


def _verified(token: str, secret: str) -> Mapping[str, Any]:
    """The claims of a token whose signature is right; its times are looked at by us, with the
    clock that we were given."""
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
