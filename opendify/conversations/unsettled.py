"""Turns whose end was not seen: whether Dify has run them, from the messages it lists. No I/O.

A gateway error page while Dify restarts, a timeout, a caller that disconnected and a process that
was killed leave open whether a question is in Dify's memory. It follows from what is stored when a
question is sent, and from the newest messages of its conversation (``GET /messages``).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from opendify.conversations import fingerprint
from opendify.conversations.branches import History
from opendify.conversations.fingerprint import (
    QUESTION_DIGITS,
    HistoryFingerprint,
    ends_with_answer,
    message_digest,
    question_digest,
    text_digests,
)
from opendify.dify.conversation_api import RecordedMessage
from opendify.protocols.base import Message

_ENCODED = re.compile(
    rf"-(?P<state>failed|left|run|[0-9a-f]{{16}})"
    rf"/(?P<question>[0-9a-f]{{{QUESTION_DIGITS}}}|)/(?P<before>.*)"
)


class Outcome(Enum):
    """How a turn ended whose answer is incomplete."""

    NOT_RUN = "not run"
    """Dify has certainly not run it."""
    FAILED = "failed"
    """An error leaves open whether Dify has run it."""
    CALLER_GONE = "left"
    """The caller disconnected before Dify responded; the question may still be in transit."""
    STARTED = "run"
    """Dify has started to answer."""


@dataclass(frozen=True, slots=True)
class PendingTurn:
    """A turn that is running, or ended early, in a conversation with the history ``before``.

    ``question`` is the digest of the query sent to Dify. ``state`` is ``failed``, ``left``, ``run``
    where Dify has certainly run it, or the id of the process that runs the turn. Earlier releases
    stored an empty ``question`` where Dify had certainly run it.
    """

    before: HistoryFingerprint
    question: str
    state: str

    @property
    def process_id(self) -> str:
        """The process that runs the turn, "" where the turn has ended."""
        return "" if self.state in [outcome.value for outcome in Outcome] else self.state

    @property
    def has_certainly_run(self) -> bool:
        """Whether Dify has run the turn, or runs it now."""
        return not self.question or self.state == Outcome.STARTED.value

    @property
    def may_still_arrive(self) -> bool:
        """Whether there was no response at all, so that Dify may receive the question later."""
        return not self.has_certainly_run and self.state != Outcome.FAILED.value

    def with_outcome(self, outcome: Outcome) -> "PendingTurn":
        """The same turn after it ended with this outcome (FAILED, CALLER_GONE or STARTED)."""
        if self.has_certainly_run:
            return self
        return PendingTurn(self.before, self.question, outcome.value)

    def encode(self) -> str:
        """A single word, for the store."""
        return f"-{self.state}/{self.question}/{self.before.encode()}"


def decode(word: str) -> PendingTurn | None:
    """The inverse of ``PendingTurn.encode``; None where ``word`` is not a pending turn."""
    match = _ENCODED.fullmatch(word)
    if match is None:
        return None
    before = fingerprint.decode(match["before"]) if match["before"] else HistoryFingerprint()
    return PendingTurn(before, match["question"], match["state"]) if before else None


def started(before: HistoryFingerprint, query: str) -> PendingTurn:
    """The first turn of a conversation, which Dify has named and so runs."""
    return PendingTurn(before, question_digest(query), Outcome.STARTED.value)


def has_run(turn: PendingTurn, messages: Sequence[RecordedMessage]) -> bool:
    """Whether the turn is among these messages, the newest ones of its conversation.

    The last complete answer is recognized by its id, so a question that was asked twice is
    distinguished from the one before. An earlier release did not store that id; then the texts
    decide.
    """
    if turn.has_certainly_run:
        return True
    last_complete, later = _split(turn.before, messages)
    if last_complete is None:
        return any(question_digest(m.query) == turn.question for m in later)
    return any(
        m.created_at > last_complete.created_at or question_digest(m.query) == turn.question
        for m in later
    )


def fingerprint_after(
    turn: PendingTurn, history: History, messages: Sequence[RecordedMessage]
) -> HistoryFingerprint | None:
    """The fingerprint of a conversation after this turn, where its newest message is the last
    exchange of the history; None where it is not, or where its answer is incomplete. The query may
    hold more than the question that the client shows: a system prompt, a template."""
    exchange = history.messages[history.last_exchange :]
    if not ends_with_answer(exchange):
        return None
    asked = "\n\n".join(m.text for m in exchange[:-1] if m.text.strip())
    question = Message("user", asked)
    expected = text_digests([question, exchange[-1]])
    earlier = history.texts[: history.last_exchange]
    _, later = _split(turn.before, messages)

    def is_last_exchange(message: RecordedMessage) -> bool:
        digests = _exchange_digests(message)
        if not message.is_complete or not message.answer.strip() or digests[1] != expected[1]:
            return False
        if digests == expected:
            return True
        is_query = question_digest(message.query) == turn.question
        return is_query and fingerprint.is_in_query(question, message.query)

    matching = list(filter(is_last_exchange, later))
    # Other messages may only be older: questions that are earlier in the history.
    others = [m for m in later if m not in matching[:1]]
    if not matching or any(
        m.created_at > matching[0].created_at or _exchange_digests(m)[0] not in earlier
        for m in others
    ):
        return None
    return replace(history.extend(turn.before), message=message_digest(matching[0].id))


def _exchange_digests(message: RecordedMessage) -> list[str]:
    """The text digests of the question and the answer."""
    return text_digests([Message("user", message.query), Message("assistant", message.answer)])


def _split(
    before: HistoryFingerprint, messages: Sequence[RecordedMessage]
) -> tuple[RecordedMessage | None, list[RecordedMessage]]:
    """The last complete answer, None where it is missing, and what may have come after it.

    Dify's times are whole seconds, and the messages of one second come in any order (recorded with
    1.13.2): a message as old as the last complete answer may be newer or older.
    """
    last_complete = next(
        (m for m in messages if before.message and message_digest(m.id) == before.message), None
    )
    since = last_complete or max(messages, key=lambda m: m.created_at, default=None)
    later = [m for m in messages if since and m.created_at >= since.created_at]
    return last_complete, [m for m in later if last_complete is None or m.id != last_complete.id]
