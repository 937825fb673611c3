"""Detects background tasks: requests that serve Open WebUI itself and not a user. No I/O.

Open WebUI also uses the model of a chat to generate the chat's title, tags, follow-up questions,
search queries and the like, with the id of that chat. The header ``X-OpenWebUI-Task`` names the
task if the connection sends it; else a task is detected by its shape (recorded with Open WebUI
0.12): not streamed, without ``tools``, and a single user message that starts with ``### Task:`` and
contains the chat in a block. A user's turn with a file starts with ``### Task:`` too, but its first
block is the ``<context>`` to answer from.
"""

import json
import re
from typing import Any

from opendify.protocols.base import ChatPrompt

TITLE = "title_generation"
FOLLOW_UPS = "follow_up_generation"
MERGED_ANSWER = "moa_response_generation"
COMPACTION = "context_compaction"
UNKNOWN = "task"

# The answer to each task is a JSON object with this one key; the second item is its empty value.
_SHAPES: dict[str, tuple[str, str | list[str]]] = {
    TITLE: ("title", ""),
    "tags_generation": ("tags", []),
    FOLLOW_UPS: ("follow_ups", []),
    "query_generation": ("queries", []),
    "autocomplete_generation": ("text", ""),
    "image_prompt_generation": ("prompt", ""),
    "function_calling": ("tool_calls", []),
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


def detect(chat: ChatPrompt, header_task: str) -> str:
    """The kind of background task, by Open WebUI's name; "" for a chat turn.

    ``header_task`` is the value of the request's header, empty where there is none. A header that
    still contains its template (``{{TASK}}``, before Open WebUI 0.10) is ignored.
    """
    task = header_task.strip()
    if task and not task.startswith("{{"):
        return task if task in _SHAPES or task in _PLAIN_KINDS else UNKNOWN
    if chat.stream or chat.has_tools or len(chat.messages) != 1:
        return ""
    (message,) = chat.messages
    prompt = message.text.lstrip()
    if message.role != "user" or message.attachments or not prompt.startswith(_START):
        return ""
    return _kind(prompt)


def policy(setting: str, kind: str, mode: str) -> str:
    """How a task is answered: ``throwaway``, ``local`` or ``model:<name>``.

    The model's ``setting`` takes precedence; ``mode`` is that of its app. Runs of agents and graphs
    have side effects and costs, so by default they are not started for a title. The merged answer
    of several models, however, is one that a user waits for.
    """
    if setting:
        return setting
    return "throwaway" if mode in ("chat", "completion") or kind == MERGED_ANSWER else "local"


def empty_answer(kind: str, prompt: str) -> str:
    """An empty answer in the format that the task requires."""
    if kind == UNKNOWN:
        kind = _kind_by_shape(prompt)
    return _to_json(*_SHAPES[kind]) if kind in _SHAPES else ""


def answer(kind: str, content: str | list[str]) -> str:
    """The answer to a title or follow-up task."""
    return _to_json(_SHAPES[kind][0], content)


def _kind(prompt: str) -> str:
    before, history, _ = _around_history(prompt)
    if not history:
        return COMPACTION if _COMPACTION_HEADING in prompt and _CONTEXT not in prompt else ""
    if _CONTEXT in before:
        return ""
    return _kind_by_shape(prompt)


def _kind_by_shape(prompt: str) -> str:
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


def _to_json(key: str, content: Any) -> str:
    return json.dumps({key: content}, ensure_ascii=False, separators=(",", ":"))
