"""Which request goes where, and which needs no key."""

import re
from collections.abc import Callable

from demo import asking, keeping
from demo.apps import APPS, parameters
from demo.calls import Call, Refusal, Reply, Request
from demo.shapes import Run
from demo.state import Memory, Pace

WELCOME = {"welcome": "Dify OpenAPI", "api_version": "v1"}
NOT_FOUND = Reply(404, b"<!doctype html>\n<title>404 Not Found</title>\n", "text/html")
NO_KEY = "Authorization header must be provided and start with 'Bearer'"
SIGNED = r"/files/(?:tools/([\w-]+)\.\w+|([\w-]+)/file-preview)"


def answer(request: Request, memory: Memory, pace: Pace) -> Reply | Run:
    """What this request gets; a Run is to be streamed, then given to :func:`asking.finish`."""
    for method, pattern, handler in ROUTES:
        match = re.fullmatch(pattern, request.path)
        if match and method == request.method:
            return handler(_call(request, memory, pace), *match.groups())
    if request.path in ("/v1", "/v1/"):
        return Reply(200, {**WELCOME, "server_version": memory.release.value})
    match = re.fullmatch(SIGNED, request.path)
    return _signed_file(request, memory, match[1] or match[2]) if match else NOT_FOUND


def _call(request: Request, memory: Memory, pace: Pace) -> Call:
    scheme, _, key = request.authorization.partition(" ")
    if scheme != "Bearer":
        raise Refusal(401, "unauthorized", NO_KEY)
    app = APPS.get(key)
    if app is None or (app.mode == "agent" and not memory.release.has_agents):
        raise Refusal(401, "unauthorized", "Access token is invalid")
    return Call(request, key, app, memory, pace)


def _signed_file(request: Request, memory: Memory, file_id: str) -> Reply:
    signature = [request.query.get(name, "") for name in ("timestamp", "nonce", "sign")]
    if not memory.is_signed(file_id, *signature):
        raise Refusal(403, "forbidden", "The address of this file is wrong or has expired.")
    return keeping.content(memory, file_id)


def _info(call: Call) -> Reply:
    app = call.app
    facts = {"name": app.name, "description": app.description, "tags": [], "mode": app.mode}
    return Reply(200, {**facts, "author_name": "OpenDify"})


def _parameters(call: Call) -> Reply:
    return Reply(200, parameters(call.app))


def _meta(call: Call) -> Reply:
    return Reply(200, {"tool_icons": {}})


def _preview(call: Call, file_id: str) -> Reply:
    return keeping.content(call.memory, file_id)


ID = r"([\w-]+)"
ROUTES: list[tuple[str, str, Callable[..., Reply | Run]]] = [
    ("GET", "/v1/info", _info),
    ("GET", "/v1/parameters", _parameters),
    ("GET", "/v1/meta", _meta),
    ("POST", "/v1/chat-messages", asking.chat),
    ("POST", "/v1/completion-messages", asking.completion),
    ("POST", "/v1/workflows/run", asking.workflow),
    ("POST", f"/v1/(?:chat-messages|completion-messages|workflows/tasks)/{ID}/stop", asking.stop),
    ("GET", "/v1/messages", keeping.messages),
    ("GET", f"/v1/messages/{ID}/suggested", keeping.suggested),
    ("POST", f"/v1/messages/{ID}/feedbacks", keeping.feedback),
    ("GET", "/v1/conversations", keeping.conversations),
    ("DELETE", f"/v1/conversations/{ID}", keeping.delete),
    ("POST", f"/v1/conversations/{ID}/name", keeping.rename),
    ("POST", "/v1/files/upload", keeping.upload),
    ("GET", f"/v1/files/{ID}/preview", _preview),
    ("POST", "/v1/audio-to-text", keeping.transcribe),
]
