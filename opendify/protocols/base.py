"""What a request of any dialect comes to: a ChatPrompt. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that came with a message.

    ``kind`` is ``image``, ``audio``, ``video`` or ``file``. Either ``url`` holds an http(s)
    address, or ``data`` holds base64, with ``media_type`` and ``name`` as far as the caller gave
    them, or ``file_id`` the id of a file that was uploaded before. ``path`` is where in the
    request it stood.
    """

    kind: str
    url: str = ""
    data: str = ""
    media_type: str = ""
    name: str = ""
    file_id: str = ""
    path: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Message:
    """One message; ``role`` is ``system``, ``developer``, ``user``, ``assistant``, ``tool`` or
    ``function``, and ``text`` joins its text parts with line breaks."""

    role: str
    text: str
    attachments: tuple[Attachment, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class DifyOptions:
    """Dify's own fields in a request body, under Dify's names."""

    conversation_id: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Mapping[str, Any], ...] = ()
    auto_generate_name: bool = False
    workflow_id: str = ""
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What the caller asks for.

    ``user`` and ``chat_id`` are what the body says of them, empty where it says nothing;
    ``fallback_user`` counts where nothing else names the user. ``has_tools`` is whether the request
    has a list of tools, be it empty.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    stop: tuple[str, ...] = ()
    user: str = ""
    fallback_user: str = ""
    chat_id: str = ""
    has_tools: bool = False
    options: DifyOptions = DifyOptions()
