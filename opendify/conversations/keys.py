"""Parses the store keys of chats. No I/O."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# The chat part of a key that only records who owns a conversation that no chat uses.
NO_CHAT = "="


@dataclass(frozen=True, slots=True)
class ChatKey:
    """A chat and its owner. ``caller`` stands for the caller's API key and never is it.

    The first three are None for a chat from a file of the earlier system, which stored chat ids
    only.
    """

    caller: str | None
    model: str | None
    user: str | None
    chat_id: str


def parse_chat_key(key: str) -> ChatKey:
    """The chat of a store key, in texts that any Unicode encoding can represent."""
    try:
        parts = json.loads(key)
    except (ValueError, RecursionError):
        parts = None
    if isinstance(parts, list) and len(parts) == 4 and all(isinstance(p, str) for p in parts):
        return ChatKey(*map(encodable, parts))
    return ChatKey(None, None, None, encodable(key))


def encodable(text: str) -> str:
    """The text with a "?" for each lone surrogate, which JSON can contain and UTF-8 cannot.
    OpenDify writes none, but a file may have been edited."""
    return text.encode("utf-8", "replace").decode()


def is_chat(key: str) -> bool:
    """Whether the key stands for a chat, and not only records who owns a conversation."""
    # No JSON string holds these three characters, so the last part is the chat.
    return not key.rpartition('","')[2].startswith(NO_CHAT)


def count_by_model(keys: Iterable[str]) -> dict[str, int]:
    """How many chats each model has, largest first; models without chats are omitted."""
    # Grouped by prefix before anything is decoded, which takes a tenth of the time.
    split = (key.split('","', 2) for key in keys)
    prefixes = Counter((parts[0], parts[1]) for parts in split if len(parts) == 3)
    counts: Counter[str] = Counter()
    for prefix, count in prefixes.items():
        model = parse_chat_key('","'.join([*prefix, "", ""]) + '"]').model
        if model is not None:
            counts[model] += count
    return dict(counts.most_common())
