"""What a request is and what it gets: the words that the demo's endpoints share."""

from dataclasses import dataclass
from typing import Any

from demo.apps import App
from demo.state import Conversation, File, Memory, Pace

GONE = "Conversation Not Exists."
WRONG_ROUTE = "Please check if your app mode matches the right API route."
ROUTES_LIKE = {
    "/v1/chat-messages": "/v1/chat-messages or /api/chat-messages"
    " or /v1/chat-messages/<string:task_id>/stop",
    "/v1/messages": "/v1/messages or /v1/chat-messages or /api/messages",
}


class Refusal(Exception):
    """An error answer in Dify's form."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, "status": status}


class Rejected(Refusal):
    """What an app says of inputs and files that do not fit its form."""

    def __init__(self, message: str) -> None:
        super().__init__(400, "invalid_param", message)
        self.message = message


def invalid(message: str) -> Refusal:
    return Refusal(400, "invalid_param", message)


@dataclass(frozen=True)
class Request:
    """``fields`` are those of the JSON body or of the form, ``file`` is the form's."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str
    fields: dict[str, Any]
    file: File | None = None


@dataclass(frozen=True)
class Reply:
    """``body`` is JSON, or bytes of ``content_type``; None is no body at all."""

    status: int
    body: Any
    content_type: str = "application/json"


@dataclass(frozen=True)
class Call:
    """A request that has shown a valid key."""

    request: Request
    key: str
    app: App
    memory: Memory
    pace: Pace

    @property
    def fields(self) -> dict[str, Any]:
        return self.request.fields

    @property
    def user(self) -> str:
        given = self.fields.get("user", self.request.query.get("user"))
        return "DEFAULT-USER" if given in (None, "") else str(given)

    def limit(self) -> int:
        given = self.request.query.get("limit", "20")
        if not given.isdecimal() or not 1 <= int(given) <= 100:
            raise invalid("limit must be an integer from 1 to 100")
        return int(given)

    def need_user(self) -> None:
        if self.fields.get("user") in (None, ""):
            raise invalid("Arg user must be provided.")

    def need_chat(self) -> None:
        if not self.app.is_chat:
            raise Refusal(400, "not_chat_app", WRONG_ROUTE)

    def conversation(self, wanted: str) -> Conversation:
        """That of this app and user; else the 404 whose text depends on the route."""
        found = self.memory.conversations(self.key, self.user).get(wanted)
        if found is None:
            path, like = self.request.path, ROUTES_LIKE.get(self.request.path)
            hint = f" You have requested this URI [{path}] but did you mean {like} ?"
            raise Refusal(404, "not_found", GONE + (hint if like else ""))
        return found
