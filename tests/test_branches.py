"""Which branch of a chat a turn continues, and why."""

from collections.abc import Sequence

import pytest

from opendify.conversations.branches import (
    Branch,
    ChatPosition,
    Choice,
    History,
    Reason,
    choose,
)
from opendify.conversations.fingerprint import (
    HistoryFingerprint,
    after_turn,
    extend,
    text_digests,
)
from opendify.protocols.base import Attachment, Message


def user(text: str, *attachments: Attachment) -> Message:
    return Message("user", text, attachments)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def exchanges(*texts: str) -> list[Message]:
    """Questions and answers in turn."""
    return [user(t) if i % 2 == 0 else assistant(t) for i, t in enumerate(texts)]


def after(
    history: Sequence[Message],
    turn: Sequence[Message],
    answer_id: str = "",
    reason: Reason | None = Reason.WHOLE_HISTORY,
) -> Branch:
    """A branch after a turn that came with this history."""
    known = extend(HistoryFingerprint(), history)
    return Branch(after_turn(known, turn, text_digests(turn), answer_id, "m"), reason=reason)


def chosen(
    branches: Sequence[Branch],
    history: Sequence[Message],
    question: str = "next",
    follows: str | None = None,
    is_whole: bool = True,
    may_omit: bool = False,
) -> Choice:
    """The choice for a turn; ``is_whole`` is for a client that always sends the whole history."""
    position = ChatPosition(
        "chat",
        history,
        (user(question),),
        previous_answer_id=follows,
        min_exchanges=0 if is_whole else 1,
        may_omit_history=may_omit,
    )
    return choose(branches, position, History(history))


ONE = exchanges("one", "1")
TWO = exchanges("one", "1", "two", "2")


# --- one of several -----------------------------------------------------------------------------


def test_the_branch_with_exactly_this_history_is_continued() -> None:
    known = [
        after(ONE, exchanges("other", "3")),
        after(ONE, exchanges("two", "2")),
        after([], ONE),
    ]
    choice = chosen(known, TWO)
    assert (choice.index, choice.reason) == (1, Reason.WHOLE_HISTORY)
    assert chosen(known, ONE).index == 2


def test_the_branch_used_last_is_continued_where_several_have_this_history() -> None:
    known = [after(ONE, exchanges("two", "2")), after(ONE, exchanges("two", "2"))]
    assert chosen(known, TWO).index == 0


def test_of_branches_with_equal_words_the_one_whose_answer_is_named_is_continued() -> None:
    known = [after(ONE, exchanges("two", "2"), "m1"), after(ONE, exchanges("two", "2"), "m2")]
    assert chosen(known, TWO, follows="m2").index == 1


def test_an_exact_history_is_better_than_one_that_is_shown_otherwise() -> None:
    known = [after(ONE, exchanges("TWO", "2")), after(ONE, exchanges("two", "2"))]
    choice = chosen(known, TWO)
    assert (choice.index, choice.reason) == (1, Reason.WHOLE_HISTORY)


@pytest.mark.parametrize(
    ("known", "history", "reason"),
    [
        ([], [], Reason.FIRST_TURN),
        ([], ONE, Reason.UNKNOWN_CHAT),
        ([after([], ONE)], [], Reason.OTHER_HISTORY),
        ([after([], ONE)], exchanges("another", "1", "two", "2"), Reason.OTHER_HISTORY),
        ([Branch(None, is_settled=False)], ONE, Reason.RUNNING),
        ([Branch(None)], ONE, Reason.OTHER_HISTORY),
    ],
)
def test_a_new_conversation_has_a_reason_too(
    known: list[Branch], history: list[Message], reason: Reason
) -> None:
    assert chosen(known, history) == Choice(None, reason)


# --- what a client shows of a turn, when it first comes back ------------------------------------

SHOWN = [
    pytest.param(exchanges("2026 two", "2"), True, id="a stamp before the question"),
    pytest.param(exchanges("quite different", "2"), True, id="the question is shown otherwise"),
    pytest.param(exchanges("two", "2 (by AI)"), True, id="a footer below the answer"),
    pytest.param(exchanges("two", "Answer: 2"), True, id="a header above the answer"),
    pytest.param(exchanges("Q", "2 (by AI)"), True, id="both"),
    pytest.param(exchanges("two", "zwei"), False, id="another answer"),
    pytest.param(exchanges("two", ""), False, id="an empty answer"),
    pytest.param([user("a"), user("b"), assistant("2")], True, id="the question in two parts"),
    pytest.param([assistant("2")], True, id="no question"),
]


@pytest.mark.parametrize(("shown", "is_continued"), SHOWN)
def test_of_the_last_exchange_only_the_answer_must_be_recognized(
    shown: list[Message], is_continued: bool
) -> None:
    known = [after(ONE, exchanges("two", "2"))]
    choice = chosen(known, [*ONE, *shown])
    assert choice.reason is (Reason.SHOWN_OTHERWISE if is_continued else Reason.OTHER_HISTORY)


def test_an_answer_is_recognized_by_its_name_whatever_it_is_shown_as() -> None:
    known = [after(ONE, exchanges("two", "2"), "m2")]
    shown = [*ONE, *exchanges("deux", "zwei")]
    assert chosen(known, shown, follows="m2").reason is Reason.SHOWN_OTHERWISE
    assert chosen(known, shown, follows="m3").index is None


def test_the_same_words_are_another_answer_where_it_has_another_name() -> None:
    known = [after(ONE, exchanges("two", "2"), "m2")]
    assert chosen(known, [*ONE, *exchanges("edited", "2")], follows="m3").index is None


def test_an_answer_alone_is_not_enough_where_it_may_be_that_of_several_branches() -> None:
    known = [after([], exchanges("one", "ok")), after([], exchanges("two", "ok"))]
    assert chosen(known, exchanges("three", "ok")) == Choice(None, Reason.OTHER_HISTORY)
    assert chosen(known, exchanges("two", "ok, with a footer")).index == 1
    assert chosen(known[:1], exchanges("three", "ok")).index == 0


def test_an_answer_alone_is_not_enough_where_another_branch_has_had_just_this_history() -> None:
    history = exchanges("two", "ok")
    here = after([], exchanges("one", "ok"))
    for known in (history, [*history, *exchanges("more", "ok")]):
        had = extend(HistoryFingerprint(), known)
        assert chosen([Branch(None, (had,)), here], history).index is None
    assert chosen([after(history, exchanges("more", "ok")), here], history).index is None
    other = exchanges("three", "3")
    assert chosen([after([], other), here], history) == Choice(None, Reason.UNSURE)
    for reason in (Reason.SHOWN_OTHERWISE, Reason.UNSURE):
        assert chosen([after([], other, reason=reason), here], history).index == 1
    assert chosen([after([], other, reason=Reason.AUXILIARY), here], history).index == 1


def test_what_a_new_conversation_was_given_says_nothing_of_how_it_was_sent() -> None:
    shown = [*ONE, *exchanges("two", "2")]
    wrapped = after(ONE, exchanges("[12:00] two", "2"))
    given = after(shown, [assistant("A summary")], reason=Reason.AUXILIARY)
    assert chosen([given, wrapped], shown).index == 1


def test_the_end_of_one_branch_that_is_the_beginning_of_another_continues_neither() -> None:
    ending = after(exchanges("intro", "0"), exchanges("hi", "Hello"))
    beginning = after(exchanges("hi", "Hello"), exchanges("k", "m"))
    history = exchanges("hi", "Hello")
    assert chosen([beginning, ending], history, is_whole=False).index is None
    assert chosen([ending], history, is_whole=False).reason is Reason.END_OF_HISTORY


def test_the_beginning_of_an_answer_is_not_enough_where_another_branch_has_had_all_of_it() -> None:
    continued = after(exchanges("one", "1 and more"), exchanges("two", "2"))
    beginning = after([], exchanges("one", "1"))
    assert chosen([continued, beginning], exchanges("one", "1 and more")).index is None
    assert chosen([beginning], exchanges("one", "1 and more")).index == 0


def test_what_was_shown_once_must_be_shown_so_for_ever() -> None:
    shown = [*ONE, *exchanges("deux", "2!")]
    choice = chosen([after(ONE, exchanges("two", "2"))], shown)
    assert choice.history is not None
    turn = exchanges("three", "3")
    later = Branch(after_turn(choice.history, turn, text_digests(turn), "", "m"))
    assert chosen([later], [*shown, *turn]).reason is Reason.WHOLE_HISTORY
    assert chosen([later], [*shown, *exchanges("drei", "3")]).reason is Reason.SHOWN_OTHERWISE
    assert chosen([later], [*ONE, *exchanges("two", "2"), *turn]).index is None
    assert chosen([later], [*ONE, *exchanges("deux", "2"), *turn]).index is None
    assert chosen([Branch(choice.history)], [*ONE, *exchanges("two", "2")]).index is None


def test_an_earlier_exchange_that_changes_is_an_edit() -> None:
    known = [after(TWO, exchanges("three", "3"))]
    for history in (
        [*exchanges("one", "1", "TWO", "2"), *exchanges("three", "3")],
        [*exchanges("one", "1", "two", "zwei"), *exchanges("three", "3")],
        [*exchanges("two", "2"), *exchanges("three", "3")],
        [*TWO, *exchanges("more", "4"), *exchanges("three", "3")],
    ):
        assert chosen(known, history).index is None


def test_a_window_may_show_its_last_exchange_otherwise() -> None:
    known = [after(TWO, exchanges("three", "3"))]
    window = [*exchanges("two", "2"), *exchanges("[12:00] three", "3")]
    assert chosen(known, window, is_whole=False).reason is Reason.SHOWN_OTHERWISE
    assert chosen(known, window).index is None
    assert chosen(known, exchanges("[12:00] three", "3"), is_whole=False).index is None


def test_a_file_may_be_missing_from_the_exchange_that_comes_back() -> None:
    look = user("look", Attachment("image", data="aGVsbG8="))
    known = [after(ONE, [look, assistant("a cat")])]
    other = user("look", Attachment("image", data="b3RoZXI="))
    for shown in (look, user("look"), other):
        assert chosen(known, [*ONE, shown, assistant("a cat")]).index == 0


# --- turns without a history --------------------------------------------------------------------


def test_a_client_that_names_its_chat_may_leave_the_memory_to_dify() -> None:
    known = [after([], ONE, reason=Reason.FIRST_TURN)]
    assert chosen(known, [], may_omit=True).reason is Reason.CHAT_ID
    assert chosen(known, []).reason is Reason.OTHER_HISTORY


def test_a_first_question_that_is_asked_again_gets_a_new_conversation() -> None:
    known = [after([], ONE, reason=Reason.FIRST_TURN)]
    assert chosen(known, [], " one ", may_omit=True) == Choice(None, Reason.ASKED_AGAIN)


def test_people_may_repeat_themselves_in_a_chat_whose_memory_is_left_to_dify() -> None:
    known = [after(ONE, exchanges("two", "2"), reason=Reason.CHAT_ID)]
    assert chosen(known, [], "one", may_omit=True).reason is Reason.CHAT_ID


def test_an_empty_history_of_a_client_that_sends_histories_is_an_edit() -> None:
    for reason in (Reason.WHOLE_HISTORY, Reason.SHOWN_OTHERWISE, Reason.END_OF_HISTORY):
        known = [after(ONE, exchanges("two", "2"), reason=reason)]
        assert chosen(known, [], may_omit=True).index is None


def test_an_empty_history_is_an_edit_in_every_branch_of_a_client_that_sends_histories() -> None:
    first = after(ONE, exchanges("two", "2"))
    for reason in (Reason.OTHER_HISTORY, Reason.MISSING, Reason.UNKNOWN_CHAT):
        given = after(ONE, exchanges("TWO", "22"), reason=reason)
        assert chosen([given], [], "ONE", may_omit=True).index is None
    again = after([], ONE, reason=Reason.ASKED_AGAIN)
    assert chosen([again, first], [], "ONE", may_omit=True).index is None


def test_an_answer_beside_the_chat_does_not_take_the_place_of_a_chat_left_to_dify() -> None:
    beside = after(TWO, [assistant("A summary")], reason=Reason.AUXILIARY)
    known = [beside, after(ONE, exchanges("two", "2"), reason=Reason.CHAT_ID)]
    assert chosen(known, [], may_omit=True).index == 1
    position = ChatPosition("chat", (), (), may_omit_history=True)
    assert choose(known, position, History(())).index is None  # nothing of the user


def test_a_first_question_that_is_asked_again_with_more_behind_it_is_asked_again() -> None:
    known = [after([], ONE, reason=Reason.FIRST_TURN)]
    position = ChatPosition("chat", (), (user("one"), user("more")), may_omit_history=True)
    assert choose(known, position, History(())).reason is Reason.ASKED_AGAIN


def test_the_named_answer_is_enough() -> None:
    known = [after([], ONE, "m1"), after([], ONE, "m2")]
    assert chosen(known, [], follows="m2") == Choice(1, Reason.NAMED_ANSWER, known[1].history)


def test_a_branch_of_an_earlier_system_continues_any_history() -> None:
    known = [Branch(None, is_of_earlier_system=True)]
    assert chosen(known, TWO) == Choice(0, Reason.EARLIER_SYSTEM)
    assert chosen(known, []).index is None
