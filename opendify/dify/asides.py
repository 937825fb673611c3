"""What Dify tells beside an answer: the last message of a conversation, questions that may
follow it, a name for the conversation. No I/O."""

from typing import Any

from opendify.dify.fields import as_list, as_object, as_string, as_strings

# What a conversation is called until it has a name, and after Dify failed to find one.
_UNNAMED = "New conversation"


def parse_newest_message(raw: Any) -> str:
    """``GET /messages`` with ``limit=1``: the id of the message, "" where there is none."""
    messages = as_list(as_object(raw).get("data"))
    return as_string(as_object(messages[-1]).get("id")) if messages else ""


def parse_suggestions(raw: Any) -> list[str]:
    """``GET /messages/{id}/suggested``: the questions, without empty ones."""
    questions = as_strings(as_object(raw).get("data"))
    return [question.strip() for question in questions if question.strip()]


def parse_name(raw: Any) -> str:
    """``POST /conversations/{id}/name``: the name, "" where Dify found none."""
    name = as_string(as_object(raw).get("name")).strip()
    return "" if name == _UNNAMED else name
