"""The parts of a response, and the interface of the writers for each client API. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from opendify.dify.events import Ids
from opendify.errors import OpenDifyError
from opendify.protocols.base import ChatPrompt
from opendify.rendering.deltas import Completion, Delta


@dataclass(frozen=True, slots=True)
class ResponseMeta:
    """Identifies a response. ``id`` has no API-specific prefix, ``created`` is in epoch seconds,
    and ``ids`` are Dify's ids as far as Dify has sent them."""

    id: str
    created: int
    model: str
    ids: Ids = field(default_factory=Ids)


@dataclass(frozen=True, slots=True)
class WholeResponse:
    """A complete response, to be formatted by a client API."""

    meta: ResponseMeta
    text: str
    reasoning: str
    completion: Completion


class StreamWriter(Protocol):
    """Writes one response as the event stream of a client API. Each method returns the bytes to
    send next. ``start`` is called first, ``finish`` or ``fail`` last; ``keep_alive`` and ``fail``
    may be called before ``start``."""

    @property
    def text(self) -> str:
        """The answer text that the client has received so far."""

    def start(self, meta: ResponseMeta) -> bytes:
        """The beginning of the response."""

    def write(self, deltas: Sequence[Delta]) -> bytes:
        """The next part of the response."""

    def keep_alive(self) -> bytes:
        """A message without content that keeps the connection from timing out."""

    def fail(self, error: OpenDifyError) -> bytes:
        """The end of a response that failed."""

    def finish(self, meta: ResponseMeta, completion: Completion) -> bytes:
        """The end of a complete response."""


class ParsedRequest(Protocol):
    """A parsed request of a client API, which also formats its response."""

    @property
    def prompt(self) -> ChatPrompt: ...

    @property
    def ignored(self) -> Sequence[str]:
        """The names of the fields that have no effect."""

    def new_writer(self) -> StreamWriter:
        """The writer of a streamed response."""

    def to_json(self, response: WholeResponse) -> dict[str, Any]:
        """The JSON body of a response that is not streamed."""


def dify_metadata(meta: ResponseMeta, completion: Completion) -> dict[str, Any]:
    """The Dify-specific part of a response: Dify's ids as far as known, the cited knowledge base
    passages, and the status of the run."""
    fields = {
        "conversation_id": meta.ids.conversation_id,
        "message_id": meta.ids.message_id,
        "task_id": meta.ids.task_id,
        "workflow_run_id": meta.ids.workflow_run_id,
        "retriever_resources": list(completion.resources),
        "status": completion.run_status,
    }
    return {name: value for name, value in fields.items() if value}
