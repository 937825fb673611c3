"""Detects background tasks: requests that serve the client itself and not a user. No I/O.

Open WebUI also uses the model of a chat to generate the chat's title, tags, follow-up questions,
search queries and the like, with the id of that chat. The header ``X-OpenWebUI-Task`` names the
task if the connection sends it, ``metadata.task`` of the body if a filter or a pipe passes it on;
else a task is detected by its shape (recorded with Open WebUI 0.12): not streamed, without
``tools``, and apart from system messages a single user message that starts with ``### Task:`` and
contains the chat in a block. A user's turn with a file starts with ``### Task:`` too, but its first
block is the ``<context>`` to answer from.

The tasks of other clients are in ``client_tasks``.
"""

import re

from opendify.chat import client_tasks
from opendify.chat.tasks import (
    COMPACTION,
    FOLLOW_UPS,
    MERGED_ANSWER,
    QUERIES,
    TITLE,
    UNKNOWN,
    Task,
)
from opendify.protocols.base import ChatPrompt

# The answer to each task is a JSON object with this one key; the second item is its empty value.
_SHAPES: dict[str, tuple[str, str | tuple[str, ...]]] = {
    TITLE: ("title", ""),
    "tags_generation": ("tags", ()),
    FOLLOW_UPS: ("follow_ups", ()),
    QUERIES: ("queries", ()),
    "autocomplete_generation": ("text", ""),
    "image_prompt_generation": ("prompt", ""),
    "function_calling": ("tool_calls", ()),
}
_PLAIN_KINDS = ("emoji_generation", MERGED_ANSWER, COMPACTION)
_KINDS_BY_KEY = {key: kind for kind, (key, _) in _SHAPES.items()}
_ASKED_KEY = re.compile(rf'"({"|".join(_KINDS_BY_KEY)})"\s*:')
_NAMED_KEY = re.compile(rf'"({"|".join(_KINDS_BY_KEY)})"')

_START = "### Task:"
_HISTORY_START, _HISTORY_END = "<chat_history>", "</chat_history>"
_CONTEXT = "<context>"
# From the default prompt of Open WebUI 0.10 and later, whose summary is plain text.
_COMPACTION_HEADING = "\n### Messages Being Compacted:\n"


def detect(chat: ChatPrompt, header_task: str) -> Task | None:
    """The background task that a request is; None for a turn of a chat.

    ``header_task`` is the value of the request's header, empty where there is none. A header that
    still contains its template (``{{TASK}}``, before Open WebUI 0.10) is ignored. So is a name in
    the body that is none of Open WebUI's: applications have a ``metadata.task`` of their own.
    """
    task = header_task.strip()
    if task and not task.startswith("{{"):
        return _task(task if _is_known(task) else UNKNOWN, chat)
    if _is_known(chat.task):
        return _task(chat.task, chat)
    kind = _kind_by_form(chat)
    return _task(kind, chat) if kind else client_tasks.find(chat)


def _is_known(task: str) -> bool:
    return task in _SHAPES or task in _PLAIN_KINDS


def _task(kind: str, chat: ChatPrompt) -> Task:
    """The task of this kind; the form of the answer to an unknown one is read off its prompt."""
    shape = _kind_by_key(chat.messages[-1].text) if kind == UNKNOWN else kind
    return Task(kind, *_SHAPES.get(shape, ("", "")))


def _kind_by_form(chat: ChatPrompt) -> str:
    if chat.stream or chat.has_tools:
        return ""
    *before, message = chat.messages
    prompt = message.text.lstrip()
    if message.role != "user" or message.attachments or not prompt.startswith(_START):
        return ""
    if any(one.role not in ("system", "developer") for one in before):
        return ""
    return _kind(prompt)


def _kind(prompt: str) -> str:
    before, history, _ = _around_history(prompt)
    if not history:
        return COMPACTION if _COMPACTION_HEADING in prompt and _CONTEXT not in prompt else ""
    if _CONTEXT in before:
        return ""
    return _kind_by_key(prompt)


def _kind_by_key(prompt: str) -> str:
    """The kind by the key of the requested JSON object. The chat itself is skipped: it may contain
    any text."""
    before, _, after = _around_history(prompt)
    instructions = before + after
    asked = _ASKED_KEY.search(instructions) or _NAMED_KEY.search(instructions)
    return _KINDS_BY_KEY[asked[1]] if asked else UNKNOWN


def _around_history(prompt: str) -> tuple[str, str, str]:
    """The prompt split into the text before the chat, the chat, and the text after it."""
    before, start, rest = prompt.partition(_HISTORY_START)
    history, end, after = rest.rpartition(_HISTORY_END)
    return (before, start + history + end, after) if end else (prompt, "", "")
