"""Which messages of a chat are its turn, and which of them ask. No I/O.

A client sends the whole chat with each request. What the user has said since the last answer is the
turn, in one message or in several: some clients send a picture in a message of its own, and after a
failed answer the next question follows the one that failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from opendify.protocols.base import Message

INSTRUCTION_ROLES = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Turn:
    """A chat, split at its last answer.

    ``instructions`` are the system and developer messages that do not ask. ``history`` is the other
    messages up to the last answer, ``messages`` those after it. ``asked`` are the messages whose
    texts and files are the question: those of ``messages`` that are not blank or, where the user
    has said nothing, the instructions at the end. It is empty where nothing is asked, and where the
    last answer is to be continued.
    """

    instructions: tuple[Message, ...]
    history: tuple[Message, ...]
    messages: tuple[Message, ...]
    asked: tuple[Message, ...]

    @property
    def is_auxiliary(self) -> bool:
        """Whether the client asks something about the chat (a summary, a title), which does not
        belong in the chat itself."""
        is_instruction = bool(self.asked) and self.asked[0].role in INSTRUCTION_ROLES
        return is_instruction and bool(self.history)

    @property
    def is_continuation(self) -> bool:
        """Whether the chat ends with an answer, which is to be continued."""
        is_answered = any(message.role == "user" for message in self.history)
        return is_answered and not self.asked and not self.messages


def split_turn(messages: Sequence[Message]) -> Turn:
    """Splits a chat into its turn and what came before."""
    start = turn_start(messages)
    history = tuple(m for m in messages[:start] if m.role not in INSTRUCTION_ROLES)
    said = tuple(m for m in messages[start:] if m.role not in (*INSTRUCTION_ROLES, "assistant"))
    # A tool that has returned nothing has answered all the same.
    asked = tuple(m for m in said if not m.is_blank) or tuple(m for m in said if m.role != "user")
    early, late = _instructions(messages[:start]), _instructions(messages[start:])
    if asked:
        return Turn(early + late, history, said, asked)
    # Without an answer, the chat begins with instructions, and the last one asks.
    asked = late if start else late[-1:]
    return Turn(early + late[: len(late) - len(asked)], history, said, asked)


def turn_start(messages: Sequence[Message]) -> int:
    """The index after the last answer; 0 where there is none.

    A blank answer at the end is none, but the place that a client keeps for the answer to come.
    """
    is_followed = False
    for index in reversed(range(len(messages))):
        message = messages[index]
        if message.role == "assistant":
            if is_followed or not message.is_blank:
                return index + 1
        elif message.role not in INSTRUCTION_ROLES:
            is_followed = True
    return 0


def _instructions(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(m for m in messages if m.role in INSTRUCTION_ROLES and m.text.strip())
