"""The fields of each event and answer, as Dify 1.13.2 and 1.16.1 were seen to send them."""

import time
from dataclasses import dataclass, field
from typing import Any

from demo import apps
from demo.apps import App
from demo.release import Release
from demo.state import Conversation, File, Memory, Pace, Task, Turn, new_id, now

Event = dict[str, Any]
PING: Event = {"event": "ping"}
WORKFLOW_ID = "00000000-0000-4000-8000-0000000000aa"


@dataclass
class Run:
    """One answer being given; ``said`` are its tokens so far."""

    app: App
    app_key: str
    user: str
    turn: Turn
    conversation: Conversation | None
    task: Task
    memory: Memory
    pace: Pace
    id: str = field(default_factory=new_id)
    began: float = field(default_factory=time.monotonic)
    said: list[str] = field(default_factory=list)
    was_refused: bool = False

    @property
    def stopped(self) -> bool:
        return self.task.stopped.is_set()

    @property
    def text(self) -> str:
        return "".join(self.said)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.began, 6)


def text(run: Run, token: str, name: str = "message") -> Event:
    nowhere: list[str] | None = [] if _is_1_16(run) else None
    origin = ["llm", "text"] if run.app.is_flow else nowhere
    return {**_head(run, name), "answer": token, "from_variable_selector": origin}


def agent_text(run: Run, token: str) -> Event:
    return {**_head(run, "agent_message"), "answer": token}


def text_chunk(run: Run, token: str) -> Event:
    data = {"text": token, "from_variable_selector": ["llm", "text"]}
    return flow_event(run, "text_chunk", data)


def thought(run: Run, position: int) -> Event:
    return {
        **_head(run, "agent_thought"),
        "id": new_id(),
        "position": position,
        "thought": "",
        "observation": "",
        "tool": "",
        "tool_labels": {},
        "tool_input": "",
        "message_files": [],
    }


def message_file(run: Run, file: File) -> Event:
    head = {**_head(run, "message_file"), "id": file.id}
    return {**head, "type": "image", "belongs_to": "assistant", "url": run.memory.address(file)}


def error(run: Run, message: str) -> Event:
    head = _head(run, "error")
    del head["task_id"], head["id"]
    return {**head, "code": "completion_request_error", "status": 400, "message": message}


def message_end(run: Run, drawn: list[Event]) -> Event:
    """Basic apps list the files of the *user* here, flows those of the answer."""
    metadata: Event = {"annotation_reply": None, "retriever_resources": run.turn.sources}
    if _is_1_16(run) and not run.app.is_flow:
        del metadata["annotation_reply"]
    metadata["usage"] = usage(run)
    if _is_1_16(run):
        metadata["reasoning"] = {}
    received = [_user_file(run, file) for file in run.turn.files]
    files = drawn if run.app.is_flow else (received or ([] if _is_1_16(run) else None))
    return {**_head(run, "message_end"), "metadata": metadata, "files": files}


def refusal(run: Run) -> list[Event]:
    """The two events of a flow whose worker has refused the request (1.16)."""
    ids = {"task_id": run.task.id, "workflow_run_id": run.task.id}
    data: Event = {"id": run.task.id, "workflow_id": WORKFLOW_ID}
    times = {"created_at": run.turn.created_at, "finished_at": now()}
    begun = {"inputs": {}, "created_at": run.turn.created_at, "reason": "initial"}
    ended: Event = {
        "status": "failed",
        "outputs": None,
        "error": run.turn.error,
        "elapsed_time": 0.0,
        "total_tokens": 0,
        "total_steps": 0,
        "created_by": {},
        **times,
        "exceptions_count": 1,
        "files": [],
    }
    return [
        {"event": "workflow_started", **ids, "data": {**data, **begun}},
        {"event": "workflow_finished", **ids, "data": {**data, **ended}},
    ]


def flow_event(run: Run, name: str, data: Event) -> Event:
    ids = {"workflow_run_id": run.id, "task_id": run.task.id}
    if run.conversation is not None:
        ids = {**_head(run, name), "workflow_run_id": run.id}
        del ids["id"]
    return {"event": name, **ids, "data": data}


def workflow_started(run: Run) -> Event:
    data: Event = {"id": run.id, "workflow_id": WORKFLOW_ID, "inputs": inputs(run)}
    data |= {"created_at": run.turn.created_at, "reason": "initial"}
    return flow_event(run, "workflow_started", data)


def workflow_finished(run: Run, status: str, outputs: Event, drawn: list[Event]) -> Event:
    complete = status == "succeeded"
    data = {
        "id": run.id,
        "workflow_id": WORKFLOW_ID,
        "status": status,
        "outputs": outputs,
        "error": run.turn.error,
        "elapsed_time": run.seconds,
        "total_tokens": usage(run)["total_tokens"] if complete else 0,
        "total_steps": 3 if complete else 2,
        "created_by": {"id": new_id(), "user": run.user},
        "created_at": run.turn.created_at,
        "finished_at": now(),
        "exceptions_count": int(status == "failed"),
        "files": drawn,
    }
    return flow_event(run, "workflow_finished", data)


class Node:
    """One execution of a node: its two events share an id."""

    def __init__(self, run: Run, kind: str, title: str) -> None:
        self._run = run
        self._head: Event = {"id": new_id(), "node_id": kind, "node_type": kind, "title": title}
        self._head |= {"index": 1, "predecessor_node_id": None}
        self._created = {"created_at": now()}
        self._place = {"iteration_id": None, "loop_id": None}

    def started(self) -> Event:
        data = {**self._head, "inputs": None, "inputs_truncated": False, **self._created}
        data |= {"extras": {}, **self._place, "agent_strategy": None}
        return flow_event(self._run, "node_started", data)

    def finished(self, **facts: Any) -> Event:
        data = {
            **self._head,
            "inputs": facts.get("inputs", {}),
            "inputs_truncated": False,
            "process_data": facts.get("process_data", {}),
            "process_data_truncated": False,
            "outputs": facts.get("outputs", {}),
            "outputs_truncated": False,
            "status": "failed" if facts.get("error") else "succeeded",
            "error": facts.get("error"),
            "elapsed_time": self._run.seconds,
            "execution_metadata": facts.get("execution_metadata"),
            **self._created,
            "finished_at": now(),
            "files": facts.get("files", []),
            **self._place,
        }
        return flow_event(self._run, "node_finished", data)


def inputs(run: Run) -> Event:
    """The inputs of a flow with its system variables, as ``workflow_started`` shows them."""
    system: Event = {
        "sys.files": [file_value(run, file) for file in run.turn.files],
        "sys.user_id": run.user,
        "sys.app_id": run.app_key,
        "sys.workflow_id": WORKFLOW_ID,
        "sys.workflow_run_id": run.id,
    }
    if run.conversation is not None:
        system |= {"sys.query": run.turn.query, "sys.dialogue_count": run.turn.number}
    return {**run.turn.inputs, **system}


def usage(run: Run) -> Event:
    """A stopped answer has zeros, which Dify writes as ``0E-7``."""
    asked = 0 if run.stopped else 20 + len(run.turn.query) // 4
    said = 0 if run.stopped else len(run.said)
    asked_price, said_price = asked * 2.5e-6, said * 1e-5
    times: Event = {
        "time_to_first_token": None if run.stopped else 0.05,
        "time_to_generate": None if run.stopped else run.seconds,
    }
    if run.stopped and _is_1_16(run):
        times = {}
    return {
        "prompt_tokens": asked,
        "prompt_unit_price": "2.50",
        "prompt_price_unit": "0.000001",
        "prompt_price": _price(asked_price),
        "completion_tokens": said,
        "completion_unit_price": "10.00",
        "completion_price_unit": "0.000001",
        "completion_price": _price(said_price),
        "total_tokens": asked + said,
        "total_price": _price(asked_price + said_price),
        "currency": "USD",
        "latency": run.seconds,
        **times,
    }


def _is_1_16(run: Run) -> bool:
    return run.memory.release is Release.DIFY_1_16


def draw(run: Run) -> File:
    """A new picture by the answering app."""
    return run.memory.keep(File("demo.png", "image/png", apps.picture(), "image", "tool_file"))


def file_value(run: Run, file: File) -> Event:
    """A file as flows write it."""
    address = run.memory.address(file)
    return {
        "dify_model_identity": "__dify__file__",
        "id": None,
        "tenant_id": "00000000-0000-4000-8000-0000000000bb",
        "type": file.type,
        "transfer_method": file.transfer_method,
        "remote_url": address,
        "related_id": file.id,
        "filename": file.name,
        "extension": f".{file.extension}",
        "mime_type": file.mime_type,
        "size": file.size,
        "url": address,
    }


def _user_file(run: Run, file: File) -> Event:
    local = file.transfer_method == "local_file"
    return {
        "related_id": new_id(),
        "extension": f".{file.extension}",
        "filename": file.name,
        "size": file.size,
        "mime_type": file.mime_type,
        "transfer_method": file.transfer_method,
        "type": file.type,
        "url": run.memory.address(file),
        "upload_file_id": file.id if local else "",
        "remote_url": "" if local else file.url,
    }


def _head(run: Run, name: str) -> Event:
    owner = {} if run.conversation is None else {"conversation_id": run.conversation.id}
    message = {"message_id": run.turn.id, "created_at": run.turn.created_at}
    return {"event": name, **owner, **message, "task_id": run.task.id, "id": run.turn.id}


def _price(dollars: float) -> str:
    return f"{dollars:.7f}" if dollars else "0E-7"
