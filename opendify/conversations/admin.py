"""Lists, counts and removes conversations for operators."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any
from urllib.parse import quote

from opendify import errors
from opendify.config.models import Model
from opendify.conversations import ConversationStore
from opendify.conversations.keys import (
    count_by_model,
    encodable,
    is_chat,
    parse_chat_key,
)
from opendify.conversations.store.records import ChatRecord, ConversationRecord
from opendify.upstream.client import DifyClient


class ConversationAdmin:
    """Counts, lists and removes mappings. ``now`` returns epoch seconds."""

    def __init__(
        self,
        store: ConversationStore,
        models: Mapping[str, Model],
        client: DifyClient,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._models = models
        self._client = client
        self._now = now

    def summary(self) -> dict[str, Any]:
        """How many chats are stored; while the store is unreachable, those known to one worker."""
        stats = self._store.stats()
        chats = list(filter(is_chat, self._store.keys()))
        return {
            "mapping_count": len(chats),
            "oldest_mapping": stats.oldest,
            "newest_mapping": stats.newest,
            "timestamp": int(self._now()),
            "store": self._store.kind,
            "store_available": self._store.available,
            "by_model": count_by_model(chats),
        }

    def list_mappings(self, limit: int, chat_id: str | None) -> list[dict[str, Any]]:
        """The most recently used mappings, of all chats or of one. Raises StoreUnavailable."""
        entries = self._store.entries(limit if chat_id is None else None)
        matching = (
            _to_json(key, record)
            for key, record in entries
            if chat_id is None or parse_chat_key(key).chat_id == chat_id
        )
        found = list(islice(matching, limit))
        self._require_available()
        return found

    def remove(self, conversation_id: str, in_dify: bool) -> dict[str, Any]:
        """Remove the mappings of a conversation, and with ``in_dify`` first the conversation in
        Dify.

        Raises MappingNotFound, StoreUnavailable, and the error with which Dify refuses to delete
        it; the mappings are not removed then, so that the call can be repeated.
        """
        owners = self._store.owners(conversation_id)
        self._require_available()
        if not owners:
            raise errors.MappingNotFound(
                f"No chat is mapped to the conversation '{conversation_id[:100]}'; "
                "GET /v1/conversation/mappings?limit=100 lists them."
            )
        outcome = self._delete_in_dify(owners[0], conversation_id) if in_dify else "kept"
        keys = self._store.remove_conversation(conversation_id)
        self._require_available()
        return {"removed_count": len(keys), "dify": outcome, "timestamp": int(self._now())}

    def cleanup(self, days: float) -> dict[str, Any]:
        """Remove the mappings not used for ``days`` days. Raises StoreUnavailable."""
        removed = self._store.cleanup(days)
        self._require_available()
        return {"removed_count": removed, "max_age_days": days, "timestamp": int(self._now())}

    def _delete_in_dify(self, key: str, conversation_id: str) -> str:
        chat = parse_chat_key(key)
        model = self._models.get(chat.model or "")
        if model is None or not model.key or chat.user is None:
            raise errors.InvalidRequest(
                "The Dify app or user of the conversation is unknown, or the key of its model, "
                "which is needed to delete it there, is not in MODEL_CONFIG. Without ?dify=true "
                "only the mapping is removed.",
                param="dify",
            )
        body = {"user": chat.user}
        try:
            path = f"/conversations/{quote(conversation_id, safe='')}"
            self._client.call(model, "DELETE", path, json=body)
        except errors.ConversationNotFound:
            return "unknown"
        return "deleted"

    def _require_available(self) -> None:
        if not self._store.available:
            raise errors.StoreUnavailable(
                "The conversation store cannot be reached; the log says why."
            )


def _to_json(key: str, record: ChatRecord) -> dict[str, Any]:
    """A chat. Its own members are those of the branch that was used last, as earlier releases
    listed them."""
    chat = parse_chat_key(key)
    return {
        "caller": chat.caller,
        "model": chat.model,
        "user": chat.user,
        "chat_id": chat.chat_id,
        **_branch_to_json(record.latest),
        "branches": [_branch_to_json(branch) for branch in record.branches],
    }


def _branch_to_json(branch: ConversationRecord) -> dict[str, Any]:
    return {
        "dify_conversation_id": encodable(branch.conversation_id),
        "created_at": branch.created_at,
        "last_used": branch.last_used,
        "reason": encodable(branch.reason) or None,
    }
