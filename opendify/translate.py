"""OpenAI's question to Dify's, Dify's answer to OpenAI's. No I/O, no clock."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opendify.config.models import Model
from opendify.dify.events import Ids, Usage
from opendify.openai.answers import Tokens
from opendify.openai.messages import Message
from opendify.openai.requests import ChatRequest

# Bounds what a new conversation is told of the chat before it; the oldest messages go first.
MAX_HISTORY_CHARACTERS = 32_000

_CONTINUE = "Please continue your last answer exactly where it stopped."
_ONLY_FILES = "Please look at what is attached."
_SPEAKERS = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The messages of a request, told apart: what Dify is asked, and what came before."""

    system: str
    history: tuple[Message, ...]
    turn: str


def to_dialogue(messages: Sequence[Message]) -> Dialogue:
    """Takes the last message for the question.

    An answer of the assistant at the end is no question: clients that offer *continue* send the
    history up to it, and so it is asked to go on.
    """
    system = "\n\n".join(m.text for m in messages if m.role in ("system", "developer") and m.text)
    spoken = tuple(m for m in messages if m.role not in ("system", "developer"))
    last = spoken[-1]
    if last.role == "assistant":
        return Dialogue(system, spoken, _CONTINUE)
    turn = last.text if last.role == "user" else _line(last)
    return Dialogue(system, spoken[:-1], (turn.strip() and turn) or _ONLY_FILES)


def to_dify(request: ChatRequest, model: Model, user: str, conversation_id: str) -> dict[str, Any]:
    """The body of ``POST /chat-messages``.

    A conversation that Dify has (``conversation_id``) is sent the last turn alone; a new one is
    told what came before. ``auto_generate_name`` is false unless asked for: it costs a call of the
    app's model, and a second of waiting in Dify 1.11.
    """
    dialogue = to_dialogue(request.messages)
    inputs = {**model.inputs, **request.extras.inputs}
    parts = []
    before_query = model.system == "every" or (model.system == "first" and not conversation_id)
    if dialogue.system and before_query:
        parts.append(dialogue.system)
    if dialogue.system and model.system.startswith("input:"):
        inputs[model.system.removeprefix("input:")] = dialogue.system
    transcript = "" if conversation_id else _transcript(dialogue.history)
    if transcript and model.history == "query":
        parts += ["The conversation so far:", transcript, "The user now says:"]
    if transcript and model.history.startswith("input:"):
        inputs[model.history.removeprefix("input:")] = transcript
    body: dict[str, Any] = {
        "inputs": inputs,
        "query": "\n\n".join([*parts, dialogue.turn]),
        "user": user,
        "response_mode": "streaming",
        "conversation_id": conversation_id,
        "auto_generate_name": request.extras.auto_generate_name,
    }
    return body | _passed_through(request)


def to_tokens(usage: Usage | None) -> Tokens:
    """OpenAI's counts; zeros where Dify told none."""
    if usage is None:
        return Tokens(0, 0, 0)
    return Tokens(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


def to_extension(ids: Ids) -> Mapping[str, str]:
    """Dify's names for this answer, as far as it has told them."""
    named = {
        "conversation_id": ids.conversation_id,
        "message_id": ids.message_id,
        "task_id": ids.task_id,
        "workflow_run_id": ids.workflow_run_id,
    }
    return {name: value for name, value in named.items() if value}


def _passed_through(request: ChatRequest) -> dict[str, Any]:
    extras = request.extras
    fields = {
        "files": list(extras.files),
        "workflow_id": extras.workflow_id,
        "trace_id": extras.trace_id,
    }
    return {name: value for name, value in fields.items() if value}


def _transcript(history: Iterable[Message]) -> str:
    lines = [_line(message) for message in history if message.text.strip()]
    kept: list[str] = []
    length = 0
    for line in reversed(lines):
        length += len(line)
        if kept and length > MAX_HISTORY_CHARACTERS:
            break
        kept.append(line[-MAX_HISTORY_CHARACTERS:])
    return "\n\n".join(reversed(kept))


def _line(message: Message) -> str:
    speaker = _SPEAKERS.get(message.role) or f"Tool result ({message.name or 'tool'})"
    return f"{speaker}: {message.text}"
