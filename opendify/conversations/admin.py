"""What operators can see of the conversations, and do to them."""

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
from opendify.conversations.store import records
from opendify.upstream.client import DifyClient


class ConversationAdmin:
    """Counts, lists and removes mappings. ``now`` gives epoch seconds."""

    def __init__(
        self,
        conversations: ConversationStore,
        models: Mapping[str, Model],
        client: DifyClient,
        now: Callable[[], float],
    ) -> None:
        self._conversations = conversations
        self._models = models
        self._client = client
        self._now = now

    def counts(self) -> dict[str, Any]:
        """How many chats are remembered; while the store is away, those of one worker."""
        stats = self._conversations.stats()
        chats = list(filter(is_chat, self._conversations.keys()))
        return {
            "mapping_count": len(chats),
            "oldest_mapping": stats.oldest,
            "newest_mapping": stats.newest,
            "timestamp": int(self._now()),
            "store": self._conversations.kind,
            "store_available": self._conversations.available,
            "by_model": count_by_model(chats),
        }

    def listed(self, limit: int, chat_id: str | None) -> list[dict[str, Any]]:
        """The mappings used last, all of them or those of one chat. Raises StoreUnavailable."""
        entries = self._conversations.entries(limit if chat_id is None else None)
        wanted = (
            _shown(key, kept)
            for key, kept in entries
            if chat_id is None or parse_chat_key(key).chat_id == chat_id
        )
        found = list(islice(wanted, limit))
        self._require_store()
        return found

    def remove(self, conversation_id: str, in_dify: bool) -> dict[str, Any]:
        """Removes a conversation's mappings, and where wanted first the conversation in Dify.

        Raises MappingUnknown, StoreUnavailable, and what keeps Dify from deleting it; the
        mappings are kept then, so that it can be tried again.
        """
        key = self._conversations.owner(conversation_id)
        self._require_store()
        if key is None:
            raise errors.MappingNotFound(
                f"No chat is kept in the conversation '{conversation_id[:100]}'; "
                "GET /v1/conversation/mappings?limit=100 lists them."
            )
        outcome = self._delete_in_dify(key, conversation_id) if in_dify else "kept"
        keys = self._conversations.remove_conversation(conversation_id)
        self._require_store()
        return {"removed_count": len(keys), "dify": outcome, "timestamp": int(self._now())}

    def cleanup(self, days: float) -> dict[str, Any]:
        """Removes the mappings that were not used for so many days. Raises StoreUnavailable."""
        removed = self._conversations.cleanup(days)
        self._require_store()
        return {"removed_count": removed, "max_age_days": days, "timestamp": int(self._now())}

    def _delete_in_dify(self, key: str, conversation_id: str) -> str:
        whose = parse_chat_key(key)
        model = self._models.get(whose.model or "")
        if model is None or not model.key or whose.user is None:
            raise errors.InvalidRequest(
                "It is not known which app and user of Dify the conversation belongs to, or with "
                "which key to delete it there (the key of its model is not in MODEL_CONFIG). "
                "Without ?dify=true the mapping alone is removed.",
                param="dify",
            )
        body = {"user": whose.user}
        try:
            path = f"/conversations/{quote(conversation_id, safe='')}"
            self._client.call(model, "DELETE", path, json=body)
        except errors.ConversationNotFound:
            return "unknown"
        return "deleted"

    def _require_store(self) -> None:
        if not self._conversations.available:
            raise errors.StoreUnavailable(
                "The conversations cannot be reached where they are kept; the log says why."
            )


def _shown(key: str, kept: records.ConversationRecord) -> dict[str, Any]:
    whose = parse_chat_key(key)
    return {
        "caller": whose.caller,
        "model": whose.model,
        "user": whose.user,
        "chat_id": whose.chat_id,
        "dify_conversation_id": encodable(kept.conversation_id),
        "created_at": kept.created_at,
        "last_used": kept.last_used,
    }
