"""Builds the request to Dify from the client's messages and the app's metadata. No I/O."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opendify.chat import form_inputs, history_frame
from opendify.config.history_words import ENGLISH, HistoryWords, WordsByLanguage
from opendify.config.models import Model
from opendify.conversations.fingerprint import system_digest
from opendify.dify import endpoints
from opendify.dify.apps import App
from opendify.files.attachments import PreparedFiles
from opendify.files.input_placement import place_files
from opendify.protocols.base import Attachment, DifyOptions, Message
from opendify.protocols.turns import INSTRUCTION_ROLES, Turn, split_turn

_INPUT = "input:"
_WORDS = WordsByLanguage()
_TRACE_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages of a request, split into the current turn and what came before.

    ``turn`` is the text of the turn, empty where the user sent only files. ``messages`` are the
    client's messages that make up the turn, without system messages: none where an answer is to be
    continued (``is_continuation``), which is then the last message of ``history``.
    ``is_auxiliary``: the client asks something about the chat, outside of it. ``words`` are in the
    language of the question.
    """

    system: str
    history: tuple[Message, ...]
    turn: str
    attachments: tuple[Attachment, ...] = ()
    messages: tuple[Message, ...] = ()
    is_auxiliary: bool = False
    is_continuation: bool = False
    words: HistoryWords = ENGLISH

    @property
    def instructions(self) -> str:
        """The system messages, also those that are asked."""
        is_asked = not self.messages and not self.is_continuation
        return "\n\n".join(filter(None, (self.system, self.turn if is_asked else "")))

    @property
    def is_about_history(self) -> bool:
        """Whether the turn means nothing without the earlier messages."""
        return self.is_auxiliary or self.is_continuation


@dataclass(frozen=True, slots=True)
class DifyRequest:
    """A request to Dify's app API: path and JSON body."""

    path: str
    body: Mapping[str, Any]


def to_prompt(messages: Sequence[Message], words: WordsByLanguage = _WORDS) -> Prompt:
    """Splits the messages into the current turn and what came before; they must ask something.

    Clients that offer *continue* send a history that ends with an assistant message: Dify is then
    asked to continue it. Only the files of the turn are new.
    """
    turn = split_turn(messages)
    chosen = history_frame.choose_words(words, _texts_of_the_user(turn))
    if turn.is_continuation:
        text = chosen.continue_answer
    else:
        texts = (_asked_text(message, chosen) for message in turn.asked)
        text = "\n\n".join(text for text in texts if text.strip())
    return Prompt(
        system="\n\n".join(message.text for message in turn.instructions),
        history=turn.history,
        turn=text,
        attachments=tuple(file for message in turn.asked for file in message.attachments),
        messages=turn.messages,
        is_auxiliary=turn.is_auxiliary,
        is_continuation=turn.is_continuation,
        words=chosen,
    )


def _texts_of_the_user(turn: Turn) -> Iterator[str]:
    """What tells the language of the question, best first."""
    for message in reversed((*turn.history, *turn.asked)):
        if message.role == "user" or message.role in INSTRUCTION_ROLES:
            yield message.text


def _asked_text(message: Message, words: HistoryWords) -> str:
    if message.role in ("tool", "function"):
        return history_frame.spoken(message, words)
    return message.text


def to_dify_request(
    options: DifyOptions,
    prompt: Prompt,
    model: Model,
    app: App,
    variables: form_inputs.TemplateVars,
    conversation_id: str,
    prepared: PreparedFiles,
    files_only_query: str,
    sent_system: str = "",
) -> DifyRequest:
    """The request for an app of any mode. ``prepared`` are the files of the turn;
    ``files_only_query`` is the query where there is no text: Dify rejects an empty query.
    ``sent_system`` is the digest of the system prompt that the conversation was given last, ""
    where that is not known.

    An existing conversation (``conversation_id``) gets the last turn only, a new one also the
    history. Raises InvalidRequest where inputs of the app's form are missing or invalid.
    """
    prompt = _with_files(prompt, prepared, files_only_query)
    filled = _fill_inputs(options, model, variables)
    filled |= _texts_for_inputs(prompt, model, app, is_new=not conversation_id)
    if not includes_system(prompt, model, not conversation_id, sent_system):
        prompt = replace(prompt, system="")
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
    if variables.chat_id:
        # Dify after 1.16 groups its traces by it; earlier ones ignore unknown fields.
        body["trace_session_id"] = _trace_session(variables.chat_id)
    return DifyRequest(path, body)


def _trace_session(chat_id: str) -> str:
    """The name of a chat in traces, in the characters that Dify takes in ``trace_id``."""
    is_plain = _TRACE_NAME.fullmatch(chat_id)
    return chat_id if is_plain else hashlib.sha256(chat_id.encode("utf-8", "replace")).hexdigest()


def ignored_inputs(options: DifyOptions, model: Model) -> tuple[str, ...]:
    """The inputs of the request that are ignored because MODEL_CONFIG reserves them, each as
    ``inputs.<name>``."""
    reserved = form_inputs.reserved(model.inputs)
    return tuple(f"inputs.{name}" for name in options.inputs if name in reserved)


def to_query(
    prompt: Prompt, model: Model, prepared: PreparedFiles, files_only_query: str, sent_system: str
) -> str:
    """The ``query`` that ``to_dify_request`` sends to an existing conversation."""
    includes = includes_system(prompt, model, False, sent_system)
    prompt = _with_files(prompt, prepared, files_only_query)
    return _query(prompt if includes else replace(prompt, system=""), "")


def includes_system(prompt: Prompt, model: Model, is_new: bool, sent_system: str) -> bool:
    """Whether the query begins with the system prompt. ``is_new``: in a new conversation;
    ``sent_system`` is the digest of what an existing one was given last. Where that is not known,
    it was given the system prompt at its beginning."""
    if not prompt.system:
        return False
    is_changed = bool(sent_system) and sent_system != system_digest(prompt.system)
    match model.system:
        case "every":
            return True
        case "changed":
            return is_new or is_changed
        case "first":
            return is_new
    return False


def _fill_inputs(
    options: DifyOptions, model: Model, variables: form_inputs.TemplateVars
) -> dict[str, Any]:
    """The operator's inputs, overridden by those of the request except for reserved ones."""
    filled = form_inputs.fill(model.inputs, variables)
    own = {name: filled[name] for name in form_inputs.reserved(model.inputs)}
    return {**filled, **options.inputs, **own}


def _texts_for_inputs(prompt: Prompt, model: Model, app: App, is_new: bool) -> dict[str, str]:
    """The system prompt and, in a new conversation, the history, where the operator wants them in
    inputs of the app."""
    texts: dict[str, str] = {}
    if model.system.startswith(_INPUT):
        texts[model.system.removeprefix(_INPUT)] = prompt.system
    if model.history.startswith(_INPUT) and is_new:
        name = model.history.removeprefix(_INPUT)
        max_chars = _max_length(app, name) or model.history_max_chars
        texts[name] = _transcript(prompt, model, max_chars)
    return {name: text for name, text in texts.items() if text}


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
    history = "" if conversation_id else _history(prompt, model, app)
    body = _with_inputs(app, filled, files) | {
        "query": _query(prompt, history),
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
    limit = _max_length(app, name)
    if not limit:
        return _query(prompt, _history(prompt, model, app))
    shortest = len(_query(prompt, "-")) - 1
    return _query(prompt, _history(prompt, model, app, max(0, limit - shortest)))


def _max_length(app: App, name: str) -> int:
    """How long an input of the app may be; 0 where that is not limited."""
    return next((field.max_length for field in app.form or () if field.name == name), 0)


def _query(prompt: Prompt, history: str) -> str:
    parts = [prompt.system] if prompt.system else []
    if history:
        parts += [prompt.words.history_heading, history, prompt.words.question_heading]
    return "\n\n".join([*parts, prompt.turn])


def _history(prompt: Prompt, model: Model, app: App, max_chars: int | None = None) -> str:
    """The earlier messages that stand in the query of a new conversation."""
    # Apps without a memory are made for single texts: one that translates would translate these.
    takes_history = endpoints.has_conversations(app.mode) or prompt.is_about_history
    place = model.history or ("query" if takes_history else "drop")
    return _transcript(prompt, model, max_chars) if place == "query" else ""


def _transcript(prompt: Prompt, model: Model, max_chars: int | None = None) -> str:
    limits = [model.history_max_chars, *([] if max_chars is None else [max_chars])]
    return history_frame.transcript(prompt.history, prompt.words, min(limits))
