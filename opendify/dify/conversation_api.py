"""Responses of Dify's conversation API: the newest messages of a conversation, suggested
follow-up questions, the name of the conversation. No I/O."""

from dataclasses import dataclass
from typing import Any

from opendify.dify.fields import (
    as_list,
    as_object,
    as_string,
    as_strings,
)

# The name of a conversation before Dify has generated one, and where that failed.
_UNNAMED = "New conversation"


@dataclass(frozen=True, slots=True)
class RecordedMessage:
    """A query and its answer as Dify stores them; ``created_at`` is in epoch seconds.

    ``answer`` is empty while the run continues, and often for a stopped run. ``is_complete`` is
    false for a run that failed or waits for human input.
    """

    id: str
    query: str
    answer: str
    created_at: float
    is_complete: bool


def parse_messages(raw: Any) -> list[RecordedMessage]:
    """``GET /messages``: a page of the newest messages, oldest first, as recorded with Dify 1.11.4,
    1.13.2 and 1.16.1."""
    return [_parse_message(as_object(item)) for item in as_list(as_object(raw).get("data"))]


def parse_newest_message(raw: Any) -> str:
    """``GET /messages`` with ``limit=1``: the id of the message, "" where there is none."""
    messages = parse_messages(raw)
    return messages[-1].id if messages else ""


def parse_suggestions(raw: Any) -> list[str]:
    """``GET /messages/{id}/suggested``: the questions that are not empty."""
    questions = as_strings(as_object(raw).get("data"))
    return [question.strip() for question in questions if question.strip()]


def parse_name(raw: Any) -> str:
    """``POST /conversations/{id}/name``: the name, "" where Dify generated none."""
    name = as_string(as_object(raw).get("name")).strip()
    return "" if name == _UNNAMED else name


def _parse_message(raw: dict[str, Any]) -> RecordedMessage:
    created_at = raw.get("created_at")
    return RecordedMessage(
        id=as_string(raw.get("id")),
        query=as_string(raw.get("query")),
        answer=as_string(raw.get("answer")),
        created_at=created_at if isinstance(created_at, int | float) else 0,
        is_complete=raw.get("status", "normal") == "normal",
    )
