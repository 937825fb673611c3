"""What Dify tells beside an answer: the last message of a conversation, questions that may
follow it, a name for the conversation. No I/O."""

from typing import Any

# What a conversation is called until it has a name, and after Dify failed to find one.
_UNNAMED = "New conversation"


def parse_newest_message(raw: Any) -> str:
    """``GET /messages`` with ``limit=1``: the id of the message, "" where there is none."""
    messages = raw.get("data") if isinstance(raw, dict) else None
    newest = messages[-1] if isinstance(messages, list) and messages else None
    id_ = newest.get("id") if isinstance(newest, dict) else None
    return id_ if isinstance(id_, str) else ""


def parse_suggestions(raw: Any) -> list[str]:
    """``GET /messages/{id}/suggested``: the questions, without empty ones."""
    questions = raw.get("data") if isinstance(raw, dict) else None
    if not isinstance(questions, list):
        return []
    return [one.strip() for one in questions if isinstance(one, str) and one.strip()]


def parse_name(raw: Any) -> str:
    """``POST /conversations/{id}/name``: the name, "" where Dify found none."""
    name = raw.get("name") if isinstance(raw, dict) else None
    name = name.strip() if isinstance(name, str) else ""
    return "" if name == _UNNAMED else name
