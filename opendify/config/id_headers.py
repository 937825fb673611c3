"""The names of headers in which clients send their ids. No I/O."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Names that clients and their bridges use. LibreChat fills its templates into headers of any name;
# its users write X-Conversation-Id, X-User-Id and X-Message-Id. OpenRouter's clients send
# X-Session-Id. For the answer before the question no name is usual: LibreChat's template
# {{LIBRECHAT_BODY_PARENTMESSAGEID}} is the user's message, the parent of the answer to come
# (api/app/clients/BaseClient.js, sendMessage).
DEFAULT_CHAT = "X-Chat-Id, X-Conversation-Id, X-Session-Id, X-Thread-Id"
DEFAULT_USER = "X-User-Id"
DEFAULT_MESSAGE = "X-Message-Id"
DEFAULT_PARENT = "none"

# The value that stands for no header at all.
_NONE = "none"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
# Their values let callers in, and an id is sent to Dify and written to the log.
_PRIVATE = frozenset({"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key"})


@dataclass(frozen=True, slots=True)
class IdHeaders:
    """The names, each in the order in which they are looked for, as a WSGI environment spells them
    (``HTTP_X_CHAT_ID``)."""

    chat: tuple[str, ...]
    user: tuple[str, ...]
    message: tuple[str, ...]
    parent: tuple[str, ...]


def load_id_headers(environ: Mapping[str, str], problems: list[str]) -> IdHeaders:
    """The names that the environment sets, else the usual ones. Problems are added to
    ``problems``."""
    return IdHeaders(
        _parse(environ, "CHAT_ID_HEADERS", DEFAULT_CHAT, problems),
        _parse(environ, "USER_ID_HEADERS", DEFAULT_USER, problems),
        _parse(environ, "MESSAGE_ID_HEADERS", DEFAULT_MESSAGE, problems),
        _parse(environ, "PARENT_ID_HEADERS", DEFAULT_PARENT, problems),
    )


def _parse(
    environ: Mapping[str, str], variable: str, default: str, problems: list[str]
) -> tuple[str, ...]:
    text = environ.get(variable, "").strip() or default
    if text.lower() == _NONE:
        return ()
    names = list(filter(None, map(str.strip, text.split(","))))
    for name in names:
        if not _NAME.fullmatch(name):
            problems.append(
                f"{variable} must be names of headers with commas between, like X-Id, or "
                f"'{_NONE}'. In them are letters, digits and '-' only."
            )
            return ()
        if name.lower() in _PRIVATE:
            problems.append(f"{variable} must not name {name}, whose value is for nobody else.")
            return ()
    return tuple(f"HTTP_{name.upper().replace('-', '_')}" for name in names)
