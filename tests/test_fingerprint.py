"""Which turn follows which."""

import json
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opendify.conversations import branches, fingerprint
from opendify.conversations.branches import Branch, ChatPosition, History
from opendify.conversations.fingerprint import (
    HistoryFingerprint,
    decode,
    extend,
    last_exchange_id,
)
from opendify.protocols.openai.messages import Attachment, Message, parse_messages


def continues(
    known: HistoryFingerprint, history: list[Message], follows: str | None = None
) -> bool:
    position = ChatPosition("chat", history, previous_answer_id=follows, min_exchanges=1)
    return branches.continues(Branch(known), position, History(history))


def user(text: str, *attachments: Attachment) -> Message:
    return Message("user", text, attachments)


def assistant(text: str) -> Message:
    return Message("assistant", text)


IMAGE = Attachment("image", data="aGVsbG8=", media_type="image/png")
HISTORY = [user("one"), assistant("1"), user("two"), assistant("2")]

ALIKE = [
    ("the same", HISTORY),
    ("answers trimmed", [user("one"), assistant(" 1\n"), user("two"), assistant("2 ")]),
    (
        "reasoning left in",
        [user("one"), assistant("<think>hm</think>1"), user("two"), assistant("2")],
    ),
    (
        "reasoning before each part",
        [
            user("one"),
            assistant("<think>a</think>1"),
            user("two"),
            assistant("2<Think x>b</think>"),
        ],
    ),
    (
        "reasoning in a block to open",
        [
            user("one"),
            assistant('<details type="reasoning"><summary>hm</summary>\n> x</details>\n1'),
            *HISTORY[2:],
        ],
    ),
    (
        "a list of sources",
        [*HISTORY[:3], assistant("2\n\n**Sources**\n\n1. a.pdf\n2. [b](http://b)")],
    ),
    ("footnotes in answers", [user("one"), assistant("1 [1]"), user("two"), assistant("2[^2]")]),
    ("the last exchange", HISTORY[2:]),
]

OTHER = [
    ("nothing", []),
    ("shorter", HISTORY[:2]),
    ("an answer taken back", HISTORY[:3]),
    ("the first question changed", [user("ONE"), *HISTORY[1:]]),
    ("the last question changed", [*HISTORY[:2], user("TWO"), assistant("2")]),
    ("another answer", [*HISTORY[:3], assistant("another")]),
    ("longer", [*HISTORY, user("three"), assistant("3")]),
    ("only an answer", HISTORY[3:]),
    ("the roles changed", [assistant("one"), user("1"), *HISTORY[2:]]),
]


@pytest.mark.parametrize("history", [h for _, h in ALIKE], ids=[name for name, _ in ALIKE])
def test_a_conversation_is_continued_by_the_history_that_it_has(history: list[Message]) -> None:
    assert continues(extend(HistoryFingerprint(), HISTORY), history)


@pytest.mark.parametrize("history", [h for _, h in OTHER], ids=[name for name, _ in OTHER])
def test_a_conversation_is_not_continued_by_another_history(history: list[Message]) -> None:
    assert not continues(extend(HistoryFingerprint(), HISTORY), history)


@pytest.mark.parametrize(
    ("later", "fits"),
    [
        (user("look", IMAGE), True),
        (user("look"), True),
        (user("look", Attachment("image", data="b3RoZXI=")), False),
        (user("<attached_files>\n<file name='a'/>\n</attached_files>\n\nlook", IMAGE), True),
    ],
    ids=["sent again", "left out", "another", "wrapped"],
)
def test_a_file_counts_only_where_the_history_has_one(later: Message, fits: bool) -> None:
    known = extend(HistoryFingerprint(), [user("look", IMAGE), assistant("a cat")])
    assert continues(known, [later, assistant("a cat")]) is fits


def test_a_retrieval_prompt_is_followed_by_the_text_that_the_person_wrote() -> None:
    wrapped = (
        "### Task:\nRespond ...\n<context>\n<source id='1'>x</source>\n</context>\n\nwhat is it"
    )
    known = extend(HistoryFingerprint(), [user(wrapped), assistant("x")])
    assert continues(known, [user("what is it"), assistant("x")])
    assert continues(known, [user(wrapped), assistant("x")])
    assert not continues(known, [user("what else is it"), assistant("x")])


@pytest.mark.parametrize("tail", ["what is it", "<user_query>\nwhat is it\n</user_query>"])
def test_older_retrieval_prompts_are_understood_too(tail: str) -> None:
    wrapped = f"### Task:\nRespond ...\n<context>\n<source>x</source>\n</context>\n\n{tail}"
    assert continues(
        extend(HistoryFingerprint(), [user(wrapped), assistant("x")]),
        [user("what is it"), assistant("x")],
    )


@pytest.mark.parametrize("repeats", [2, 3, 20])
@pytest.mark.parametrize("length", [2, 4])
def test_an_earlier_state_of_a_chat_that_repeats_itself_is_no_end_of_it(
    repeats: int, length: int
) -> None:
    known = extend(HistoryFingerprint(), [user("go on"), assistant("ok")] * repeats)
    history = [user("go on"), assistant("ok")] * (length // 2)
    assert continues(known, history) is (length == 2 * repeats)


def test_the_end_of_a_chat_that_repeats_itself_only_later_is_its_end() -> None:
    known = extend(
        HistoryFingerprint(), [*HISTORY, user("ok"), assistant("2"), user("ok"), assistant("2")]
    )
    assert continues(known, [user("ok"), assistant("2")])


def test_exactly_as_many_messages_as_are_kept_are_the_end_of_a_longer_chat() -> None:
    long = [turn for i in range(40) for turn in (user(f"q{i}"), assistant(f"a{i}"))]
    assert continues(extend(HistoryFingerprint(), long), long[-fingerprint.MAX_ITEMS :])


NAMED = [
    # what it contains, the history, the answer that the turn follows, whether it is continued
    pytest.param(HISTORY, HISTORY, "m2", True, id="the same answer"),
    pytest.param(HISTORY, HISTORY, "other", True, id="the same words in another branch"),
    pytest.param(HISTORY, [*HISTORY[:3], assistant("edited")], "m2", False, id="edited in place"),
    pytest.param(HISTORY, [], "m2", True, id="no history, but the last answer's name"),
    pytest.param(HISTORY, [], "m1", False, id="no history, and an earlier answer's name"),
    pytest.param(HISTORY, [], "", False, id="no history, the first turn"),
    pytest.param(HISTORY, [], None, False, id="no history, no name"),
    pytest.param(HISTORY, HISTORY[2:], "m2", True, id="the end, named"),
    pytest.param(HISTORY, HISTORY[2:], "m1", False, id="the end, of another branch"),
    pytest.param(HISTORY, HISTORY[2:], None, True, id="the end, not named"),
    pytest.param(HISTORY[:2] * 2, HISTORY[:2], "m2", True, id="repeated, the end"),
    pytest.param(HISTORY[:2] * 2, HISTORY[:2], "m1", False, id="repeated, taken back"),
]


@pytest.mark.parametrize(("told", "history", "follows", "continued"), NAMED)
def test_the_names_of_answers_tell_branches_apart(
    told: list[Message], history: list[Message], follows: str | None, continued: bool
) -> None:
    known = decode(extend(HistoryFingerprint(), told, "m2").encode())
    assert known is not None
    assert continues(known, history, follows) is continued


@pytest.mark.parametrize("follows", ["m1", "", None])
def test_without_a_name_of_the_last_answer_the_words_decide(follows: str | None) -> None:
    assert continues(extend(HistoryFingerprint(), HISTORY), HISTORY[2:], follows)
    assert not continues(extend(HistoryFingerprint(), HISTORY), [], follows)


HOSTILE = [
    "<think>" * 60_000,
    "<think" * 60_000,
    "<details>" * 50_000 + "</think>" * 50_000,
    "**Sources**\n1. " * 50_000 + "\n\nx",
    "**Sources**" + "\n" * 500_000 + "x",
    "<attached_files>" * 50_000,
    "### Task:</context>" + "<user_query>" * 50_000,
    "[1" * 200_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=[text[:12] for text in HOSTILE])
def test_a_text_made_to_take_long_takes_no_longer_than_others(text: str) -> None:
    """Each of these would take minutes if any part of it were read again and again."""
    told = [user(text), assistant(text)]
    assert continues(extend(HistoryFingerprint(), told), told)


def test_half_a_character_is_a_character_like_others() -> None:
    assert continues(
        extend(HistoryFingerprint(), [user("\ud83d"), assistant("\udc00")]),
        [user("\ud83d"), assistant("\udc00")],
    )


def test_the_system_text_is_not_among_what_counts() -> None:
    raw = [{"role": "system", "content": "It is noon."}, {"role": "user", "content": "hi"}]
    messages = [m for m in parse_messages(raw) if m.role != "system"]
    assert last_exchange_id([*messages, assistant("yo")]) == last_exchange_id(
        [user("hi"), assistant("yo")]
    )


def test_a_history_longer_than_what_is_kept_one_by_one_must_match_as_a_whole() -> None:
    long = [turn for i in range(40) for turn in (user(f"q{i}"), assistant(f"a{i}"))]
    known = extend(HistoryFingerprint(), long)
    assert len(known.items) == fingerprint.MAX_ITEMS
    assert continues(known, long)
    assert continues(known, long[-10:])
    assert not continues(known, [user("changed"), *long[1:]])


texts = st.text(max_size=12)
dialogues = st.lists(st.tuples(texts, texts), max_size=6).map(
    lambda pairs: [m for q, a in pairs for m in (user(q), assistant(a))]
)


@given(dialogues, dialogues)
def test_hearing_in_parts_is_hearing_at_once(first: list[Message], second: list[Message]) -> None:
    assert extend(extend(HistoryFingerprint(), first), second) == extend(
        HistoryFingerprint(), [*first, *second]
    )


@given(dialogues)
def test_digests_that_were_made_already_say_the_same(messages: list[Message]) -> None:
    texts = fingerprint.text_digests(messages)
    assert extend(HistoryFingerprint(), messages, texts=texts) == extend(
        HistoryFingerprint(), messages
    )
    assert last_exchange_id(messages, texts) == last_exchange_id(messages)


@given(dialogues.filter(bool), dialogues.filter(bool))
def test_what_is_written_is_read_back(messages: list[Message], turn: list[Message]) -> None:
    known = extend(HistoryFingerprint(), messages)
    assert decode(known.encode()) == known
    texts = fingerprint.text_digests(turn)
    for before in (HistoryFingerprint(), known):
        after = fingerprint.after_turn(before, turn, texts, "answer", "message")
        assert decode(after.encode()) == after


@given(st.text(max_size=40))
def test_any_word_of_a_store_is_understood_or_nothing(word: str) -> None:
    known = decode(word)
    assert known is None or known.encode() == word


@given(dialogues.filter(bool))
def test_every_chat_continues_itself(messages: list[Message]) -> None:
    assert continues(extend(HistoryFingerprint(), messages), messages)


PARTS = [
    "<think>", "</think>", "<details x>", "</details>", "<attached_files>", "</attached_files>",
    "[1]", "[^2]", "\n**Sources**\n", "1. a\n", "### Task:", "</context>", "<user_query>",
    "</user_query>", "e\u0301", "\u00e9", "\ud800", " ", "\u2003", "\x1c", "a", "<",
]  # fmt: skip


def digest_by_all_steps(message: Message) -> str:
    """The digest of a text without a look whether a step could change anything."""
    text = message.text
    if message.role == "assistant":
        text = fingerprint._strip_elements(fingerprint._REASONING, text)
        if fingerprint._CUT_REASONING.match(text):
            text = ""
        said, _, listed = text.rpartition("**Sources**")
        if said and all(map(fingerprint._SOURCE.fullmatch, listed.splitlines())):
            text = said
        text = fingerprint._FOOTNOTE.sub("", text)
    else:
        if text.startswith("### Task:") and "</context>" in text:
            text = text.rpartition("</context>")[2].strip()
            if text.startswith("<user_query>") and text.endswith("</user_query>"):
                text = text[len("<user_query>") : -len("</user_query>")]
        text = fingerprint._strip_elements(fingerprint._ATTACHED, text).strip()
    text = re.sub(r"\s+", "", unicodedata.normalize("NFC", text))
    return fingerprint._digest(f"{message.role}|{text}")


@given(
    st.sampled_from(["user", "assistant", "tool"]),
    st.lists(st.sampled_from(PARTS)).map("".join) | st.text(),
)
def test_steps_that_change_nothing_can_be_left_out(role: str, text: str) -> None:
    message = Message(role, text)
    assert fingerprint._text_digest(message) == digest_by_all_steps(message)


def test_a_text_is_split_at_what_a_pattern_takes_for_space() -> None:
    for code in range(0x110000):
        assert (not chr(code).split()) == bool(re.fullmatch(r"\s", chr(code))), hex(code)


WORDS = st.text("0f:+@\ng") | st.lists(
    st.sampled_from(["0" * 16, ":", "1" * 8, "+", "@", "\n", "g" * 8])
).map("".join)


@given(WORDS)
@example("0" * 16 + ":" + "1" * 8 + "+" + "2" * 8 + ":" + "3" * 8 + "@" + "4" * 8)
@example("0" * 16 + "@")
@example("0" * 16 + "\n")
def test_a_word_is_taken_part_by_part(word: str) -> None:
    told, at, answer = word.partition("@")
    chain, *items = told.split(":")
    is_sound = (
        re.fullmatch("[0-9a-f]{16}", chain)
        and (not at or re.fullmatch("[0-9a-f]{8}", answer))
        and all(re.fullmatch(r"[0-9a-f]{8}(\+[0-9a-f]{8})?", item) for item in items)
    )
    assert decode(word) == (HistoryFingerprint(chain, tuple(items), answer) if is_sound else None)


def test_the_store_is_given_no_text() -> None:
    word = extend(HistoryFingerprint(), [user("secret"), assistant("hush")]).encode()
    assert "secret" not in json.dumps(word)
    assert "hush" not in json.dumps(word)
