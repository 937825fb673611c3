"""What the demo remembers: conversations, files and answers under way. In memory only."""

import base64
import hashlib
import hmac
import secrets
import threading
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from demo.release import Release

FILES_KEPT = 200
ADDRESS_SECONDS = 300  # Dify's FILES_ACCESS_TIMEOUT: a signed address dies after this


def new_id() -> str:
    return str(uuid.uuid4())


def now() -> int:
    return int(time.time())


@dataclass
class File:
    """A file that was uploaded, drawn by the demo, or (``content`` None) only pointed at."""

    name: str
    mime_type: str
    content: bytes | None
    type: str = "custom"
    transfer_method: str = "local_file"
    url: str = ""
    id: str = field(default_factory=new_id)
    created_at: int = field(default_factory=now)

    @property
    def extension(self) -> str:
        return self.name.rpartition(".")[2].lower() if "." in self.name else ""

    @property
    def size(self) -> int:
        """Bytes; -1 where Dify does not know."""
        return -1 if self.content is None else len(self.content)


@dataclass
class Turn:
    """One question and its answer; Dify calls it a message."""

    query: str
    inputs: dict[str, Any]
    files: list[File]
    number: int = 1
    answer: str = ""
    error: str | None = None
    sources: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_id)
    created_at: int = field(default_factory=now)

    def asks_for(self, word: str) -> bool:
        """Whether the last line holds this magic word: earlier lines may be a quoted history."""
        lines = self.query.strip().splitlines() or [""]
        return word in lines[-1].split()


@dataclass
class Conversation:
    name: str
    inputs: dict[str, Any]
    turns: list[Turn] = field(default_factory=list)
    id: str = field(default_factory=new_id)
    created_at: int = field(default_factory=now)
    updated_at: int = field(default_factory=now)


@dataclass(frozen=True)
class Pace:
    """Seconds: before each token, of /slow, between pings, and until a flow's stream is closed."""

    token: float = 0.03
    silence: float = 12.0
    ping: float = 10.0
    linger: float = 1.0  # 1.13 holds a flow's connection open for this long after its last event


@dataclass
class Task:
    """An answer under way; ``stopped`` is set by the stop endpoint."""

    app: str
    user: str
    id: str = field(default_factory=new_id)
    stopped: threading.Event = field(default_factory=threading.Event)


class Memory:
    """Conversations belong to (app, user), as in Dify; files to nobody."""

    def __init__(self, release: Release = Release.DIFY_1_16) -> None:
        self.release = release
        self.tasks: dict[str, Task] = {}
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._conversations: dict[tuple[str, str], dict[str, Conversation]] = {}
        self._files: OrderedDict[str, File] = OrderedDict()

    def conversations(self, app: str, user: str) -> dict[str, Conversation]:
        """Those of this user in this app, by id."""
        with self._lock:
            return self._conversations.setdefault((app, user), {})

    def begin(self, app: str, user: str, conversation: Conversation, turn: Turn) -> None:
        """Write the turn down before it is answered, as Dify does: it may be cut off."""
        known = self.conversations(app, user)
        with self._lock:
            known[conversation.id] = conversation
            conversation.turns.append(turn)
            conversation.updated_at = now()
            turn.number = len(conversation.turns)

    def keep(self, file: File) -> File:
        with self._lock:
            self._files[file.id] = file
            if len(self._files) > FILES_KEPT:
                self._files.popitem(last=False)
        return file

    def file(self, file_id: str) -> File | None:
        return self._files.get(file_id)

    def address(self, file: File) -> str:
        """A signed address without a host, as Dify gives where FILES_URL is not set."""
        if file.content is None:
            return file.url
        tail = f"tools/{file.id}.{file.extension}"
        path = tail if file.transfer_method == "tool_file" else f"{file.id}/file-preview"
        timestamp, nonce = str(now()), secrets.token_hex(16)
        sign = self._sign(file.id, timestamp, nonce).replace("=", "%3D")
        return f"/files/{path}?timestamp={timestamp}&nonce={nonce}&sign={sign}"

    def is_signed(self, file_id: str, timestamp: str, nonce: str, sign: str) -> bool:
        fresh = timestamp.isdecimal() and now() - int(timestamp) <= ADDRESS_SECONDS
        expected = self._sign(file_id, timestamp, nonce)
        return fresh and hmac.compare_digest(sign.encode(), expected.encode())

    def _sign(self, file_id: str, timestamp: str, nonce: str) -> str:
        text = f"file-preview|{file_id}|{timestamp}|{nonce}".encode()
        return base64.urlsafe_b64encode(hmac.digest(self._secret, text, hashlib.sha256)).decode()
