"""The record of a chat, and its JSON form. No I/O."""

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

_quote = json.JSONEncoder(ensure_ascii=False).encode
_quote_ascii = json.JSONEncoder().encode

_EARLIER_DIGEST_MEMBER = "heard"


@dataclass(frozen=True, slots=True)
class ConversationRecord:
    """The Dify conversation of a chat. Times are whole epoch seconds.

    ``history_digest`` is an encoded fingerprint of its history or a pending turn; "" if unknown.
    Earlier releases wrote it as the JSON member ``heard``, which is still read.
    """

    conversation_id: str
    created_at: int
    last_used: int
    history_digest: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """How many mappings there are, and the smallest and largest `created_at` among them."""

    count: int
    oldest: int | None
    newest: int | None


Entries: TypeAlias = dict[str, ConversationRecord]
Patch: TypeAlias = dict[str, ConversationRecord | None]
"""A change to the entries, applied atomically; None removes a key."""


def parse_record(raw: Any) -> ConversationRecord:
    """Parse one entry of the file; raises ValueError for anything else.

    Times may be fractions: people and the earlier system wrote them so.
    """
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    conversation_id = raw.get("dify_conversation_id")
    if not isinstance(conversation_id, str) or not conversation_id:
        raise ValueError("dify_conversation_id must be a non-empty string")
    history_digest = raw.get("history_digest", raw.get(_EARLIER_DIGEST_MEMBER, ""))
    if not isinstance(history_digest, str):
        raise ValueError("history_digest must be a string")
    created_at, last_used = _seconds(raw.get("created_at")), _seconds(raw.get("last_used"))
    return ConversationRecord(conversation_id, created_at, last_used, history_digest)


def parse_json(raw: bytes) -> ConversationRecord:
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
    """One line of a journal: a JSON merge patch (RFC 7396) for the snapshot."""
    members = [
        f"{_quote_ascii(key)}:{'null' if record is None else _compact(record)}"
        for key, record in patch.items()
    ]
    return f"{{{','.join(members)}}}\n".encode()


def to_json(record: ConversationRecord) -> bytes:
    """One standalone record."""
    return _compact(record).encode()


def to_text(key: str, record: ConversationRecord) -> bytes:
    """One member of the snapshot, as `json.dumps(..., indent=2)` would write it.

    Formatted by hand because that function takes ten times as long when it indents, and a lone
    surrogate, which is valid in JSON but not in UTF-8, becomes its JSON escape.
    """
    digest = record.history_digest
    member = f',\n    "history_digest": {_quote(digest)}' if digest else ""
    text = (
        f"  {_quote(key)}: {{\n"
        f'    "dify_conversation_id": {_quote(record.conversation_id)},\n'
        f'    "created_at": {record.created_at},\n'
        f'    "last_used": {record.last_used}{member}\n'
        "  }"
    )
    return text.encode("utf-8", "backslashreplace")


def _compact(record: ConversationRecord) -> str:
    """As `json.dumps` would write it without spaces, which takes three times as long."""
    digest = record.history_digest
    member = f',"history_digest":{_quote_ascii(digest)}' if digest else ""
    return (
        f'{{"dify_conversation_id":{_quote_ascii(record.conversation_id)},'
        f'"created_at":{record.created_at},"last_used":{record.last_used}{member}}}'
    )


def _seconds(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError("created_at and last_used must be numbers of seconds")
    try:
        return int(raw)
    except OverflowError:
        raise ValueError("created_at and last_used must be finite") from None
