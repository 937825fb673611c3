"""Normalizes request paths, and explains paths that match no route.

Nothing is redirected: a ``Location`` would contain the address from the Host header, perhaps
without TLS, and clients would send the API key there.
"""

import re
from collections.abc import Iterable, Mapping
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_CHAT = "/v1/chat/completions"
_COMPLETIONS = "/v1/completions"
_MODELS = "/v1/models"
_MESSAGES = "/v1/messages"
_ROUTES = (_CHAT, _COMPLETIONS, _MODELS, _MESSAGES, f"{_MESSAGES}/count_tokens")
_MODEL = re.compile(r"/+v1/+models/+(.*)", re.DOTALL)

_BASE = "The base URL of a client ends in /v1"

_OPENAI_ONLY = (
    "This service supports OpenAI's Chat Completions and Anthropic's Messages: choose the "
    f"connection type 'OpenAI' (or 'OpenAI compatible') in the client. {_BASE}."
)
_RESPONSES = (
    "This service supports Chat Completions: switch the Responses API off in the client, so that "
    f"it calls POST {_CHAT}."
)
_NO_FILES = (
    "There is no store of files: send them in the messages of a chat (image_url, file, "
    "input_audio). Choose in the client that files are sent with the message."
)
# OpenAI's endpoints that this service does not have, by a part of their paths: what is missing, and
# what to change in the usual clients. The table of the READMEs names the same.
MISSING: Mapping[str, str] = {
    "embeddings": "There are no embeddings: knowledge bases belong to Dify. In Open WebUI, choose "
    "another engine in Admin Panel > Settings > Documents > Embedding; elsewhere, another provider "
    "for embeddings.",
    "rerank": "There is no reranking: knowledge bases belong to Dify. In Open WebUI, choose "
    "another engine in Admin Panel > Settings > Documents, or switch hybrid search off there.",
    "images": "There is no generation of images, except by an app in its answer to a chat. In Open "
    "WebUI, choose another engine in Admin Panel > Settings > Images, or switch it off there.",
    "videos": "There is no generation of videos, except by an app in its answer to a chat. Choose "
    "another provider for videos in the client.",
    "audio": "There is no audio, except in the messages of a chat. In Open WebUI, choose other "
    "engines in Admin Panel > Settings > Audio; elsewhere, another provider for audio.",
    "moderations": "There are no moderations: an app moderates by its own settings in Dify. Switch "
    "moderation off in the client (LibreChat: OPENAI_MODERATION=false).",
    "vector_stores": "There are no vector stores: make a knowledge base in Dify and add it to the "
    "app. Switch file search off in the client.",
    "files": _NO_FILES,
    "uploads": _NO_FILES,
    "batches": "There are no batches: send the requests one by one, and switch batches off in the "
    "client.",
    "assistants": "There are no assistants: an app of Dify is one, and is chosen as the model of a "
    "chat. Switch assistants off in the client (LibreChat: leave them out of ENDPOINTS).",
    "threads": "There are no threads: Dify keeps the conversations of chats. Switch assistants off "
    "in the client (LibreChat: leave them out of ENDPOINTS).",
    "realtime": "There are no realtime sessions. Choose a chat model in the client, with speech to "
    "text and text to speech of its own.",
    "fine_tuning": "There is no fine-tuning: the model of an app is chosen in Dify. Choose another "
    "provider for it in the client.",
}
_OTHER_DIALECTS = {"deployments", "generate", "show", "tags", "v1beta"}


class NormalizePaths:
    """WSGI middleware that normalizes the path before anything else sees it."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        normalize_request_path(environ)
        return self._app(environ, start_response)


def normalize_request_path(environ: WSGIEnvironment) -> None:
    """Normalizes the path in a WSGI environment."""
    path = environ.get("PATH_INFO", "")
    if "//" in path or path.endswith("/"):
        environ["PATH_INFO"] = normalize_path(path)


def normalize_path(path: str) -> str:
    """The path without repeated or trailing slashes. The name of a model, which may contain
    slashes, is unchanged."""
    if not path.startswith("/"):
        return path
    if (model := _MODEL.fullmatch(path)) and model[1]:
        return f"{_MODELS}/{model[1]}"
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"


def path_hint(path: str) -> str:
    """What is probably wrong with the settings of a client that requests this (normalized) path or
    uses the wrong method on it. Empty if nothing is."""
    parts = [part.lower() for part in path.split("/") if part]
    if path in _ROUTES:
        return ""
    if parts in ([], ["v1"]):
        return f"{_BASE}; clients request GET {_MODELS} and POST {_CHAT} themselves."
    if parts[-2:] == ["chat", "completions"]:
        return f"Did you mean {_CHAT}? {_base_advice(parts[:-2])}"
    if parts[-1] == "completions":
        return f"Did you mean {_COMPLETIONS}? {_base_advice(parts[:-1])}"
    if parts[-1] == "models":
        return f"Did you mean {_MODELS}? {_base_advice(parts[:-1])}"
    if "messages" in parts and "threads" not in parts:
        return f"Did you mean {_MESSAGES}? {_messages_base_advice(parts)}"
    return _surface_advice(parts)


def _base_advice(before: list[str]) -> str:
    """``before`` is the part of the path before what clients add themselves."""
    if before == ["v1"]:
        return "It must be in lower case."
    if {"chat", "completions", "models"} & set(before):
        return f"{_BASE}, without anything after it."
    if before.count("v1") > 1:
        return f"{_BASE}, once."
    if before and before[-1] == "v1":
        prefix = "/".join(before[:-1])[:100]
        return (
            f"Remove '/{prefix}' from the base URL of the client, or have the reverse proxy "
            "that adds it remove it."
        )
    return f"{_BASE}."


def _messages_base_advice(parts: list[str]) -> str:
    """Most clients of Anthropic's API add /v1 to their base URL, and some do not."""
    if "v1" not in parts:
        return "This client does not add /v1 itself: its base URL must end in /v1."
    if parts.count("v1") > 1:
        return "This client adds /v1 itself: leave it out of its base URL."
    return f"Clients of Anthropic's API call POST {_MESSAGES} only."


def _surface_advice(parts: list[str]) -> str:
    names = set(parts)
    if "responses" in names:
        return _RESPONSES
    if missing := next(filter(MISSING.get, parts), None):
        return MISSING[missing]
    if _OTHER_DIALECTS & names or parts[:1] == ["api"]:
        return _OPENAI_ONLY
    if parts[-2:] == ["chat", "completion"] or parts[-1] == "chat":
        return f"Did you mean {_CHAT}?"
    if parts[0] != "v1":
        return f"{_BASE}."
    return f"Clients call GET {_MODELS} and POST {_CHAT}."
