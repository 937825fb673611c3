"""Deletes throwaway conversations in Dify."""

import logging

from opendify import errors
from opendify.config.models import Model
from opendify.upstream.client import DifyClient

log = logging.getLogger(__name__)

DELETE_TIMEOUT = 10.0


def delete_conversation(client: DifyClient, model: Model, conversation_id: str, user: str) -> None:
    """Deletes a conversation of this user. A failure is only logged."""
    path = f"/conversations/{conversation_id}"
    try:
        client.call(model, "DELETE", path, DELETE_TIMEOUT, json={"user": user})
    except errors.ConversationNotFound:
        log.debug("a conversation to delete does not exist model=%s", model.name)
    except errors.OpenDifyError as exc:
        log.warning(
            "could not delete a conversation model=%s conversation=%s code=%s",
            model.name,
            conversation_id,
            exc.code,
        )
