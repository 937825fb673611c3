"""What a response of any dialect is made of, and who writes it. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from opendify.dify.events import Ids
from opendify.errors import OpenDifyError
from opendify.protocols.base import ChatPrompt
from opendify.rendering.deltas import Completion, Delta


@dataclass(frozen=True, slots=True)
class ResponseMeta:
    """What names a response. ``id`` has no prefix of a dialect, ``created`` is in epoch seconds,
    and ``ids`` are Dify's names for it, as far as Dify has sent them."""

    id: str
    created: int
    model: str
    ids: Ids = field(default_factory=Ids)


@dataclass(frozen=True, slots=True)
class WholeResponse:
    """A response that is complete, for a dialect to put into its form."""

    meta: ResponseMeta
    text: str
    reasoning: str
    completion: Completion


class StreamWriter(Protocol):
    """Writes one response as the event stream of a dialect. Each method returns the bytes to send
    next. ``start`` comes first, ``finish`` or ``fail`` last; ``keep_alive`` and ``fail`` may come
    before ``start``."""

    @property
    def text(self) -> str:
        """The answer as the client has it by now."""

    def start(self, meta: ResponseMeta) -> bytes:
        """The beginning of the response."""

    def write(self, deltas: Sequence[Delta]) -> bytes:
        """What these deltas add."""

    def keep_alive(self) -> bytes:
        """What tells a client that the response is still to come."""

    def fail(self, error: OpenDifyError) -> bytes:
        """The end of a response that failed."""

    def finish(self, meta: ResponseMeta, completion: Completion) -> bytes:
        """The end of a complete response."""


class ParsedRequest(Protocol):
    """A request of a dialect: the prompt, and how its response is written."""

    @property
    def prompt(self) -> ChatPrompt: ...

    @property
    def ignored(self) -> Sequence[str]:
        """The names of the fields that have no effect."""

    def new_writer(self) -> StreamWriter:
        """For a streamed response."""

    def to_json(self, response: WholeResponse) -> dict[str, Any]:
        """For a whole one."""


def dify_metadata(meta: ResponseMeta, completion: Completion) -> dict[str, Any]:
    """What a response says of Dify, for clients that know Dify: its ids as far as they are known,
    the passages of knowledge bases, and how the run ended."""
    fields = {
        "conversation_id": meta.ids.conversation_id,
        "message_id": meta.ids.message_id,
        "task_id": meta.ids.task_id,
        "workflow_run_id": meta.ids.workflow_run_id,
        "retriever_resources": list(completion.resources),
        "status": completion.run_status,
    }
    return {name: value for name, value in fields.items() if value}
