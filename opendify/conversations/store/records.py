"""What is remembered of one chat, and how it is written in JSON. No I/O."""

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

_quote = json.JSONEncoder(ensure_ascii=False).encode
_quote_ascii = json.JSONEncoder().encode


@dataclass(frozen=True, slots=True)
class ConversationRecord:
    """A chat's conversation in Dify. Times are whole epoch seconds."""

    conversation_id: str
    created_at: int
    last_used: int
    heard: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """How many mappings there are, and the least and greatest `created_at` among them."""

    count: int
    oldest: int | None
    newest: int | None


Entries: TypeAlias = dict[str, ConversationRecord]
Patch: TypeAlias = dict[str, ConversationRecord | None]
"""A change to the entries, made whole or not at all; None takes a key away."""


def parse_record(raw: Any) -> ConversationRecord:
    """Read one entry of the file; raises ValueError for anything that is not one.

    Times may be fractions: people and the earlier system wrote them so.
    """
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    conversation_id, heard = raw.get("dify_conversation_id"), raw.get("heard", "")
    if not isinstance(conversation_id, str) or not conversation_id or not isinstance(heard, str):
        raise ValueError("dify_conversation_id must be a text that is not empty, heard a text")
    created_at, last_used = _seconds(raw.get("created_at")), _seconds(raw.get("last_used"))
    return ConversationRecord(conversation_id, created_at, last_used, heard)


def parse_json(raw: bytes) -> ConversationRecord:
    """Read one entry that stands alone; raises ValueError for anything that is not one."""
    return parse_record(json.loads(raw))


def parse_patch(line: bytes) -> Patch:
    """Read one line of a journal; raises ValueError when it is not whole."""
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    return {key: None if entry is None else parse_record(entry) for key, entry in raw.items()}


def apply(patch: Patch, entries: Entries) -> None:
    """Make a change."""
    for key, mapping in patch.items():
        if mapping is None:
            entries.pop(key, None)
        else:
            entries[key] = mapping


def to_line(patch: Patch) -> bytes:
    """One line of a journal: a JSON merge patch (RFC 7396) to the file that people read."""
    members = [
        f"{_quote_ascii(key)}:{'null' if mapping is None else _compact(mapping)}"
        for key, mapping in patch.items()
    ]
    return f"{{{','.join(members)}}}\n".encode()


def to_json(mapping: ConversationRecord) -> bytes:
    """One entry that stands alone."""
    return _compact(mapping).encode()


def to_text(key: str, mapping: ConversationRecord) -> bytes:
    """One member of the file that people read, as `json.dumps(..., indent=2)` would write it.

    Written out by hand because that function takes ten times as long when it indents, and half
    of a surrogate pair, which is text in JSON but not in UTF-8, becomes its JSON escape.
    """
    heard = f',\n    "heard": {_quote(mapping.heard)}' if mapping.heard else ""
    text = (
        f"  {_quote(key)}: {{\n"
        f'    "dify_conversation_id": {_quote(mapping.conversation_id)},\n'
        f'    "created_at": {mapping.created_at},\n'
        f'    "last_used": {mapping.last_used}{heard}\n'
        "  }"
    )
    return text.encode("utf-8", "backslashreplace")


def _compact(mapping: ConversationRecord) -> str:
    """As `json.dumps` would write it without spaces, which takes thrice as long."""
    heard = f',"heard":{_quote_ascii(mapping.heard)}' if mapping.heard else ""
    return (
        f'{{"dify_conversation_id":{_quote_ascii(mapping.conversation_id)},'
        f'"created_at":{mapping.created_at},"last_used":{mapping.last_used}{heard}}}'
    )


def _seconds(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError("created_at and last_used must be numbers of seconds")
    try:
        return int(raw)
    except OverflowError:
        raise ValueError("created_at and last_used must be finite") from None
