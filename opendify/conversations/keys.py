"""Whose chat a key of the conversations stands for. No I/O."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# A chat of such a name stands for a conversation that no chat is in, but that was its owner's.
NO_CHAT = "="


@dataclass(frozen=True, slots=True)
class ChatKey:
    """A chat, and to whom it belongs. ``caller`` stands for the caller's key and never is it.

    The first three are None for a chat from a file of the earlier system, which knew only chats.
    """

    caller: str | None
    model: str | None
    user: str | None
    chat_id: str


def parse_chat_key(key: str) -> ChatKey:
    """The chat of a key, in texts that any encoding of Unicode can write."""
    try:
        parts = json.loads(key)
    except (ValueError, RecursionError):
        parts = None
    if isinstance(parts, list) and len(parts) == 4 and all(isinstance(p, str) for p in parts):
        return ChatKey(*map(encodable, parts))
    return ChatKey(None, None, None, encodable(key))


def encodable(text: str) -> str:
    """The text with a "?" for each half of a surrogate pair, which JSON can hold and UTF-8 cannot.
    None is in what we write, but a file may have been edited."""
    return text.encode("utf-8", "replace").decode()


def is_chat(key: str) -> bool:
    """Whether the key stands for a chat, and not only for whose a conversation is."""
    # No JSON string holds these three characters, so the last part is the chat.
    return not key.rpartition('","')[2].startswith(NO_CHAT)


def count_by_model(keys: Iterable[str]) -> dict[str, int]:
    """How many of the chats are with each model, most first; those with none left out."""
    # Told apart by how they begin before anything is decoded, which takes a tenth of the time.
    split = (key.split('","', 2) for key in keys)
    beginnings = Counter((parts[0], parts[1]) for parts in split if len(parts) == 3)
    counts: Counter[str] = Counter()
    for beginning, count in beginnings.items():
        model = parse_chat_key('","'.join([*beginning, "", ""]) + '"]').model
        if model is not None:
            counts[model] += count
    return dict(counts.most_common())
