"""What a background task is, whichever client asks for it, and who answers it. No I/O.

A background task is a request that serves the client and is no turn of a chat: a title, tags,
search queries, a summary that the client sends later in place of old messages.
"""

import json
from dataclasses import dataclass

from opendify.config.models import Model

# Open WebUI's names of its tasks serve for the same tasks of other clients.
TITLE = "title_generation"
FOLLOW_UPS = "follow_up_generation"
MERGED_ANSWER = "moa_response_generation"
COMPACTION = "context_compaction"
UNKNOWN = "task"
TRANSLATION = "translation"
QUERIES = "query_generation"
TEXT = "text_generation"

# Tasks whose answer somebody needs: a person who waits for it, or the client, which goes on with a
# summary in place of what was said. An empty answer would be a wrong one.
_NEED_A_RUN = frozenset({MERGED_ANSWER, COMPACTION, TRANSLATION, TEXT})

_LOCAL, _THROWAWAY = "local", "throwaway"


@dataclass(frozen=True, slots=True)
class Task:
    """A background task, and the form of its answer: plain text, or with a ``key`` a JSON object
    that has the content under this key, and empty texts under ``other_keys``.

    ``default`` is the content where nothing better is known. ``asks_in_system`` is true where the
    instruction is a system message, which Dify's apps do not have.
    """

    kind: str
    key: str = ""
    default: str | tuple[str, ...] = ""
    other_keys: tuple[str, ...] = ()
    asks_in_system: bool = False

    def answer(self, content: str | list[str] = "") -> str:
        """The answer with this content, or without one the default answer."""
        content = content or (self.default if isinstance(self.default, str) else [*self.default])
        if not self.key:
            return content if isinstance(content, str) else ""
        fields = {self.key: content} | dict.fromkeys(self.other_keys, "")
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def policy(model: Model, task: Task) -> str:
    """How a task is answered: ``throwaway``, ``local`` or ``model:<name>``, as the setting of the
    model says."""
    return model.tasks or default_policy(model, task)


def default_policy(model: Model, task: Task) -> str:
    """How a task is answered where nothing is set: without a run, except where the answer is needed
    or the model is there for such requests."""
    return _THROWAWAY if task.kind in _NEED_A_RUN or not model.keep else _LOCAL
