"""Turns whose end was not seen: whether Dify has run them, from what it lists. No I/O.

A gateway's page while Dify restarts, a timeout, a caller that left and a process that was killed
leave it open whether a question is in Dify's memory. What is kept when a question is sent, and the
newest messages of its conversation (``GET /messages``), tell.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from opendify.conversations import fingerprint
from opendify.conversations.fingerprint import (
    QUESTION_DIGITS,
    HistoryFingerprint,
    extend,
    holds_an_exchange,
    message_digest,
    question_digest,
    text_digests,
)
from opendify.dify.conversation_api import RecordedMessage
from opendify.protocols.base import Message

_WORD = re.compile(
    rf"-(?P<state>failed|left|[0-9a-f]{{16}})"
    rf"/(?P<question>[0-9a-f]{{{QUESTION_DIGITS}}}|)/(?P<before>.*)"
)


class Outcome(Enum):
    """How a turn ended whose answer was not complete."""

    NOT_RUN = "not run"
    """It is certain that Dify has not run it."""
    FAILED = "failed"
    """An error leaves it open whether Dify has run it."""
    LEFT = "left"
    """The caller left before Dify said anything; the question may still be on its way."""
    RUN = "run"
    """Dify has begun to answer."""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A turn that runs, or ended in the middle, in a conversation that had heard ``before``.

    ``question`` is the digest of the query as it was sent to Dify, "" where it is certain that
    Dify has run it. ``state`` is ``failed``, ``left`` or the id of the process that runs the turn.
    """

    before: HistoryFingerprint
    question: str
    state: str

    @property
    def process(self) -> str:
        """The process that runs the turn, "" where it has ended."""
        return "" if self.state in (Outcome.FAILED.value, Outcome.LEFT.value) else self.state

    @property
    def may_still_arrive(self) -> bool:
        """Whether nothing was heard of the question, which Dify may take a moment later."""
        return bool(self.question) and self.state != Outcome.FAILED.value

    def ended(self, outcome: Outcome) -> "Unsettled":
        """The same turn, after it ended like this (FAILED, LEFT or RUN)."""
        if outcome is Outcome.RUN:
            return Unsettled(self.before, "", Outcome.FAILED.value)
        return Unsettled(self.before, self.question, outcome.value)

    def encode(self) -> str:
        """As one word, for the store."""
        return f"-{self.state}/{self.question}/{self.before.encode()}"


def decode(word: str) -> Unsettled | None:
    """What ``Unsettled.encode`` has written; None where it is no such word."""
    found = _WORD.fullmatch(word)
    before = fingerprint.decode(found["before"]) if found else None
    return Unsettled(before, found["question"], found["state"]) if found and before else None


def has_run(unsettled: Unsettled, messages: Sequence[RecordedMessage]) -> bool:
    """Whether the turn is one of these messages, which are the newest ones of its conversation.

    The last complete answer is known by its id, so a question that was asked twice is told from
    the one before. An earlier release did not keep that id: then the texts decide.
    """
    if not unsettled.question:
        return True
    settled, later = _split(unsettled.before, messages)
    if settled is None:
        return any(question_digest(m.query) == unsettled.question for m in later)
    return any(
        m.created_at > settled.created_at or question_digest(m.query) == unsettled.question
        for m in later
    )


def with_recorded(
    before: HistoryFingerprint, history: Sequence[Message], messages: Sequence[RecordedMessage]
) -> HistoryFingerprint | None:
    """What a conversation has heard that had heard ``before``, and whose newest message is the
    last exchange of the history; None where it is not, or where its answer is not complete."""
    if not holds_an_exchange(history[-2:]):
        return None
    texts = text_digests(history)
    _, later = _split(before, messages)
    found = [m for m in later if m.is_complete and m.answer.strip() and _texts(m) == texts[-2:]]
    # What is beside it may only be older: a question that is in the history before.
    beside = [m for m in later if m not in found[:1]]
    if not found or any(
        m.created_at > found[0].created_at or _texts(m)[0] not in texts[:-2] for m in beside
    ):
        return None
    return extend(before, history[-2:], texts=texts[-2:], message_id=found[0].id)


def _texts(message: RecordedMessage) -> list[str]:
    """The digests of the question and the answer."""
    return text_digests([Message("user", message.query), Message("assistant", message.answer)])


def _split(
    before: HistoryFingerprint, messages: Sequence[RecordedMessage]
) -> tuple[RecordedMessage | None, list[RecordedMessage]]:
    """The last complete answer, None where it is not there, and what may have come after it.

    Dify's times are whole seconds, and the messages of one second come in any order (recorded
    with 1.13.2): what is as old as the last complete answer may be newer or older.
    """
    settled = next(
        (m for m in messages if before.message and message_digest(m.id) == before.message), None
    )
    since = settled or max(messages, key=lambda m: m.created_at, default=None)
    later = [m for m in messages if since and m.created_at >= since.created_at]
    return settled, [m for m in later if settled is None or m.id != settled.id]
