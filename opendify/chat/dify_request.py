"""Builds the request to Dify from the client's messages and the app's metadata. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opendify.chat import form_inputs
from opendify.config.models import Model
from opendify.dify import endpoints
from opendify.dify.apps import App
from opendify.files.attachments import PreparedFiles
from opendify.files.input_placement import place_files
from opendify.protocols.base import Attachment, DifyOptions, Message

# Limit for the history that is sent to a new conversation; the oldest messages are dropped first.
MAX_HISTORY_CHARACTERS = 32_000

_CONTINUE = "Please continue your last answer exactly where it stopped."
_SPEAKERS = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages of a request, split into the current turn and what came before. ``turn`` is
    empty where the user sent only files."""

    system: str
    history: tuple[Message, ...]
    turn: str
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class DifyRequest:
    """A request to Dify's app API: path and JSON body."""

    path: str
    body: Mapping[str, Any]


def to_prompt(messages: Sequence[Message]) -> Prompt:
    """Splits the messages; the last one is the current turn.

    Clients that offer *continue* send a history that ends with an assistant message: Dify is then
    asked to continue it. Only the files of the last message are new.
    """
    system = "\n\n".join(m.text for m in messages if m.role in ("system", "developer") and m.text)
    spoken = without_system(messages)
    last = spoken[-1]
    if last.role == "assistant":
        return Prompt(system, spoken, _CONTINUE)
    turn = last.text if last.role == "user" else _line(last)
    return Prompt(system, spoken[:-1], turn.strip() and turn, last.attachments)


def without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages without those of the roles ``system`` and ``developer``."""
    return tuple(m for m in messages if m.role not in ("system", "developer"))


def to_dify_request(
    options: DifyOptions,
    prompt: Prompt,
    model: Model,
    app: App,
    variables: form_inputs.TemplateVars,
    conversation_id: str,
    prepared: PreparedFiles,
    files_only_query: str,
) -> DifyRequest:
    """The request for an app of any mode. ``prepared`` are the files of the turn;
    ``files_only_query`` is the query where there is no text: Dify rejects an empty query.

    An existing conversation (``conversation_id``) gets the last turn only, a new one also the
    history. Raises InvalidRequest where inputs of the app's form are missing or invalid.
    """
    prompt = _with_files(prompt, prepared, files_only_query)
    filled = _fill_inputs(options, model, variables)
    if prompt.system and model.system.startswith("input:"):
        filled[model.system.removeprefix("input:")] = prompt.system
    takes_history = model.history.startswith("input:") and not conversation_id
    if takes_history and (transcript := _transcript(prompt.history, MAX_HISTORY_CHARACTERS)):
        filled[model.history.removeprefix("input:")] = transcript
    files = [*prepared.files, *options.files]
    path = endpoints.run_path(app.mode, options.workflow_id)
    if app.mode == "workflow":
        body = _workflow_body(prompt, model, app, filled, files)
    elif app.mode == "completion":
        body = _completion_body(prompt, model, app, filled, files)
    else:
        body = _chat_body(options, prompt, model, app, filled, files, conversation_id)
    body |= {"user": variables.user, "response_mode": "streaming"}
    if options.trace_id:
        body["trace_id"] = options.trace_id
    return DifyRequest(path, body)


def ignored_inputs(options: DifyOptions, model: Model) -> tuple[str, ...]:
    """The inputs of the request that are ignored because MODEL_CONFIG reserves them, each as
    ``inputs.<name>``."""
    reserved = form_inputs.reserved(model.inputs)
    return tuple(f"inputs.{name}" for name in options.inputs if name in reserved)


def to_query(prompt: Prompt, model: Model, prepared: PreparedFiles, files_only_query: str) -> str:
    """The ``query`` that ``to_dify_request`` sends to an existing conversation."""
    return _query(_with_files(prompt, prepared, files_only_query), model, "any")


def _fill_inputs(
    options: DifyOptions, model: Model, variables: form_inputs.TemplateVars
) -> dict[str, Any]:
    """The operator's inputs, overridden by those of the request except for reserved ones."""
    filled = form_inputs.fill(model.inputs, variables)
    own = {name: filled[name] for name in form_inputs.reserved(model.inputs)}
    return {**filled, **options.inputs, **own}


def _with_files(prompt: Prompt, prepared: PreparedFiles, files_only_query: str) -> Prompt:
    turn = "\n\n".join(filter(None, (prompt.turn, prepared.transcript))) or files_only_query
    return replace(prompt, turn=turn) if turn != prompt.turn else prompt


def _chat_body(
    options: DifyOptions,
    prompt: Prompt,
    model: Model,
    app: App,
    filled: dict[str, Any],
    files: list[Any],
    conversation_id: str,
) -> dict[str, Any]:
    body = _with_inputs(app, filled, files) | {
        "query": _query(prompt, model, conversation_id),
        "conversation_id": conversation_id,
        # Generating a name costs a call of the app's model, and in Dify 1.11 a second of delay.
        "auto_generate_name": options.auto_generate_name,
    }
    if options.workflow_id:
        body["workflow_id"] = options.workflow_id
    return body


def _completion_body(
    prompt: Prompt, model: Model, app: App, filled: dict[str, Any], files: list[Any]
) -> dict[str, Any]:
    name = form_inputs.text_field(app.form, model.text_input, filled, default_name="query")
    query = _fitting_query(prompt, model, app, name)
    if name:
        filled.setdefault(name, query)
    return _with_inputs(app, filled, files) | {"query": query}


def _workflow_body(
    prompt: Prompt, model: Model, app: App, filled: dict[str, Any], files: list[Any]
) -> dict[str, Any]:
    name = form_inputs.text_field(app.form, model.text_input, filled)
    if name:
        filled.setdefault(name, _fitting_query(prompt, model, app, name))
    return _with_inputs(replace(app, message_files=None), filled, files)


def _with_inputs(app: App, filled: dict[str, Any], files: list[Any]) -> dict[str, Any]:
    placed, rest = place_files(files, app.form or (), filled, app.message_files)
    body: dict[str, Any] = {"inputs": form_inputs.complete(filled | placed, app.form or ())}
    return body | ({"files": rest} if rest else {})


def _fitting_query(prompt: Prompt, model: Model, app: App, name: str) -> str:
    """The query, with as much history as fits into the input."""
    limit = next((one.max_length for one in app.form or () if one.name == name), 0)
    max_characters = max(0, limit - len(prompt.system) - len(prompt.turn) - 100) if limit else None
    return _query(prompt, model, "", max_characters)


def _query(
    prompt: Prompt, model: Model, conversation_id: str, max_characters: int | None = None
) -> str:
    parts = []
    if prompt.system and (
        model.system == "every" or (model.system == "first" and not conversation_id)
    ):
        parts.append(prompt.system)
    if model.history == "query" and not conversation_id:
        max_characters = (
            MAX_HISTORY_CHARACTERS
            if max_characters is None
            else min(max_characters, MAX_HISTORY_CHARACTERS)
        )
        if transcript := _transcript(prompt.history, max_characters):
            parts += ["The conversation so far:", transcript, "The user now says:"]
    return "\n\n".join([*parts, prompt.turn])


def _transcript(history: Sequence[Message], max_characters: int) -> str:
    lines: list[str] = []
    for message in reversed(history):
        if not message.text.strip():
            continue
        line = _line(message)
        max_characters -= len(line) + 2
        if max_characters < 0:
            if not lines and max_characters + len(line) > 0:
                lines.append(line[-(max_characters + len(line)) :])
            break
        lines.append(line)
    return "\n\n".join(reversed(lines))


def _line(message: Message) -> str:
    speaker = _SPEAKERS.get(message.role) or f"Tool result ({message.name or 'tool'})"
    return f"{speaker}: {message.text}"
