"""How mappings lie in Redis. All functions raise RedisError.

    opendify:chat:<key>           one mapping, as it is in the JSON file
    opendify:used                 all keys, sorted by when they were last used
    opendify:created              all keys, sorted by when their conversations began
    opendify:conversation:<id>    the keys that have the conversation

A server that evicts may take any of them away. The first is what counts; the others lead there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from redis.exceptions import WatchError

from opendify.conversations.store.mutations import Mutation
from opendify.conversations.store.records import (
    ConversationRecord,
    Entries,
    Patch,
    Stats,
    parse_json,
    to_json,
)
from opendify.storage.redis_connection import Client

BATCH = 500

_USED, _CREATED = "opendify:used", "opendify:created"
_ATTEMPTS = 100
# Scores are doubles; a time that somebody wrote by hand may be greater than they can hold.
_GREATEST_SCORE = 2**53


@dataclass(frozen=True, slots=True)
class Change:
    """What was changed, and how the mappings concerned were before; false where nothing was
    stored."""

    patch: Patch
    before: Entries

    def __bool__(self) -> bool:
        return any(self.patch.values())


def read(client: Client, keys: list[str]) -> Entries:
    """Those of the mappings that there are."""
    return _parsed(keys, client.mget([_chat(key) for key in keys])) if keys else {}


def change(client: Client, keys: list[str], plan: Mutation) -> Change:
    """Make the change that ``plan`` derives from these mappings.

    No other change to them comes between.
    """
    for _ in range(_ATTEMPTS):
        with client.pipeline() as pipe:
            try:
                pipe.watch(*map(_chat, keys))
                before = _parsed(keys, pipe.mget([_chat(key) for key in keys]))
                patch = plan(before)
                if patch:
                    pipe.multi()
                    for key, mapping in patch.items():
                        _queue(pipe, key, before.get(key), mapping)
                    pipe.execute()
                return Change(patch, before)
            except WatchError:
                continue
    raise WatchError("others change the same chats all the time")


def remove(
    client: Client, keys: list[str], condition: Callable[[ConversationRecord], bool]
) -> list[str]:
    """Remove the mappings of which the condition is true; returns their keys."""

    def plan(entries: Entries) -> Patch:
        return {key: None for key in keys if key not in entries or condition(entries[key])}

    made = change(client, keys, plan) if keys else Change({}, {})
    return [key for key in made.patch if key in made.before]


def keys_of(client: Client, conversation_id: str) -> list[str]:
    """The keys that have the conversation."""
    known = sorted(map(_text, client.smembers(_conversation(conversation_id))))
    return [
        key
        for key, mapping in read(client, known).items()
        if mapping.conversation_id == conversation_id
    ]


def all_keys(client: Client) -> list[str]:
    return [_text(raw) for raw in client.zrange(_USED, 0, -1)]


def newest(client: Client, limit: int | None) -> Iterator[tuple[str, ConversationRecord]]:
    """The mappings, those used last first."""
    if limit == 0:
        return
    keys = [_text(raw) for raw in client.zrevrange(_USED, 0, -1 if limit is None else limit - 1)]
    for start in range(0, len(keys), BATCH):
        yield from read(client, keys[start : start + BATCH]).items()


def least_used(client: Client, before: float) -> list[str]:
    """Keys that were last used before then, a batch of them at most."""
    found = client.zrangebyscore(_USED, "-inf", f"({_score(before)}", start=0, num=BATCH)
    return [_text(raw) for raw in found]


def surplus(client: Client, most: int) -> dict[str, float]:
    """The keys used least recently of those beyond ``most``, a batch of them at most, and the
    scores of their last uses."""
    number = min(client.zcard(_USED) - most, BATCH)
    found = client.zrange(_USED, 0, number - 1, withscores=True) if number > 0 else []
    return {_text(raw): score for raw, score in found}


def stats(client: Client) -> Stats:
    with client.pipeline(transaction=False) as pipe:
        pipe.zcard(_USED)
        pipe.zrange(_CREATED, 0, 0, withscores=True)
        pipe.zrevrange(_CREATED, 0, 0, withscores=True)
        count, oldest, newest = pipe.execute()
    return Stats(count, *(int(found[0][1]) if found else None for found in (oldest, newest)))


def _queue(
    pipe: Client, key: str, old: ConversationRecord | None, new: ConversationRecord | None
) -> None:
    member = _member(key)
    if old is not None and (new is None or new.conversation_id != old.conversation_id):
        pipe.srem(_conversation(old.conversation_id), member)
    if new is None:
        pipe.delete(_chat(key))
        pipe.zrem(_USED, member)
        pipe.zrem(_CREATED, member)
    else:
        pipe.set(_chat(key), to_json(new))
        pipe.zadd(_USED, {member: _score(new.last_used)})
        pipe.zadd(_CREATED, {member: _score(new.created_at)})
        pipe.sadd(_conversation(new.conversation_id), member)


def _parsed(keys: list[str], found: list[bytes | None]) -> Entries:
    entries: Entries = {}
    for key, raw in zip(keys, found, strict=True):
        if raw is not None:
            try:
                entries[key] = parse_json(raw)
            except (ValueError, RecursionError):
                continue  # not written by us: as good as none, and overwritten in time
    return entries


def _chat(key: str) -> bytes:
    return b"opendify:chat:" + _member(key)


def _conversation(conversation_id: str) -> bytes:
    return b"opendify:conversation:" + _member(conversation_id)


def _member(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _score(seconds: float) -> float:
    return min(max(seconds, -_GREATEST_SCORE), _GREATEST_SCORE)
