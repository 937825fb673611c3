"""Which chat, person and task a request belongs to: what Open WebUI says in its headers. No I/O.

Header names match in any case. ``ENABLE_FORWARD_USER_INFO_HEADERS`` of Open WebUI sends user and
chat; its custom headers with templates (0.10 and later) also the task.
"""

from collections.abc import Iterable
from typing import Protocol

from opendify.openai.requests import ChatRequest


class Headers(Protocol):
    """What is needed of a framework's headers: a look-up that ignores case."""

    def get(self, key: str, default: str) -> str: ...


def chat_id(request: ChatRequest, headers: Headers) -> str:
    """The client's name of the chat, or "" where it told none."""
    return headers.get("X-OpenWebUI-Chat-Id", "").strip() or request.chat_id


def user_id(request: ChatRequest, headers: Headers) -> str:
    """The client's name of the person, or "" where it told none."""
    metadata_user = request.metadata.get("user_id")
    return (
        request.user
        or headers.get("X-OpenWebUI-User-Id", "").strip()
        or (metadata_user.strip() if isinstance(metadata_user, str) else "")
        or request.safety_identifier
    )


def role(headers: Headers) -> str:
    """The person's role (``admin``, ``user``), or "" where it is not told."""
    return headers.get("X-OpenWebUI-User-Role", "").strip()


def sent_by_open_webui(names: Iterable[str]) -> bool:
    """Whether a request with headers of these names comes from Open WebUI, as far as it tells."""
    return any(name.lower().startswith("x-openwebui-") for name in names)


def task(headers: Headers) -> str:
    """The background task (``title_generation`` ...) that the request serves; "" for a turn."""
    return headers.get("X-OpenWebUI-Task", "").strip()
