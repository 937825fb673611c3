"""Background tasks: which requests serve Open WebUI itself and not a person. No I/O.

Open WebUI asks the model of a chat also for the chat's title, its tags, follow-up questions,
search queries and the like, under the chat's own id. Where the connection sends the header
``X-OpenWebUI-Task`` it names the task; else its shape tells it (recorded with Open WebUI 0.12):
not streamed, without ``tools``, and one single message, of the user, that starts with
``### Task:`` and holds the chat in a block. A person's turn with a file starts with
``### Task:`` too, but the block that comes first in it is the ``<context>`` to answer from.
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

# What each task's answer is: a JSON object with this one key, which is empty so.
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
_COMPACTED = "\n### Messages Being Compacted:\n"


def detect(chat: ChatPrompt, header_task: str) -> str:
    """The kind of background task that this request is, by Open WebUI's name; "" for a turn.

    ``header_task`` is what the request's header says of it, empty where there is none. A header
    that still holds its template (``{{TASK}}``, before Open WebUI 0.10) says nothing.
    """
    told = header_task.strip()
    if told and not told.startswith("{{"):
        return told if told in _SHAPES or told in _PLAIN_KINDS else UNKNOWN
    if chat.stream or chat.has_tools or len(chat.messages) != 1:
        return ""
    (message,) = chat.messages
    prompt = message.text.lstrip()
    if message.role != "user" or message.attachments or not prompt.startswith(_START):
        return ""
    return _kind(prompt)


def policy(setting: str, kind: str, mode: str) -> str:
    """What a task gets: ``throwaway``, ``local`` or ``model:<name>``.

    ``setting`` is that of the model, which wins; ``mode`` is that of its app. Runs of agents and
    graphs act and cost, so where nothing is set they are not started for a title. The merged
    answer of several models is what a person asked for and waits to read.
    """
    if setting:
        return setting
    return "throwaway" if mode in ("chat", "completion") or kind == MERGED_ANSWER else "local"


def empty_answer(kind: str, prompt: str) -> str:
    """An answer without content, in the shape that the task asks for."""
    if kind == UNKNOWN:
        kind = _kind_by_shape(prompt)
    return _written(*_SHAPES[kind]) if kind in _SHAPES else ""


def answer(kind: str, content: str | list[str]) -> str:
    """The answer to a title or follow-up task."""
    return _written(_SHAPES[kind][0], content)


def _kind(prompt: str) -> str:
    before, history, _ = _around_history(prompt)
    if not history:
        return COMPACTION if _COMPACTED in prompt and _CONTEXT not in prompt else ""
    if _CONTEXT in before:
        return ""
    return _kind_by_shape(prompt)


def _kind_by_shape(prompt: str) -> str:
    """By the key of the JSON object that is asked for; the chat itself may hold any words."""
    before, _, after = _around_history(prompt)
    instructions = before + after
    asked = _ASKED_KEY.search(instructions) or _NAMED_KEY.search(instructions)
    return _KINDS_BY_KEY[asked[1]] if asked else UNKNOWN


def _around_history(prompt: str) -> tuple[str, str, str]:
    """What stands before the chat, the chat, and what stands after it."""
    before, start, rest = prompt.partition(_HISTORY_START)
    history, end, after = rest.rpartition(_HISTORY_END)
    return (before, start + history + end, after) if end else (prompt, "", "")


def _written(key: str, content: Any) -> str:
    return json.dumps({key: content}, ensure_ascii=False, separators=(",", ":"))
