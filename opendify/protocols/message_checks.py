"""What the messages of a request must be in the APIs of all clients. No I/O."""

from collections.abc import Sequence
from typing import Any

from opendify.errors import InvalidRequest
from opendify.protocols.base import Attachment, Message
from opendify.protocols.turns import INSTRUCTION_ROLES, split_turn, turn_start

# Each is read several times; a longer chat would hold up everybody else.
MAX_MESSAGES = 10_000

# A message, and what is wrong with its content.
Checked = tuple[Message, InvalidRequest | None]


def check_message_list(raw: Any) -> list[Any]:
    """The ``messages`` of a request. Raises InvalidRequest if they are no list, or too many."""
    if not isinstance(raw, list) or not raw:
        raise InvalidRequest("'messages' must be a non-empty array.", param="messages")
    if len(raw) > MAX_MESSAGES:
        raise InvalidRequest(
            f"'messages' may hold up to {MAX_MESSAGES} messages.", param="messages"
        )
    return raw


def usable_messages(parsed: Sequence[Checked]) -> tuple[Message, ...]:
    """The messages. Raises InvalidRequest, which names the message.

    The content of the turn and of the instructions must be usable. Of earlier messages, whose files
    are not sent to Dify again, the usable part is enough: a client may keep its own form of them.
    """
    messages = tuple([message for message, _ in parsed])
    start = turn_start(messages)
    for index, (message, problem) in enumerate(parsed):
        if problem and (message.role in INSTRUCTION_ROLES or index >= start):
            raise problem
    _check_asked(messages)
    return messages


def located(url: Any, kind: str, path: str, name: str = "") -> Attachment | None:
    """A file at an http(s) address, or in a ``data:`` address with base64; None for anything
    else."""
    scheme = url[:8].lower() if isinstance(url, str) else ""
    if scheme.startswith(("http://", "https://")):
        return Attachment(kind, url=url, name=name, path=path)
    if scheme.startswith("data:"):
        comma = url.find(",", 5)  # what follows it can be tens of megabytes: it is copied once
        media_type, *options = url[5 : max(5, comma)].split(";")
        if "base64" in options and (data := url[comma + 1 :]):
            return Attachment(kind, data=data, media_type=media_type.lower(), name=name, path=path)
    return None


def _check_asked(messages: tuple[Message, ...]) -> None:
    turn = split_turn(messages)
    if turn.asked or turn.is_continuation:
        return
    if any(message.role == "user" for message in messages):
        raise InvalidRequest("The last message of the user is empty.", param="messages")
    raise InvalidRequest(
        "'messages' must hold a message with the role 'user', or an instruction with the role "
        "'system' or 'developer': Dify answers a question.",
        param="messages",
    )
