"""The apps of the demo, and what they answer."""

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from demo.state import Conversation, File, Turn

MAGIC = {
    "/think": "a <think> block",
    "/image": "a generated picture",
    "/sources": "citations (not in a workflow)",
    "/error": "a model error in mid-answer",
    "/slow": "a long silence before the first word",
}
QUOTED = 2000  # characters of a question that are said back


@dataclass(frozen=True)
class App:
    mode: str
    name: str
    description: str
    form: tuple[dict[str, Any], ...] = ()
    hears: bool = False
    suggests: bool = False

    @property
    def is_flow(self) -> bool:
        return self.mode in ("advanced-chat", "workflow")

    @property
    def is_chat(self) -> bool:
        return self.mode in ("chat", "agent-chat", "agent", "advanced-chat")

    @property
    def variables(self) -> dict[str, dict[str, Any]]:
        """The fields of the app's form, by variable name."""
        fields = (next(iter(entry.values())) for entry in self.form)
        return {field["variable"]: field for field in fields}


FILE_TYPES = ["image", "document", "audio", "video"]
METHODS = ["remote_url", "local_file"]
QUERY = {"label": "Query", "variable": "query", "required": True, "default": ""}
CITY = {"label": "City", "variable": "city", "required": False, "max_length": 48, "default": ""}
ATTACHMENTS = {
    "label": "Attachments",
    "variable": "attachments",
    "required": False,
    "type": "file-list",
    "max_length": 3,
    "options": [],
    "allowed_file_types": FILE_TYPES,
    "allowed_file_extensions": [],
    "allowed_file_upload_methods": METHODS,
}
ONE_TEXT = ({"paragraph": {**QUERY, "max_length": 100_000}},)
TEXT_AND_FILES = (*ONE_TEXT, {"file-list": ATTACHMENTS})
ONE_CITY = ({"text-input": CITY},)
APPS = {
    "app-demo-chat": App("chat", "Demo Chat", "Remembers the chat", hears=True, suggests=True),
    "app-demo-agent": App("agent-chat", "Demo Agent", "Looks at the clock first"),
    "app-demo-new-agent": App("agent", "Demo New Agent", "The mode agent of Dify 1.16"),
    "app-demo-chatflow": App("advanced-chat", "Demo Chatflow", "Start, LLM, answer", ONE_CITY),
    "app-demo-completion": App("completion", "Demo Completion", "One text in, one out", ONE_TEXT),
    "app-demo-workflow": App("workflow", "Demo Workflow", "Text and files in", TEXT_AND_FILES),
}


def parameters(app: App) -> dict[str, Any]:
    """The body of ``GET /parameters``; basic apps have an ``image`` part, flows do not."""
    upload: dict[str, Any] = {
        "enabled": True,
        "allowed_file_types": FILE_TYPES,
        "allowed_file_extensions": [],
        "allowed_file_upload_methods": METHODS,
        "number_limits": 3,
    }
    moderation: dict[str, Any] = {"enabled": False}
    if not app.is_flow:
        moderation |= {"type": "", "configs": []}
        limits = {"enabled": True, "number_limits": 3, "detail": "high"}
        upload["image"] = {**limits, "transfer_methods": METHODS}
    if app.mode == "agent":
        moderation = {"enabled": False, "type": "", "config": {}}
        upload["image"] = {"enabled": True}
    return {
        "opening_statement": f"Hello! I am {app.name}.",
        "suggested_questions": ["What can you do?"],
        "suggested_questions_after_answer": {"enabled": app.suggests},
        "speech_to_text": {"enabled": app.hears},
        "text_to_speech": {"enabled": False, "voice": "", "language": ""},
        "retriever_resource": {"enabled": True},
        "annotation_reply": {"enabled": False},
        "more_like_this": {"enabled": False},
        "user_input_form": list(app.form),
        "sensitive_word_avoidance": moderation,
        "file_upload": upload,
        "system_parameters": {
            "image_file_size_limit": 10,
            "video_file_size_limit": 100,
            "audio_file_size_limit": 50,
            "file_size_limit": 15,
            "workflow_file_upload_limit": 10,
        },
    }


def compose(app: App, turn: Turn, conversation: Conversation | None) -> str:
    """The whole answer: what was received, said back so that it can be checked."""
    lines = [_opening(app, turn, conversation)]
    if turn.files:
        lines += ["", f"Files received: {len(turn.files)}"]
        lines += [f"- {_describe(file)}" for file in turn.files]
    told = [f"{name}={value}" for name, value in turn.inputs.items() if name != "query"]
    if told:
        lines += ["", f"Inputs: {', '.join(told)}"]
    if turn.asks_for("/sources"):
        lines += ["", "The handbook agrees [1], and so do the notes [2]."]
    if turn.number == 1:
        lines += ["", f"Put one of these words into your last line: {', '.join(MAGIC)}."]
    text = "\n".join(lines)
    if turn.asks_for("/think"):
        thought = f"The question has {len(turn.query)} characters. I shall say it back."
        return f"<think>\n{thought}\n</think>\n\n{text}"
    return text


def tokens(text: str) -> list[str]:
    """The pieces in which a model would say it; together they are the text."""
    return re.findall(r"\S{1,8}\s*|\s+", text)


def sources() -> list[dict[str, Any]]:
    """Two citations in Dify's fields, of which only the first has an address."""
    address = {"url": "https://example.com/handbook"}
    found = (("Handbook.md", "The handbook says so.", address), ("Notes.txt", "So it is.", None))
    return [
        {
            "position": position,
            "dataset_id": "00000000-0000-4000-8000-000000000001",
            "dataset_name": "Demo knowledge",
            "document_id": f"00000000-0000-4000-8000-00000000001{position}",
            "document_name": name,
            "data_source_type": "upload_file",
            "segment_id": f"00000000-0000-4000-8000-00000000002{position}",
            "retriever_from": "api",
            "score": 1 - position / 10,
            "content": text,
            "page": None,
            "doc_metadata": metadata,
            "title": None,
        }
        for position, (name, text, metadata) in enumerate(found, 1)
    ]


def picture() -> bytes:
    """A small PNG: a blue-green gradient, 96 by 96."""
    rows = (
        b"\0" + b"".join(bytes((40, 60 + y * 2, 60 + x * 2)) for x in range(96)) for y in range(96)
    )
    header = struct.pack(">IIBBBBB", 96, 96, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _opening(app: App, turn: Turn, conversation: Conversation | None) -> str:
    said = f'You said: "{turn.query[:QUOTED]}".'
    if conversation is None:
        return f"Hello from {app.name}. {said}"
    if turn.number == 1:
        return f"Hello from {app.name}. This is turn 1 of this conversation. {said}"
    began = f'It began with: "{conversation.turns[0].query[:QUOTED]}".'
    return f"This is turn {turn.number} of this conversation. {began} {said}"


def _describe(file: File) -> str:
    size = f"not fetched: {file.url}" if file.content is None else f"{file.size} bytes"
    return f"{file.name}: {file.type}, {file.mime_type}, {size}"
