"""Fingerprints of chat histories: which turn continues which Dify conversation. No I/O.

The history that a client sends is the truth. A conversation continues it when its own history is
exactly that, or when the request's history is the end of it, for clients that send only their last
messages; the caller of this module decides which clients may send such a window, and how many
exchanges it must contain. A fingerprint consists of one chained digest of everything and a short
digest for each of the last messages; the texts themselves are not stored.

What the digests must tolerate, measured with Open WebUI 0.12: answers come back without their
reasoning and trimmed; a turn with a file was wrapped in a retrieval prompt or an
``<attached_files>`` block when it was sent. What such a turn looks like in later histories was not
measured, so the wrapping is never included, and files are compared only where the history has some.

Two chats can contain the same words. Where the words alone do not show whether a history is the end
of the conversation or an earlier state of it (somebody wrote the same twice and deletes the
second), it does not continue the conversation: a new conversation that is sent the history is never
wrong. Clients that name their answers remove the ambiguity.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from opendify.protocols.base import Attachment, Message

# How many of the last messages have their own digest; a longer history must match as a whole.
MAX_ITEMS = 64

_WRAPPER_START = "### Task:"
_CONTEXT_END = "</context>"
# How retrieval prompts before Open WebUI 0.7 enclosed the user's text.
_QUERY_START, _QUERY_END = "<user_query>", "</user_query>"
_ATTACHED = re.compile(r"<(?P<end>/?)(?P<name>attached_files)>")
# Reasoning may stand before each part of an answer.
_REASONING = re.compile(r"<(?P<end>/?)(?P<name>think|thinking|details)\b[^<>]*>", re.IGNORECASE)
_CUT_REASONING = re.compile(r"\s*<think\b", re.IGNORECASE)
_FOOTNOTE = re.compile(r"\[\^?\d+\]")
_SOURCES = "**Sources**"
_SOURCE = re.compile(r"\d+\. .*|\s*")

_CHAIN_DIGITS = 16
_ITEM_DIGITS = 8
_ANSWER_DIGITS = 8
_MESSAGE_DIGITS = 8
QUESTION_DIGITS = 16
_ENCODED = re.compile(
    rf"[0-9a-f]{{{_CHAIN_DIGITS}}}"
    rf"(?::[0-9a-f]{{{_ITEM_DIGITS}}}(?:\+[0-9a-f]{{{_ITEM_DIGITS}}})?)*"
    rf"(?:@[0-9a-f]{{{_ANSWER_DIGITS}}})?"
    rf"(?:#[0-9a-f]{{{_MESSAGE_DIGITS}}})?"
)


@dataclass(frozen=True, slots=True)
class HistoryFingerprint:
    """The history of a conversation. ``items`` are for its last messages: the digest of the text,
    followed by a plus sign and the digest of the files, if any. ``answer`` is the digest of the
    client's id of the last answer, ``message`` that of Dify's; "" where they are unknown."""

    chain: str = ""
    items: tuple[str, ...] = ()
    answer: str = ""
    message: str = ""

    def encode(self) -> str:
        """A single word, for the store."""
        answer = f"@{self.answer}" if self.answer else ""
        message = f"#{self.message}" if self.message else ""
        return ":".join((self.chain, *self.items)) + answer + message


def decode(word: str) -> HistoryFingerprint | None:
    """The inverse of ``encode``; None where ``word`` is not a fingerprint."""
    if not _ENCODED.fullmatch(word):
        return None
    rest, _, message = word.partition("#")
    rest, _, answer = rest.partition("@")
    chain, *items = rest.split(":")
    return HistoryFingerprint(chain, tuple(items), answer, message)


def unknown(conversation_id: str) -> HistoryFingerprint:
    """A start that matches no history, for a conversation whose history is unknown."""
    return HistoryFingerprint(_digest(f"unknown|{conversation_id}")[:_CHAIN_DIGITS])


def text_digests(messages: Sequence[Message]) -> list[str]:
    """The digests of the texts, for callers that need them twice."""
    return [_text_digest(message) for message in messages]


def extend(
    previous: HistoryFingerprint,
    messages: Sequence[Message],
    answer_id: str = "",
    texts: Sequence[str] | None = None,
    message_id: str = "",
) -> HistoryFingerprint:
    """The fingerprint after these messages as well. ``answer_id`` is the client's id of the last of
    them and ``message_id`` Dify's; ``texts`` are their text digests if already computed."""
    chain, items = previous.chain, list(previous.items)
    for message, text in zip(messages, texts or text_digests(messages), strict=True):
        chain = _digest(f"{chain}|{text}")[:_CHAIN_DIGITS]
        files = f"+{_files_digest(message.attachments)}" if message.attachments else ""
        items.append(text[:_ITEM_DIGITS] + files)
    last_items = tuple(items[-MAX_ITEMS:])
    return HistoryFingerprint(
        chain, last_items, _answer_digest(answer_id), message_digest(message_id)
    )


def matches(
    stored: HistoryFingerprint,
    requested: HistoryFingerprint,
    history: Sequence[Message],
    follows: str | None = None,
    min_exchanges: int = 1,
) -> bool:
    """Whether the conversation with the fingerprint ``stored`` continues the history of a request;
    ``requested`` is the fingerprint of that history.

    ``follows`` is the client's id of the answer that the turn comes after: "" for the first turn of
    a chat, None where the client sends none. ``min_exchanges`` is how many exchanges of a question
    and its answer a history must contain that is only the end of the conversation; 0 where only the
    whole history continues it.
    """
    named = bool(stored.answer) and follows is not None
    is_named = named and stored.answer == _answer_digest(follows or "")
    if not history:
        return is_named
    if not _same_messages(requested.items, stored.items[-len(requested.items) :]):
        return False
    if requested.chain == stored.chain:
        return True
    if len(history) > len(stored.items) or not ends_with_answer(history):
        return False
    if not min_exchanges or _count_exchanges(history) < min_exchanges:
        return False
    return is_named if named else not _is_prefix(stored, requested)


def last_exchange_id(history: Sequence[Message], texts: Sequence[str] | None = None) -> str:
    """An id of the last exchange of a history, under which the conversations of clients without
    chat ids are stored; "" where the history does not end with an answer. ``texts`` are the text
    digests of the history if already computed."""
    if not ends_with_answer(history):
        return ""
    last_question = max(i for i, message in enumerate(history) if message.role == "user")
    return _digest(
        "|".join(texts[last_question:] if texts else text_digests(history[last_question:]))
    )[:32]


def ends_with_answer(history: Sequence[Message]) -> bool:
    """Whether there is a user message and the last message is an answer."""
    roles = [message.role for message in history]
    return "user" in roles and roles[-1] == "assistant"


def _count_exchanges(history: Sequence[Message]) -> int:
    """How many questions are directly followed by their answer."""
    return sum((one.role, other.role) == ("user", "assistant") for one, other in pairwise(history))


def _is_prefix(stored: HistoryFingerprint, requested: HistoryFingerprint) -> bool:
    """Whether the requested messages are also the first ones, as far as those are known."""
    length = len(requested.items)
    return length < len(stored.items) and _same_messages(requested.items, stored.items[:length])


def _same_messages(requested: Sequence[str], stored: Sequence[str]) -> bool:
    """Whether these are the same messages, compared from the last one backwards."""
    return requested == stored or all(map(_same_message, reversed(requested), reversed(stored)))


def _same_message(one: str, other: str) -> bool:
    text, _, files = one.partition("+")
    other_text, _, other_files = other.partition("+")
    return text == other_text and (not files or not other_files or files == other_files)


def own_text(text: str) -> str:
    """What the user wrote, without what Open WebUI wraps around it."""
    if text.startswith(_WRAPPER_START) and _CONTEXT_END in text:
        text = text.rpartition(_CONTEXT_END)[2].strip()
        if text.startswith(_QUERY_START) and text.endswith(_QUERY_END):
            text = text[len(_QUERY_START) : -len(_QUERY_END)]
    return (_strip_elements(_ATTACHED, text) if "<" in text else text).strip()


def _answer_text(text: str) -> str:
    """The text of an answer without its reasoning, sources and footnotes."""
    if "<" in text:
        text = _strip_elements(_REASONING, text)
        if _CUT_REASONING.match(text):  # unterminated where an answer was cut off
            return ""
    body, _, sources = text.rpartition(_SOURCES)
    if body and all(map(_SOURCE.fullmatch, sources.splitlines())):
        text = body
    return _FOOTNOTE.sub("", text) if "[" in text else text


def _strip_elements(tag: re.Pattern[str], text: str) -> str:
    """The text without the elements of these tags, each up to the first end tag of its name. Takes
    time linear in the length of the text, whatever callers send."""
    # Searched twice instead of stored: a list of a million matches blocks all threads for seconds.
    last_ends = {
        match["name"].lower(): match.start() for match in tag.finditer(text) if match["end"]
    }
    parts, position, inside = [], 0, ""
    for match in tag.finditer(text):
        name = match["name"].lower()
        if inside and match["end"] and name == inside:
            position, inside = match.end(), ""
        elif not inside and not match["end"] and last_ends.get(name, 0) > match.start():
            parts.append(text[position : match.start()])
            inside = name
    return "".join([*parts, text[position:]])


def _text_digest(message: Message) -> str:
    text = _answer_text(message.text) if message.role == "assistant" else own_text(message.text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return _digest(f"{message.role}|{''.join(text.split())}")


def _answer_digest(answer_id: str) -> str:
    return _digest(answer_id)[:_ANSWER_DIGITS] if answer_id else ""


def question_digest(query: str) -> str:
    """The digest of a query to Dify, ignoring whitespace: Dify may return it with some removed."""
    return _digest("".join(query.replace("\0", "").split()))[:QUESTION_DIGITS]


def message_digest(message_id: str) -> str:
    """The digest of Dify's id of a message; "" for no id."""
    return _digest(message_id)[:_MESSAGE_DIGITS] if message_id else ""


def _files_digest(attachments: Sequence[Attachment]) -> str:
    return _digest("|".join(a.url or a.data or a.file_id for a in attachments))[:_ITEM_DIGITS]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
