"""What a chat turn works with: the request that it answers, and the services of the process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opendify.config.models import Model
from opendify.conversations.processes import ProcessRegistry
from opendify.conversations.store.base import ConversationStore
from opendify.upstream.app_registry import AppRegistry
from opendify.upstream.cancellation import Cancellation
from opendify.upstream.client import DifyClient
from opendify.upstream.file_proxy import FileProxy
from opendify.upstream.uploads import Uploads


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who sends a request, and from where.

    ``name`` identifies the API key without containing it. ``models`` are the models that the caller
    may use. ``chat_id`` is empty for a request outside any chat; ``is_temporary_chat`` is true
    where the client itself does not store the chat, ``sends_whole_history`` where it is known to
    send all messages of the chat each time. ``is_named_user`` is false where all callers
    without a user share one name. ``cancellation`` ends waits early. ``task`` is the background
    task that the request's header names. ``trace_id`` names the request in Dify's traces.
    ``answer_id`` is the client's id of the answer, and ``parent_answer_id`` that of the answer
    before it: "" for the first turn, None where the client does not send it.
    """

    name: str
    models: Mapping[str, Model]
    user: str
    chat_id: str
    cancellation: Cancellation
    role: str = ""
    in_open_webui: bool = False
    sends_whole_history: bool = False
    task: str = ""
    trace_id: str = ""
    answer_id: str = ""
    parent_answer_id: str | None = None
    is_named_user: bool = False
    is_temporary_chat: bool = False


@dataclass(frozen=True, slots=True)
class Services:
    """The services that all turns of a process share. ``now`` returns epoch seconds;
    ``files_only_query`` is the query for a message that consists of files only."""

    client: DifyClient
    app_registry: AppRegistry
    conversations: ConversationStore
    uploads: Uploads
    processes: ProcessRegistry
    file_proxy: FileProxy
    now: Callable[[], float]
    files_only_query: str
