"""The record of a chat, and its JSON form. No I/O.

A chat is a tree: where somebody edits or regenerates a message, it goes on in another Dify
conversation. The record of a chat holds its branches, each a Dify conversation. In JSON, the branch
used last is the record itself, as releases that knew only one wrote it, and ``branches`` holds the
others.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

_quote = json.JSONEncoder(ensure_ascii=False).encode
_quote_ascii = json.JSONEncoder().encode

_EARLIER_DIGEST_MEMBER = "heard"
_OTHER_BRANCHES = "branches"


# The branches of a chat; beyond this the least recently used is dropped.
MAX_BRANCHES = 8


@dataclass(frozen=True, slots=True)
class ConversationRecord:
    """A Dify conversation of a chat. Times are whole epoch seconds.

    ``history_digest`` is an encoded fingerprint of its history or a pending turn; "" if unknown.
    Earlier releases wrote it as the JSON member ``heard``, which is still read. ``reason`` is why
    its last turn went there (``branches.Reason``), and ``system_digest`` the digest of the system
    prompt that it was given last; each "" if unknown.
    """

    conversation_id: str
    created_at: int
    last_used: int
    history_digest: str = ""
    reason: str = ""
    system_digest: str = ""


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """The branches of a chat: at least one, at most MAX_BRANCHES, most recently used first."""

    branches: tuple[ConversationRecord, ...]

    @property
    def latest(self) -> ConversationRecord:
        """The branch that was used last."""
        return self.branches[0]

    @property
    def last_used(self) -> int:
        """In epoch seconds."""
        return self.branches[0].last_used

    @property
    def created_at(self) -> int:
        """When its first conversation began that is still known, in epoch seconds."""
        return min(branch.created_at for branch in self.branches)

    def branch(self, conversation_id: str) -> ConversationRecord | None:
        """The branch with this conversation."""
        return next((b for b in self.branches if b.conversation_id == conversation_id), None)

    def with_branch(self, branch: ConversationRecord) -> "ChatRecord":
        """The record with this branch as the one used last."""
        others = (b for b in self.branches if b.conversation_id != branch.conversation_id)
        return ChatRecord((branch, *others)[:MAX_BRANCHES])

    def without(self, conversation_id: str) -> "ChatRecord | None":
        """The record without the branch of this conversation; None where no branch is left."""
        others = tuple(b for b in self.branches if b.conversation_id != conversation_id)
        return ChatRecord(others) if others else None


def merge(first: ChatRecord, second: ChatRecord) -> ChatRecord:
    """The branches of both. Of a conversation that both have, the record that was used later
    counts, and of equally old ones that of ``second``."""
    if first == second:
        return first
    known = {branch.conversation_id: branch for branch in second.branches}
    for branch in first.branches:
        other = known.get(branch.conversation_id)
        if other is None or other.last_used < branch.last_used:
            known[branch.conversation_id] = branch
    newest_first = sorted(known.values(), key=lambda branch: branch.last_used, reverse=True)
    return ChatRecord(tuple(newest_first[:MAX_BRANCHES]))


def merge_changes(
    written: ChatRecord | None, remote: ChatRecord | None, local: ChatRecord | None
) -> ChatRecord | None:
    """The record of a chat that was ``written`` and has been changed by others, to ``remote``, and
    here, to ``local``; None for no record."""
    known = written.branches if written else ()
    changed = tuple(branch for branch in remote.branches if branch not in known) if remote else ()
    if not changed:
        return local
    return merge(ChatRecord(changed), local) if local else ChatRecord(changed)


@dataclass(frozen=True, slots=True)
class Stats:
    """How many chats there are, and the smallest and largest `created_at` among them."""

    count: int
    oldest: int | None
    newest: int | None


Entries: TypeAlias = dict[str, ChatRecord]
Patch: TypeAlias = dict[str, ChatRecord | None]
"""A change to the entries, applied atomically; None removes a key."""


def parse_record(raw: Any) -> ChatRecord:
    """Parse one entry of the file; raises ValueError for anything else.

    Times may be fractions: people and the earlier system wrote them so.
    """
    latest = _parse_branch(raw)
    others = raw.get(_OTHER_BRANCHES, [])
    if not isinstance(others, list):
        raise ValueError("branches must be a list")
    branches = {latest.conversation_id: latest}
    for branch in map(_parse_branch, others):
        branches.setdefault(branch.conversation_id, branch)
    return ChatRecord(tuple(branches.values())[:MAX_BRANCHES])


def _parse_branch(raw: Any) -> ConversationRecord:
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    conversation_id = raw.get("dify_conversation_id")
    if not isinstance(conversation_id, str) or not conversation_id:
        raise ValueError("dify_conversation_id must be a non-empty string")
    history_digest = raw.get("history_digest", raw.get(_EARLIER_DIGEST_MEMBER, ""))
    texts = [history_digest, raw.get("reason", ""), raw.get("system_digest", "")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("history_digest, reason and system_digest must be strings")
    created_at, last_used = _seconds(raw.get("created_at")), _seconds(raw.get("last_used"))
    return ConversationRecord(conversation_id, created_at, last_used, *texts)


def parse_json(raw: bytes) -> ChatRecord:
    """Parse one standalone record; raises ValueError for anything else."""
    return parse_record(json.loads(raw))


def parse_patch(line: bytes) -> Patch:
    """Parse one line of a journal; raises ValueError if it is incomplete."""
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    return {key: None if entry is None else parse_record(entry) for key, entry in raw.items()}


def apply(patch: Patch, entries: Entries) -> None:
    """Apply a patch to the entries."""
    for key, record in patch.items():
        if record is None:
            entries.pop(key, None)
        else:
            entries[key] = record


def to_line(patch: Patch) -> bytes:
    """One line of a journal: each member replaces that of the snapshot, and null removes it."""
    members = [
        f"{_quote_ascii(key)}:{'null' if record is None else _compact(record)}"
        for key, record in patch.items()
    ]
    return f"{{{','.join(members)}}}\n".encode()


def to_json(record: ChatRecord) -> bytes:
    """One standalone record."""
    return _compact(record).encode()


def to_text(key: str, record: ChatRecord) -> bytes:
    """One member of the snapshot, indented as `json.dumps(..., indent=2)` would do it, with one
    line for each further branch.

    Formatted by hand because that function takes ten times as long when it indents, and a lone
    surrogate, which is valid in JSON but not in UTF-8, becomes its JSON escape.
    """
    members = ",\n    ".join(_members(record.latest, _quote, ": "))
    if others := record.branches[1:]:
        lines = (f"\n      {{{', '.join(_members(b, _quote, ': '))}}}" for b in others)
        members += f',\n    "{_OTHER_BRANCHES}": [{",".join(lines)}\n    ]'
    return f"  {_quote(key)}: {{\n    {members}\n  }}".encode("utf-8", "backslashreplace")


def _compact(record: ChatRecord) -> str:
    """As `json.dumps` would write it without spaces, which takes three times as long."""
    members = ",".join(_members(record.latest, _quote_ascii, ":"))
    if others := record.branches[1:]:
        objects = (f"{{{','.join(_members(b, _quote_ascii, ':'))}}}" for b in others)
        members += f',"{_OTHER_BRANCHES}":[{",".join(objects)}]'
    return f"{{{members}}}"


def _members(branch: ConversationRecord, quote: Callable[[str], str], colon: str) -> list[str]:
    """The members of the JSON object of a branch; texts that are empty are left out."""
    members = [
        f'"dify_conversation_id"{colon}{quote(branch.conversation_id)}',
        f'"created_at"{colon}{branch.created_at}',
        f'"last_used"{colon}{branch.last_used}',
    ]
    if branch.history_digest:
        members.append(f'"history_digest"{colon}{quote(branch.history_digest)}')
    if branch.reason:
        members.append(f'"reason"{colon}{quote(branch.reason)}')
    if branch.system_digest:
        members.append(f'"system_digest"{colon}{quote(branch.system_digest)}')
    return members


def _seconds(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError("created_at and last_used must be numbers of seconds")
    try:
        return int(raw)
    except OverflowError:
        raise ValueError("created_at and last_used must be finite") from None
