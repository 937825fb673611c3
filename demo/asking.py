"""The endpoints that ask an app for an answer, and the one that stops it."""

import mimetypes
import uuid
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from demo.calls import WRONG_ROUTE, Call, Refusal, Rejected, Reply, invalid
from demo.events import paced
from demo.shapes import Event, Run, usage
from demo.state import Conversation, File, Task, Turn

UNAVAILABLE = "App unavailable, please check your app configurations."


def chat(call: Call) -> Reply | Run:
    call.need_user()
    call.need_chat()
    query = call.fields.get("query")
    if not isinstance(query, str):
        raise invalid("1 validation error for ChatRequestPayload\nquery\n  Field required")
    return _begin(call, query, "ChatRequestPayload")


def completion(call: Call) -> Reply | Run:
    call.need_user()
    if call.app.mode != "completion":
        raise Refusal(400, "app_unavailable", UNAVAILABLE)
    return _begin(call, None, "CompletionRequestPayload")


def workflow(call: Call) -> Reply | Run:
    call.need_user()
    if call.app.mode != "workflow":
        raise Refusal(400, "not_workflow_app", WRONG_ROUTE)
    return _begin(call, None, "WorkflowRunPayload")


def stop(call: Call, task_id: str) -> Reply:
    """Always a success; the task of another user goes on, except in a flow."""
    call.need_user()
    task = call.memory.tasks.get(task_id)
    if task and task.app == call.key and (task.user == call.user or call.app.is_flow):
        task.stopped.set()
    return Reply(200, {"result": "success"})


def finish(run: Run, *, heard: bool) -> None:
    """Write the answer down. Of one whose caller left, only flows keep the text (1.13)."""
    run.memory.tasks.pop(run.task.id, None)
    run.turn.usage = usage(run)
    if heard or run.app.is_flow:
        run.turn.answer = run.text


def _begin(call: Call, query: str | None, payload: str) -> Reply | Run:
    """A run to be streamed; without ``response_mode: streaming`` the answer at its end. Without
    a ``query`` it is the input of this name."""
    mode = call.fields.get("response_mode") or "blocking"
    if mode not in ("streaming", "blocking"):
        raise invalid(f"{mode} is not a valid response_mode")
    if mode == "blocking" and call.app.mode == "agent-chat":
        raise invalid("Agent Chat App does not support blocking mode")
    if mode == "blocking" and call.app.mode == "agent":
        problem = "Agent App only supports streaming response mode."
        raise Refusal(400, "bad_request", problem)
    given = _given(call, payload)
    try:
        if query == "":
            raise Rejected("query is required")
        inputs, files = _inputs(call, given)
    except Rejected as refusal:
        if mode == "streaming" and call.app.is_flow and call.memory.release.refuses_in_worker:
            return _refused(call, refusal.message)
        raise
    turn = Turn(inputs["query"] if query is None else query, inputs, files)
    task = Task(call.key, call.user)
    conversation = _conversation(call, turn) if call.app.is_chat else None
    if conversation is not None:
        call.memory.begin(call.key, call.user, conversation, turn)
    call.memory.tasks[task.id] = task
    run = Run(call.app, call.key, call.user, turn, conversation, task, call.memory, call.pace)
    return run if mode == "streaming" else _wait(run)


def _refused(call: Call, problem: str) -> Run:
    """A run that fails before it begins, and belongs to no conversation."""
    turn, task = Turn("", {}, [], error=problem), Task(call.key, call.user)
    run = Run(call.app, call.key, call.user, turn, None, task, call.memory, call.pace)
    run.was_refused = True
    return run


def _conversation(call: Call, turn: Turn) -> Conversation:
    wanted = call.fields.get("conversation_id")
    if not wanted:
        return Conversation(turn.query[:40], turn.inputs)
    try:
        uuid.UUID(str(wanted))
    except ValueError:
        problem = "conversation_id\n  Value error, conversation_id must be a valid UUID"
        raise invalid(f"1 validation error for ChatRequestPayload\n{problem}") from None
    # A chatflow of 1.13 is silent for 300 s where the id is unknown. The demo answers as 1.11
    # and 1.16 do: it forgets its conversations with each restart, and the proxy does not.
    return call.conversation(str(wanted))


def _wait(run: Run) -> Reply:
    events: dict[str, Event] = {}
    for event in paced(run):
        events[event["event"]] = event
        if event["event"] == "workflow_finished":
            break  # what follows is only the time that a stream is held open
    finish(run, heard=True)
    if run.app.mode == "workflow":
        kept = "id workflow_id status outputs error elapsed_time total_tokens total_steps"
        data = events["workflow_finished"]["data"]
        data = {key: data[key] for key in (*kept.split(), "created_at", "finished_at")}
        return _spaced({"task_id": run.task.id, "workflow_run_id": run.id, "data": data})
    if "error" in events:
        raise Refusal(400, events["error"]["code"], events["error"]["message"])
    if "message_end" not in events:
        raise invalid(f"Run failed: {run.turn.error}")
    owner = {} if run.conversation is None else {"conversation_id": run.conversation.id}
    head = {"event": "message", "task_id": run.task.id, "id": run.turn.id}
    said = {"message_id": run.turn.id, **owner, "mode": run.app.mode, "answer": run.text}
    metadata = {"annotation_reply": None, **events["message_end"]["metadata"]}
    end = {"metadata": metadata, "created_at": run.turn.created_at}
    return _spaced({**head, **said, **end})


def _spaced(body: Event) -> Reply:
    return Reply(200, body, "application/json; charset=utf-8")


def _given(call: Call, payload: str) -> dict[str, Any]:
    """The inputs and files of the request, which have the right types."""
    given, files = call.fields.get("inputs"), call.fields.get("files") or []
    if not isinstance(given, dict):
        raise invalid(f"1 validation error for {payload}\ninputs\n  Field required")
    if not all(isinstance(reference, dict) for reference in files):
        raise invalid("Input should be a valid dictionary")
    return given


def _inputs(call: Call, given: dict[str, Any]) -> tuple[dict[str, Any], list[File]]:
    """The inputs that the app's form knows, and the files, also those among the inputs."""
    inputs: dict[str, Any] = {}
    references = list(call.fields.get("files") or [])
    for name, rule in call.app.variables.items():
        value = given.get(name)
        if value in (None, "", []):
            if rule["required"]:
                raise Rejected(f"{name} is required in input form")
        elif rule.get("type") == "file-list":
            references += value if isinstance(value, list) else [value]
        elif isinstance(value, str):
            inputs[name] = value
        else:
            raise Rejected(f"(type 'text-input') {name} in input form must be a string")
    return inputs, _files(call, references)


def _files(call: Call, references: list[Any]) -> list[File]:
    if not all(isinstance(reference, dict) for reference in references):
        raise Rejected("Input should be a valid dictionary")
    if sum(reference.get("type") == "image" for reference in references) > 3:
        raise Rejected("Number of image files exceeds the maximum limit 3")
    return [_file(call, reference) for reference in references]


def _file(call: Call, reference: dict[str, Any]) -> File:
    """The file that a request means; its type is the one that the request says."""
    kind = str(reference.get("type"))
    if reference.get("transfer_method") == "local_file":
        found = call.memory.file(str(reference.get("upload_file_id")))
        if found is None:
            raise Rejected("Invalid upload file")
        return replace(found, type=kind)
    url = urlsplit(str(reference.get("url") or ""))
    if url.scheme not in ("http", "https"):
        raise Rejected("Invalid file url")
    name = url.path.rpartition("/")[2] or "file"
    mime_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return File(name, mime_type, None, kind, "remote_url", url.geturl())
