"""ChatPrompt, the request that every client API is parsed into. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file of a message.

    ``kind`` is ``image``, ``audio``, ``video`` or ``file``. Exactly one is set of ``url`` (http or
    https), ``data`` (base64, with ``media_type`` and ``name`` if the caller sent them) and
    ``file_id`` (of an earlier upload). ``path`` is its position in the request body.
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
    """One message. ``role`` is ``system``, ``developer``, ``user``, ``assistant``, ``tool`` or
    ``function``; ``text`` is its text parts joined with line breaks. ``unusable`` are the kinds, as
    of ``Attachment``, of files that are mentioned only: an earlier message may hold files whose
    addresses mean something to its client alone."""

    role: str
    text: str
    attachments: tuple[Attachment, ...] = ()
    name: str = ""
    unusable: tuple[str, ...] = ()

    @property
    def is_blank(self) -> bool:
        """Whether it holds neither text nor a file."""
        return not (self.attachments or self.unusable or self.text.strip())


@dataclass(frozen=True, slots=True)
class DifyOptions:
    """The fields of a request body that are passed to Dify, with Dify's names."""

    conversation_id: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Mapping[str, Any], ...] = ()
    auto_generate_name: bool = False
    workflow_id: str = ""
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A chat request, independent of the client's API.

    ``user``, ``chat_id`` and ``task`` are those of the body, empty where it has none;
    ``fallback_user`` is used where nothing else names the user. ``has_tools`` is true also for an
    empty list of tools.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    stop: tuple[str, ...] = ()
    user: str = ""
    fallback_user: str = ""
    chat_id: str = ""
    task: str = ""
    has_tools: bool = False
    options: DifyOptions = DifyOptions()
