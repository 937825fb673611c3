"""What the keys of the conversations say."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.conversations.keys import ChatKey, count_by_model, encodable, parse_chat_key
from opendify.conversations.resolver import ChatOwner

TEXTS = st.text(alphabet=st.one_of(st.sampled_from('",[]\\{:'), st.characters(codec="utf-8")))
CHATS = st.builds(ChatKey, TEXTS, TEXTS, TEXTS, TEXTS)


def to_key(whose: ChatKey) -> str:
    return ChatOwner(whose.caller or "", whose.model or "", whose.user or "").key(whose.chat_id)


def test_a_key_is_the_array_that_people_read_in_the_file() -> None:
    assert to_key(ChatKey("-", "模型", "anna", 'a "chat"')) == '["-","模型","anna","a \\"chat\\""]'


@given(CHATS)
def test_a_key_says_whose_it_is(whose: ChatKey) -> None:
    assert parse_chat_key(to_key(whose)) == whose
    parts = [whose.caller, whose.model, whose.user, whose.chat_id]
    assert to_key(whose) == json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(
    "key", ["", "chat", "7", "null", "{}", '["a","b","c"]', '["a","b","c",4]', "[" * 100_000]
)
def test_any_other_key_is_a_chat_of_the_earlier_system(key: str) -> None:
    assert parse_chat_key(key) == ChatKey(None, None, None, key)


@given(st.lists(CHATS))
def test_chats_are_counted_by_model(chats: list[ChatKey]) -> None:
    keys = [*map(to_key, chats), "an earlier chat", '["a","b', '["a","\\","c","d"]', ""]
    assert count_by_model(keys) == Counter(encodable(str(chat.model)) for chat in chats)


def test_the_model_with_most_chats_comes_first() -> None:
    keys = [to_key(ChatKey("-", model, "u", str(n))) for n, model in enumerate("abbccc")]
    assert list(count_by_model(keys).items()) == [("c", 3), ("b", 2), ("a", 1)]
