"""A Dify app that keeps conversations, to be the ``answer`` of a FakeDify."""

import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.fake_dify import Chat, Request, Step, Steps, event, refused, streamed

_UNKNOWN = refused(404, {"code": "not_found", "message": "Conversation Not Exists.", "status": 404})


@dataclass
class Conversation:
    """What was asked in one conversation; ``message_id`` is of the last question."""

    user: str
    queries: list[str] = field(default_factory=list)
    message_id: str = ""


@dataclass
class TalkingDify:
    """``say`` makes the answer to a question, as steps between its first and its last event."""

    mode: str = "chat"
    suggestions: bool = True
    suggested: Any = field(default_factory=lambda: ["How?", " Why? "])
    name: Any = "A fine name"
    say: Callable[[str], list[Step]] = lambda query: []
    before: Callable[[str], list[Step]] = lambda query: []
    conversations: dict[str, Conversation] = field(default_factory=dict)
    deleted: dict[str, Conversation] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    refuses_all_but_runs: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Steps:
        path = request.path.removeprefix("/v1").partition("?")[0]
        with self._lock:
            if path == "/info":
                return refused(200, {"name": "App", "mode": self.mode})
            if path == "/parameters":
                return refused(200, self._parameters())
            if path in ("/chat-messages", "/completion-messages", "/workflows/run"):
                return self._run(path, request.json)
            if path == "/files/upload":
                return refused(201, {"id": str(uuid.uuid4())})
            if self.refuses_all_but_runs:
                return refused(500, {"code": "internal_server_error", "message": "", "status": 500})
            return self._beside(request, path)

    def queries(self, user: str = "") -> list[list[str]]:
        """The questions that the conversations that are not deleted have received."""
        return [c.queries for c in self.conversations.values() if not user or c.user == user]

    def _parameters(self) -> dict[str, Any]:
        field = {"variable": "query", "label": "Query", "required": True}
        return {
            "suggested_questions_after_answer": {"enabled": self.suggestions},
            "file_upload": {
                "enabled": True,
                "allowed_file_types": ["image"],
                "allowed_file_upload_methods": ["local_file"],
                "number_limits": 3,
            },
            "user_input_form": [] if "chat" in self.mode else [{"paragraph": field}],
        }

    def _run(self, path: str, body: dict[str, Any]) -> Steps:
        self.runs.append(body)
        if path == "/workflows/run":
            run = {"status": "succeeded", "outputs": {"text": "Done"}}
            return streamed(
                event(event="workflow_started", task_id="t", workflow_run_id="r", data={}),
                event(event="workflow_finished", task_id="t", workflow_run_id="r", data=run),
            )
        if path == "/completion-messages":
            names = {"message_id": "m", "task_id": "t"}
            return streamed(
                event(event="message", answer="Done", **names), event(event="message_end", **names)
            )
        id_ = body.get("conversation_id") or str(uuid.uuid4())
        conversation = self.conversations.get(id_)
        if conversation is None and body.get("conversation_id"):
            return _UNKNOWN
        conversation = self.conversations.setdefault(id_, Conversation(body["user"]))
        if conversation.user != body["user"]:
            return _UNKNOWN
        conversation.queries.append(body["query"])
        conversation.message_id = str(uuid.uuid4())
        chat = Chat(conversation_id=id_, message_id=conversation.message_id)
        name = "agent_message" if self.mode == "agent-chat" else "message"
        return streamed(
            *self.before(body["query"]),
            chat.event(name, answer=f"Answer {len(conversation.queries)}"),
            *self.say(body["query"]),
            chat.end(),
        )

    def _beside(self, request: Request, path: str) -> Steps:
        found = re.search(r"/conversations/([^/]+)|conversation_id=([^&]+)", request.path)
        id_ = (found[1] or found[2]) if found else ""
        known = self.conversations.get(id_)
        if path.endswith("/suggested"):
            return refused(200, {"result": "success", "data": self.suggested})
        if known is None:
            return _UNKNOWN
        if request.method == "DELETE" and request.json["user"] == known.user:
            self.deleted[id_] = self.conversations.pop(id_)
            return refused(204, b"")
        if path.endswith("/name"):
            assert request.json == {"auto_generate": True, "user": known.user}
            return refused(200, json.dumps({"id": id_, "name": self.name}).encode())
        return refused(200, {"data": [{"id": known.message_id}], "has_more": True})
