"""Which turn follows which."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify import continuity
from opendify.continuity import Heard, continues, decode, exchange_name, hear
from opendify.openai.messages import Attachment, Message, parse_messages


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
def test_a_conversation_is_continued_by_the_history_it_has_heard(history: list[Message]) -> None:
    assert continues(hear(Heard(), HISTORY), history)


@pytest.mark.parametrize("history", [h for _, h in OTHER], ids=[name for name, _ in OTHER])
def test_a_conversation_is_not_continued_by_another_history(history: list[Message]) -> None:
    assert not continues(hear(Heard(), HISTORY), history)


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
    heard = hear(Heard(), [user("look", IMAGE), assistant("a cat")])
    assert continues(heard, [later, assistant("a cat")]) is fits


def test_a_retrieval_prompt_is_followed_by_the_text_that_the_person_wrote() -> None:
    wrapped = (
        "### Task:\nRespond ...\n<context>\n<source id='1'>x</source>\n</context>\n\nwhat is it"
    )
    heard = hear(Heard(), [user(wrapped), assistant("x")])
    assert continues(heard, [user("what is it"), assistant("x")])
    assert continues(heard, [user(wrapped), assistant("x")])
    assert not continues(heard, [user("what else is it"), assistant("x")])


def test_the_system_text_is_not_among_what_counts() -> None:
    raw = [{"role": "system", "content": "It is noon."}, {"role": "user", "content": "hi"}]
    messages = [m for m in parse_messages(raw) if m.role != "system"]
    assert exchange_name([*messages, assistant("yo")]) == exchange_name(
        [user("hi"), assistant("yo")]
    )


def test_a_history_longer_than_what_is_kept_one_by_one_must_match_as_a_whole() -> None:
    long = [turn for i in range(40) for turn in (user(f"q{i}"), assistant(f"a{i}"))]
    heard = hear(Heard(), long)
    assert len(heard.items) == continuity.KEPT_MESSAGES
    assert continues(heard, long)
    assert continues(heard, long[-10:])
    assert not continues(heard, [user("changed"), *long[1:]])


texts = st.text(max_size=12)
dialogues = st.lists(st.tuples(texts, texts), max_size=6).map(
    lambda pairs: [m for q, a in pairs for m in (user(q), assistant(a))]
)


@given(dialogues, dialogues)
def test_hearing_in_parts_is_hearing_at_once(first: list[Message], second: list[Message]) -> None:
    assert hear(hear(Heard(), first), second) == hear(Heard(), [*first, *second])


@given(dialogues.filter(bool))
def test_what_is_written_is_read_back(messages: list[Message]) -> None:
    heard = hear(Heard(), messages)
    assert decode(heard.encode()) == heard


@given(st.text(max_size=40))
def test_any_word_of_a_store_is_understood_or_nothing(word: str) -> None:
    heard = decode(word)
    assert heard is None or heard.encode() == word


@given(dialogues.filter(bool))
def test_every_chat_continues_itself(messages: list[Message]) -> None:
    assert continues(hear(Heard(), messages), messages)


def test_the_store_is_given_no_text() -> None:
    word = hear(Heard(), [user("secret"), assistant("hush")]).encode()
    assert "secret" not in json.dumps(word)
    assert "hush" not in json.dumps(word)
