from hypothesis import given
from hypothesis import strategies as st

from opendify.protocols.base import Attachment, Message
from opendify.protocols.turns import INSTRUCTION_ROLES, split_turn, turn_start

FILES = st.sampled_from([(), (Attachment("image", url="https://x/y"),)])
CHAT = st.lists(
    st.builds(
        Message,
        st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        st.sampled_from(["", " ", "a", "b"]),
        FILES,
    ),
    max_size=8,
)


@given(CHAT)
def test_every_message_is_in_one_place_of_a_turn(messages: list[Message]) -> None:
    turn = split_turn(messages)
    assert turn_start(messages) <= len(messages)
    spoken = [m for m in messages if m.role not in INSTRUCTION_ROLES]
    before, after = spoken[: len(turn.history)], spoken[len(turn.history) :]
    assert before == list(turn.history)
    assert [m for m in after if m.role != "assistant"] == list(turn.messages)
    assert all(m.is_blank for m in after if m.role == "assistant")
    assert not turn.history or turn.history[-1].role == "assistant"
    told = [m for m in messages if m.role in INSTRUCTION_ROLES and m.text.strip()]
    asking = [m for m in turn.asked if m.role in INSTRUCTION_ROLES]
    assert [*turn.instructions, *asking] == told
    assert turn.is_auxiliary is bool(asking and turn.history)
    assert not (turn.is_continuation and turn.asked)


def test_the_roles_of_a_turn() -> None:
    system, user = Message("system", "Be brief."), Message("user", "Hi")
    answer, place = Message("assistant", "Hello"), Message("assistant", " ")
    turn = split_turn([system, user, answer, user, user, place])
    assert (turn.instructions, turn.history) == ((system,), (user, answer))
    assert turn.messages == turn.asked == (user, user)
    assert split_turn([user, answer, system]).is_auxiliary
    assert split_turn([user, answer, place]).is_continuation
    assert not split_turn([answer]).is_continuation
    alone = split_turn([system, system])
    assert (alone.instructions, alone.asked, alone.is_auxiliary) == ((system,), (system,), False)
