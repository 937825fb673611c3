"""The layout of the mappings in Redis. All functions raise RedisError.

    opendify:chat:<key>           one record, as it is in the JSON file
    opendify:used                 all keys, sorted by last use
    opendify:created              all keys, sorted by the creation of their first conversations
    opendify:conversation:<id>    the keys that have the conversation

A server with eviction may remove any of them. The first is authoritative; the others are indexes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from redis.exceptions import WatchError

from opendify.conversations.store.mutations import Mutation
from opendify.conversations.store.records import (
    ChatRecord,
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
# Scores are doubles; a time that somebody wrote by hand may exceed their exact range.
_MAX_SCORE = 2**53


@dataclass(frozen=True, slots=True)
class Change:
    """A patch and the records before it. False if nothing was stored."""

    patch: Patch
    previous: Entries

    def __bool__(self) -> bool:
        return any(self.patch.values())


def read(client: Client, keys: list[str]) -> Entries:
    """The records that exist of these keys."""
    return _parsed(keys, client.mget([_chat(key) for key in keys])) if keys else {}


def change(client: Client, keys: list[str], mutation: Mutation) -> Change:
    """Apply the patch that ``mutation`` derives from these records.

    No other change to them comes between.
    """
    for _ in range(_ATTEMPTS):
        with client.pipeline() as pipe:
            try:
                pipe.watch(*map(_chat, keys))
                previous = _parsed(keys, pipe.mget([_chat(key) for key in keys]))
                patch = mutation(previous)
                if patch:
                    pipe.multi()
                    for key, record in patch.items():
                        _queue_write(pipe, key, previous.get(key), record)
                    pipe.execute()
                return Change(patch, previous)
            except WatchError:
                continue
    raise WatchError("other clients keep changing the same chats")


def remove(client: Client, keys: list[str], condition: Callable[[ChatRecord], bool]) -> list[str]:
    """Remove the records that satisfy the condition; returns their keys."""

    def mutate(entries: Entries) -> Patch:
        return {key: None for key in keys if key not in entries or condition(entries[key])}

    result = change(client, keys, mutate) if keys else Change({}, {})
    return [key for key in result.patch if key in result.previous]


def keys_of(client: Client, conversation_id: str) -> list[str]:
    """The keys that have the conversation."""
    known = sorted(map(_decode, client.smembers(_conversation(conversation_id))))
    return [key for key, record in read(client, known).items() if record.branch(conversation_id)]


def all_keys(client: Client) -> list[str]:
    return [_decode(raw) for raw in client.zrange(_USED, 0, -1)]


def newest(client: Client, limit: int | None) -> Iterator[tuple[str, ChatRecord]]:
    """The mappings, most recently used first."""
    if limit == 0:
        return
    keys = [_decode(raw) for raw in client.zrevrange(_USED, 0, -1 if limit is None else limit - 1)]
    for start in range(0, len(keys), BATCH):
        yield from read(client, keys[start : start + BATCH]).items()


def last_used_before(client: Client, before: float) -> list[str]:
    """Keys last used before that time, at most one batch."""
    found = client.zrangebyscore(_USED, "-inf", f"({_score(before)}", start=0, num=BATCH)
    return [_decode(raw) for raw in found]


def surplus(client: Client, max_entries: int) -> dict[str, float]:
    """The least recently used keys beyond ``max_entries``, at most one batch, with the scores of
    their last uses."""
    number = min(client.zcard(_USED) - max_entries, BATCH)
    found = client.zrange(_USED, 0, number - 1, withscores=True) if number > 0 else []
    return {_decode(raw): score for raw, score in found}


def stats(client: Client) -> Stats:
    with client.pipeline(transaction=False) as pipe:
        pipe.zcard(_USED)
        pipe.zrange(_CREATED, 0, 0, withscores=True)
        pipe.zrevrange(_CREATED, 0, 0, withscores=True)
        count, oldest, newest = pipe.execute()
    return Stats(count, *(int(found[0][1]) if found else None for found in (oldest, newest)))


def _queue_write(pipe: Client, key: str, old: ChatRecord | None, new: ChatRecord | None) -> None:
    member = _encode(key)
    before, after = (
        {branch.conversation_id for branch in chat.branches} if chat else set()
        for chat in (old, new)
    )
    for conversation_id in before - after:
        pipe.srem(_conversation(conversation_id), member)
    if new is None:
        pipe.delete(_chat(key))
        pipe.zrem(_USED, member)
        pipe.zrem(_CREATED, member)
    else:
        pipe.set(_chat(key), to_json(new))
        pipe.zadd(_USED, {member: _score(new.last_used)})
        pipe.zadd(_CREATED, {member: _score(new.created_at)})
        # All of them: a server with eviction may have removed any.
        for conversation_id in after:
            pipe.sadd(_conversation(conversation_id), member)


def _parsed(keys: list[str], found: list[bytes | None]) -> Entries:
    entries: Entries = {}
    for key, raw in zip(keys, found, strict=True):
        if raw is not None:
            try:
                entries[key] = parse_json(raw)
            except (ValueError, RecursionError):
                continue  # not written by OpenDify: treated as missing, and overwritten in time
    return entries


def _chat(key: str) -> bytes:
    return b"opendify:chat:" + _encode(key)


def _conversation(conversation_id: str) -> bytes:
    return b"opendify:conversation:" + _encode(conversation_id)


def _encode(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _score(seconds: float) -> float:
    return min(max(seconds, -_MAX_SCORE), _MAX_SCORE)
