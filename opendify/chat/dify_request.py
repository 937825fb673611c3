"""OpenAI's question to Dify's, Dify's counts and names to OpenAI's. No I/O, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opendify.chat import form_inputs
from opendify.config.models import Model
from opendify.dify import endpoints
from opendify.dify.apps import App
from opendify.files.attachments import Prepared
from opendify.files.input_placement import place_files
from opendify.protocols.base import Attachment, DifyOptions, Message

# Bounds what a new conversation is told of the chat before it; the oldest messages go first.
MAX_HISTORY_CHARACTERS = 32_000

_CONTINUE = "Please continue your last answer exactly where it stopped."
_SPEAKERS = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages of a request, told apart: what Dify is asked, and what came before. ``turn``
    is empty where the person sent nothing but files."""

    system: str
    history: tuple[Message, ...]
    turn: str
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class DifyRequest:
    """A question to Dify: where it goes, and the body."""

    path: str
    body: Mapping[str, Any]


def to_prompt(messages: Sequence[Message]) -> Prompt:
    """Takes the last message for the question.

    An answer of the assistant at the end is no question: clients that offer *continue* send the
    history up to it, and so it is asked to go on. Only the files of the last message are new.
    """
    system = "\n\n".join(m.text for m in messages if m.role in ("system", "developer") and m.text)
    spoken = without_system(messages)
    last = spoken[-1]
    if last.role == "assistant":
        return Prompt(system, spoken, _CONTINUE)
    turn = last.text if last.role == "user" else _line(last)
    return Prompt(system, spoken[:-1], turn.strip() and turn, last.attachments)


def without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """What the person, the assistant and the tools have said, without the instructions."""
    return tuple(m for m in messages if m.role not in ("system", "developer"))


def to_dify_request(
    options: DifyOptions,
    dialogue: Prompt,
    model: Model,
    app: App,
    facts: form_inputs.TemplateVars,
    conversation_id: str,
    prepared: Prepared,
    files_only_query: str,
) -> DifyRequest:
    """The question for an app of any mode. ``prepared`` are the files of the turn, and
    ``files_only_query`` is asked where there is nothing else: Dify takes no empty question.

    A conversation that Dify has (``conversation_id``) is sent the last turn alone; a new one is
    told what came before. Raises InvalidRequest where the app's form asks for more.
    """
    dialogue = _with_files(dialogue, prepared, files_only_query)
    filled = _fill_inputs(options, model, facts)
    if dialogue.system and model.system.startswith("input:"):
        filled[model.system.removeprefix("input:")] = dialogue.system
    takes_history = model.history.startswith("input:") and not conversation_id
    if takes_history and (transcript := _transcript(dialogue.history, MAX_HISTORY_CHARACTERS)):
        filled[model.history.removeprefix("input:")] = transcript
    files = [*prepared.files, *options.files]
    path = endpoints.run_path(app.mode, options.workflow_id)
    if app.mode == "workflow":
        body = _workflow_body(dialogue, model, app, filled, files)
    elif app.mode == "completion":
        body = _completion_body(dialogue, model, app, filled, files)
    else:
        body = _chat_body(options, dialogue, model, app, filled, files, conversation_id)
    body |= {"user": facts.user, "response_mode": "streaming"}
    if options.trace_id:
        body["trace_id"] = options.trace_id
    return DifyRequest(path, body)


def ignored_inputs(options: DifyOptions, model: Model) -> tuple[str, ...]:
    """The inputs of the request that have no effect because they are reserved in MODEL_CONFIG,
    each as ``inputs.<name>``."""
    reserved = form_inputs.reserved(model.inputs)
    return tuple(f"inputs.{name}" for name in options.inputs if name in reserved)


def to_query(dialogue: Prompt, model: Model, prepared: Prepared, files_only_query: str) -> str:
    """The ``query`` of the question that ``to_question`` makes for a conversation that Dify has,
    in an app that remembers."""
    return _query(_with_files(dialogue, prepared, files_only_query), model, "any")


def _fill_inputs(
    options: DifyOptions, model: Model, facts: form_inputs.TemplateVars
) -> dict[str, Any]:
    """The inputs of the request over those of the operator, except the operator's reserved ones."""
    filled = form_inputs.fill(model.inputs, facts)
    own = {name: filled[name] for name in form_inputs.reserved(model.inputs)}
    return {**filled, **options.inputs, **own}


def _with_files(dialogue: Prompt, prepared: Prepared, files_only_query: str) -> Prompt:
    turn = "\n\n".join(filter(None, (dialogue.turn, prepared.spoken))) or files_only_query
    return replace(dialogue, turn=turn) if turn != dialogue.turn else dialogue


def _chat_body(
    options: DifyOptions,
    dialogue: Prompt,
    model: Model,
    app: App,
    filled: dict[str, Any],
    files: list[Any],
    conversation_id: str,
) -> dict[str, Any]:
    body = _with_inputs(app, filled, files) | {
        "query": _query(dialogue, model, conversation_id),
        "conversation_id": conversation_id,
        # A name costs a call of the app's model, and in Dify 1.11 a second of waiting.
        "auto_generate_name": options.auto_generate_name,
    }
    if options.workflow_id:
        body["workflow_id"] = options.workflow_id
    return body


def _completion_body(
    dialogue: Prompt, model: Model, app: App, filled: dict[str, Any], files: list[Any]
) -> dict[str, Any]:
    name = form_inputs.text_field(app.form, model.text_input, filled, usual="query")
    query = _fitting_query(dialogue, model, app, name)
    if name:
        filled.setdefault(name, query)
    return _with_inputs(app, filled, files) | {"query": query}


def _workflow_body(
    dialogue: Prompt, model: Model, app: App, filled: dict[str, Any], files: list[Any]
) -> dict[str, Any]:
    name = form_inputs.text_field(app.form, model.text_input, filled)
    if name:
        filled.setdefault(name, _fitting_query(dialogue, model, app, name))
    return _with_inputs(replace(app, beside=None), filled, files)


def _with_inputs(app: App, filled: dict[str, Any], files: list[Any]) -> dict[str, Any]:
    placed, rest = place_files(files, app.form or (), filled, app.beside)
    body: dict[str, Any] = {"inputs": form_inputs.complete(filled | placed, app.form or ())}
    return body | ({"files": rest} if rest else {})


def _fitting_query(dialogue: Prompt, model: Model, app: App, name: str) -> str:
    """The query, with as much of what came before as the input has room for."""
    limit = next((one.max_length for one in app.form or () if one.name == name), 0)
    room = max(0, limit - len(dialogue.system) - len(dialogue.turn) - 100) if limit else None
    return _query(dialogue, model, "", room)


def _query(dialogue: Prompt, model: Model, conversation_id: str, room: int | None = None) -> str:
    parts = []
    if dialogue.system and (
        model.system == "every" or (model.system == "first" and not conversation_id)
    ):
        parts.append(dialogue.system)
    if model.history == "query" and not conversation_id:
        room = MAX_HISTORY_CHARACTERS if room is None else min(room, MAX_HISTORY_CHARACTERS)
        if transcript := _transcript(dialogue.history, room):
            parts += ["The conversation so far:", transcript, "The user now says:"]
    return "\n\n".join([*parts, dialogue.turn])


def _transcript(history: Sequence[Message], room: int) -> str:
    kept: list[str] = []
    for message in reversed(history):
        if not message.text.strip():
            continue
        line = _line(message)
        room -= len(line) + 2
        if room < 0:
            if not kept and room + len(line) > 0:
                kept.append(line[-(room + len(line)) :])
            break
        kept.append(line)
    return "\n\n".join(reversed(kept))


def _line(message: Message) -> str:
    speaker = _SPEAKERS.get(message.role) or f"Tool result ({message.name or 'tool'})"
    return f"{speaker}: {message.text}"
