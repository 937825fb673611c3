"""A Dify that remembers all that was said in its conversations, to be the ``answer`` of a FakeDify.

What a new conversation was told of the chat before counts as said in it.
"""

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.fake_dify import (
    CLOSE,
    LAST_CHUNK,
    STREAM_HEAD,
    Chat,
    Request,
    Step,
    Steps,
    chunk,
    refused,
)

Said = tuple[str, str]
"""The role and the text of a message."""

_UNKNOWN = refused(404, {"code": "not_found", "message": "Conversation Not Exists.", "status": 404})
_BUSY = refused(429, {"code": "too_many_requests", "message": "Too many requests.", "status": 429})
_FILES = {
    "enabled": True,
    "allowed_file_types": ["image"],
    "allowed_file_upload_methods": ["local_file"],
    "number_limits": 3,
}
_TOLD = re.compile(r"The conversation so far:\n\n(.*)\n\nThe user now says:\n\n", re.DOTALL)
_SPOKEN = re.compile(
    r"(?:\A|\n\n)(User|Assistant): ((?:(?!\n\n(?:User|Assistant): ).)*)", re.DOTALL
)
_CONTINUE = "Please continue your last answer exactly where it stopped."
_REASONING = re.compile(r"<think>.*?</think>", re.DOTALL)


NOT_TAKEN = {
    "502": refused(502, b"<html><h1>502 Bad Gateway</h1></html>", "text/html"),
    "503": refused(503, b"upstream connect error or disconnect/reset before headers", "text/plain"),
    "504": refused(504, b"<html><h1>504 Gateway Time-out</h1></html>", "text/html"),
    "500": refused(500, b"<html><h1>Internal Server Error</h1></html>", "text/html"),
    "302": refused(302, b"<html>Found</html>", "text/html"),
    "page": refused(200, b"<html>We are back soon.</html>", "text/html"),
}
"""What stands before a Dify that restarts, and answers in its place."""


@dataclass
class Conversation:
    """``owner`` is the app's key and the user; ``said`` grows with every turn, and ``messages``
    are the turns as Dify lists them."""

    owner: tuple[str, str]
    said: list[Said] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)

    def note(self, query: str, now: float) -> dict[str, Any]:
        """A new message, whose answer is empty until it is complete."""
        self.messages.append(
            {
                "id": str(uuid.uuid4()),
                "query": query,
                "answer": "",
                "status": "normal",
                "created_at": int(now),
            }
        )
        return self.messages[-1]


@dataclass(frozen=True)
class Arrival:
    """A question that has come: what its conversation had received until then, and the question.
    ``trace`` is the mark that the caller gave it."""

    trace: str
    owner: tuple[str, str]
    conversation_id: str
    is_new: bool
    before: tuple[Said, ...]
    query: str


@dataclass
class RememberingDify:
    """``reply`` makes the pieces of the answer to a question. ``trouble`` holds what goes wrong
    with the next questions: ``busy`` (refused), ``cut`` (in the middle of the answer), one of
    NOT_TAKEN (a page of a gateway, and Dify has not received the question) or one of them after
    ``run `` (it has run, and the page came instead of the answer). ``modes`` are those of the
    apps, by their keys; an app that is not there is a chat. ``clock`` gives epoch seconds."""

    reply: Callable[[str], list[str]]
    modes: dict[str, str] = field(default_factory=dict)
    conversations: dict[str, Conversation] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._lock = threading.RLock()

    def __call__(self, request: Request) -> Steps:
        path = request.path.removeprefix("/v1").partition("?")[0]
        with self._lock:
            if path in ("/info", "/parameters"):
                mode = self.modes.get(request.headers["authorization"].split()[-1], "chat")
                told = {"name": "App", "mode": mode, "user_input_form": []}
                return refused(200, told | {"file_upload": _FILES})
            if path == "/files/upload":
                return refused(201, {"id": str(uuid.uuid4())})
            if path == "/chat-messages":
                return self._run(request)
            if request.method == "DELETE":
                self.conversations.pop(path.rpartition("/")[2], None)
                return refused(204, b"")
            if path == "/messages":
                return self._messages(request)
        return refused(200, {"result": "success", "name": "A name", "data": []})

    def new(self, id_: str, owner: tuple[str, str]) -> Conversation:
        """A conversation without anything in it."""
        self.conversations[id_] = Conversation(owner)
        return self.conversations[id_]

    def _messages(self, request: Request) -> Steps:
        """The newest ones, oldest first, as recorded with 1.13.2."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
        found = self.conversations.get(asked.get("conversation_id", ""))
        if found is None or found.owner != (request.headers["authorization"], asked["user"]):
            return _UNKNOWN
        limit = int(asked.get("limit", 20))
        page = found.messages[-limit:]
        has_more = len(found.messages) > limit
        return refused(200, {"limit": limit, "has_more": has_more, "data": list(page)})

    def _run(self, request: Request) -> Steps:
        body = request.json
        owner = (request.headers["authorization"], body["user"])
        trouble = self.trouble.pop() if self.trouble else ""
        if trouble == "busy":
            return _BUSY
        if trouble in NOT_TAKEN:
            return NOT_TAKEN[trouble]
        id_ = body["conversation_id"] or str(uuid.uuid4())
        query = body["query"]
        if body["conversation_id"]:
            conversation = self.conversations.get(id_)
            if conversation is None or conversation.owner != owner:
                return _UNKNOWN
        else:
            told = _TOLD.search(query)
            spoken = _SPOKEN.findall(told[1]) if told else []
            query = query[told.end() :] if told else query
            conversation = self.new(id_, owner)
            conversation.said += [(role.lower(), text) for role, text in spoken]
        before = tuple(conversation.said)
        is_new = not body["conversation_id"]
        self.arrivals.append(Arrival(body.get("trace_id", ""), owner, id_, is_new, before, query))
        message = conversation.note(body["query"], self.clock())
        steps = self._answer(conversation, message, id_, query, trouble == "cut")
        if trouble.startswith("run "):
            for _ in steps:
                pass
            return NOT_TAKEN[trouble.removeprefix("run ")]
        return steps

    def _answer(
        self,
        conversation: Conversation,
        message: dict[str, Any],
        id_: str,
        query: str,
        cut: bool,
    ) -> Iterator[Step]:
        """As Dify does: a turn whose answer does not come to its end stays, with an empty one."""
        chat, pieces = Chat(id_, message["id"]), self.reply(query)
        answer = _REASONING.sub("", "".join(pieces))
        continued = query == _CONTINUE and conversation.said[-1:] and conversation.said[-1]
        said = [("user", query), ("assistant", "")]
        conversation.said += said
        place = len(conversation.said) - 2
        yield STREAM_HEAD
        for piece in pieces:
            yield chunk(chat.text(piece))
            if cut:
                yield CLOSE
        with self._lock:
            conversation.said[place + 1] = ("assistant", answer)
            message["answer"] = "".join(pieces)
            if continued and conversation.said[place - 1] == continued:
                conversation.said[place - 1 : place + 2] = [("assistant", continued[1] + answer)]
        yield chunk(chat.end())
        yield LAST_CHUNK
