"""What is remembered of chats: the same in every kind of store."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from opendify.conversations import (
    ChatRecord,
    ConversationRecord,
    ConversationStore,
    JsonFileStore,
    Stats,
    Update,
)
from opendify.conversations.store.compactor import Compactor
from opendify.conversations.store.redis import RedisStore
from opendify.storage.redis_connection import RedisConnection
from tests.support.chats import DAY, MOST_BRANCHES, Clock, conversations_of, one_branch
from tests.support.service import ROOT

Opener = Callable[[], ConversationStore]
UNKNOWN = Update("")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["file", "redis"])
def redis_address(request: pytest.FixtureRequest) -> str:
    """Where the mappings are; "" for the JSON file."""
    return request.getfixturevalue("redis_url") if request.param == "redis" else ""


@pytest.fixture
def opened(
    redis_address: str, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Opener]:
    """Makes stores on one place; each is to the others like one of another process."""
    stores: list[ConversationStore] = []
    options: dict[str, Any] = {"clock": clock, "max_age_days": None, "max_entries": 100_000}
    monkeypatch.setattr(Compactor, "TICK_SECONDS", 3600.0)

    def make() -> ConversationStore:
        if redis_address:
            stores.append(RedisStore(RedisConnection(redis_address, "Redis"), **options))
        else:
            stores.append(JsonFileStore(tmp_path / "data", **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Opener) -> ConversationStore:
    return opened()


def test_an_unknown_chat_has_no_mapping(store: ConversationStore) -> None:
    assert store.get("a") is None


def test_a_chat_keeps_its_conversation(store: ConversationStore, clock: Clock) -> None:
    now = int(clock.now)
    store.put("a", "c1", Update("digest", "first-turn", "system"))
    assert store.get("a") == one_branch("c1", now, now, "digest", "first-turn", "system")


def test_another_conversation_is_one_more_branch_and_the_one_used_last(
    store: ConversationStore, clock: Clock
) -> None:
    began = int(clock.now)
    store.put("a", "c1", Update("one"))
    clock.now += 10
    store.put("a", "c2", Update("two", "other-history"))
    assert store.get("a") == ChatRecord(
        (
            ConversationRecord("c2", began + 10, began + 10, "two", "other-history"),
            ConversationRecord("c1", began, began, "one"),
        )
    )


def test_a_branch_that_is_used_again_comes_first_and_keeps_its_beginning(
    store: ConversationStore, clock: Clock
) -> None:
    began = int(clock.now)
    store.put("a", "c1", Update("one"))
    store.put("a", "c2", Update("two"))
    clock.now += 10
    store.put("a", "c1", Update("three"))
    assert store.get("a") == ChatRecord(
        (
            ConversationRecord("c1", began, began + 10, "three"),
            ConversationRecord("c2", began, began, "two"),
        )
    )


def test_the_order_of_use_counts_where_the_clock_goes_back(
    store: ConversationStore, clock: Clock
) -> None:
    store.put("a", "c1", UNKNOWN)
    clock.now -= 10
    store.put("a", "c2", UNKNOWN)
    chat = store.get("a")
    assert conversations_of(chat) == ["c2", "c1"]
    assert chat is not None
    assert (chat.latest.last_used, chat.last_used) == (int(clock.now), int(clock.now))


def test_what_an_update_does_not_name_stays_and_empty_texts_replace(
    store: ConversationStore, clock: Clock
) -> None:
    now = int(clock.now)
    store.put("a", "c1", Update("one", "first-turn", "system"))
    store.put("a", "c1", Update(""))
    assert store.get("a") == one_branch("c1", now, now, "", "first-turn", "system")
    store.put("a", "c1", Update("two", "", ""))
    assert store.get("a") == one_branch("c1", now, now, "two")


def test_of_too_many_branches_the_least_recently_used_is_dropped(opened: Opener) -> None:
    store, other = opened(), opened()
    for number in range(MOST_BRANCHES):
        store.put("a", f"c{number}", UNKNOWN)
    store.put("a", "c0", UNKNOWN)
    store.put("a", "one more", UNKNOWN)
    kept = ["one more", "c0", *(f"c{number}" for number in range(MOST_BRANCHES - 1, 1, -1))]
    assert conversations_of(other.get("a")) == kept
    assert other.owners("c1") == []
    assert all(other.owners(conversation_id) == ["a"] for conversation_id in kept)
    assert not other.update_if("a", "c1", "", UNKNOWN)
    assert not other.move("a", "b", "c1", UNKNOWN)


def test_times_are_whole_seconds(store: ConversationStore, clock: Clock) -> None:
    clock.now = 1_700_000_000.9
    store.put("a", "c1", UNKNOWN)
    assert store.get("a") == one_branch("c1", 1_700_000_000, 1_700_000_000)


@pytest.mark.parametrize("how", ["put", "update_if", "move"])
@pytest.mark.parametrize("seconds", [1, 3599, -7200])
def test_every_use_sets_the_time_of_the_last_one(
    store: ConversationStore, clock: Clock, seconds: int, how: str
) -> None:
    began = int(clock.now)
    store.put("a", "c1", Update("one"))
    clock.now += seconds
    if how == "put":
        store.put("a", "c1", Update("one"))
    elif how == "update_if":
        assert store.update_if("a", "c1", "one", Update("one"))
    else:
        assert store.move("a", "a", "c1", Update("one"))
    assert store.get("a") == one_branch("c1", began, began + seconds, "one")


def test_a_branch_is_updated_only_if_it_has_the_expected_digest(
    store: ConversationStore, clock: Clock
) -> None:
    began = int(clock.now)
    store.put("a", "c1", Update("one", "first-turn", "system"))
    store.put("a", "c2", Update("two"))
    before = store.get("a")
    clock.now += 5
    assert not store.update_if("a", "c1", "two", Update("three"))
    assert not store.update_if("a", "c1", "", Update("three"))
    assert not store.update_if("a", "c3", "", Update("three"))
    assert not store.update_if("b", "c1", "one", Update("three"))
    assert (store.get("a"), store.get("b")) == (before, None)
    assert store.update_if("a", "c1", "one", Update("three", "whole-history"))
    assert store.get("a") == ChatRecord(
        (
            ConversationRecord("c1", began, began + 5, "three", "whole-history", "system"),
            ConversationRecord("c2", began, began, "two"),
        )
    )
    assert not store.update_if("a", "c1", "one", Update("four"))


def test_only_one_branch_is_forgotten(store: ConversationStore) -> None:
    for conversation_id in ("c1", "c2", "c3"):
        store.put("a", conversation_id, UNKNOWN)
    store.forget("a", "c2")
    store.forget("a", "unknown")
    assert conversations_of(store.get("a")) == ["c3", "c1"]
    store.forget("a", "c3")
    assert conversations_of(store.get("a")) == ["c1"]
    store.forget("a", "c1")
    assert store.get("a") is None
    assert store.keys() == []
    store.forget("a", "c1")


def test_a_branch_moves_to_another_chat_once(store: ConversationStore, clock: Clock) -> None:
    store.put("old", "c1", Update("one", "first-turn", "system"))
    began = int(clock.now)
    clock.now += 5
    assert store.move("old", "new", "c1", Update("two"))
    assert store.get("old") is None
    assert store.get("new") == one_branch("c1", began, began + 5, "two", "first-turn", "system")
    assert not store.move("old", "other", "c1", Update("three"))
    assert store.get("other") is None


def test_the_other_branches_stay_where_one_moves_away_or_arrives(
    opened: Opener, clock: Clock
) -> None:
    store, other = opened(), opened()
    for key, conversation_id in (("a", "c1"), ("a", "c2"), ("b", "c3")):
        store.put(key, conversation_id, UNKNOWN)
        clock.now += 1
    assert store.move("a", "b", "c2", Update("moved"))
    assert conversations_of(other.get("a")) == ["c1"]
    assert conversations_of(other.get("b")) == ["c2", "c3"]
    assert [other.owners(f"c{number}") for number in (1, 2, 3)] == [["a"], ["b"], ["b"]]


def test_a_branch_that_moves_to_a_chat_that_has_it_replaces_it(
    store: ConversationStore, clock: Clock
) -> None:
    began = int(clock.now)
    store.put("a", "c1", Update("one", "first-turn"))
    clock.now += 1
    store.put("b", "c1", Update("two", "chat-id"))
    assert store.move("a", "b", "c1", Update("three"))
    assert store.get("a") is None
    assert store.get("b") == one_branch("c1", began, began + 1, "three", "first-turn")


def test_a_branch_that_moves_to_a_full_chat_drops_its_least_recently_used(
    store: ConversationStore,
) -> None:
    for number in range(MOST_BRANCHES):
        store.put("full", f"c{number}", UNKNOWN)
    store.put("a", "moved", UNKNOWN)
    assert store.move("a", "full", "moved", UNKNOWN)
    kept = conversations_of(store.get("full"))
    assert kept == ["moved", *(f"c{number}" for number in range(MOST_BRANCHES - 1, 0, -1))]
    assert store.owners("c0") == []


def test_a_chat_cannot_give_away_a_conversation_that_it_does_not_have(
    store: ConversationStore,
) -> None:
    store.put("old", "c2", UNKNOWN)
    assert not store.move("old", "new", "c1", UNKNOWN)
    assert store.get("old") is not None
    assert store.get("new") is None


def test_a_move_onto_itself_updates_the_branch_and_keeps_the_others(
    store: ConversationStore, clock: Clock
) -> None:
    began = int(clock.now)
    store.put("a", "c1", UNKNOWN)
    store.put("a", "c2", UNKNOWN)
    clock.now += 1
    assert store.move("a", "a", "c1", Update("digest"))
    assert not store.move("a", "a", "c3", Update("digest"))
    assert store.get("a") == ChatRecord(
        (
            ConversationRecord("c1", began, began + 1, "digest"),
            ConversationRecord("c2", began, began),
        )
    )


def at_once(action: Callable[[int], None], count: int) -> None:
    """Runs the action in so many threads."""
    threads = [threading.Thread(target=action, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_one_of_many_threads_gets_a_conversation_that_is_moved(store: ConversationStore) -> None:
    store.put("old", "c1", UNKNOWN)
    taken: list[str] = []

    def take(number: int) -> None:
        if store.move("old", f"new{number}", "c1", UNKNOWN):
            taken.append(f"new{number}")

    at_once(take, 16)
    assert len(taken) == 1
    assert [key for key, _ in store.entries()] == taken


def test_one_of_many_threads_updates_a_branch_that_all_expect_the_same_of(opened: Opener) -> None:
    stores = [opened() for _ in range(4)]
    stores[0].put("a", "c1", Update("free"))
    won: list[str] = []

    def update(number: int) -> None:
        if stores[number % 4].update_if("a", "c1", "free", Update(f"turn {number}")):
            won.append(f"turn {number}")

    at_once(update, 16)
    assert len(won) == 1
    chat = stores[0].get("a")
    assert chat is not None
    assert chat.latest.history_digest == won[0]


UPDATER = """
import sys, time
from pathlib import Path
from opendify.conversations.store.factory import new_redis_connection, new_store_and_locks
from opendify.conversations.store.mutations import Update
address, folder, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
store, _ = new_store_and_locks(
    new_redis_connection(address), folder, clock=time.time, max_age_days=None, max_entries=9
)
number, won = 0, []
print("ready", flush=True)
sys.stdin.readline()
while number < rounds:
    branch = store.get("a").branch("c1")
    number = int(branch.history_digest)
    if number < rounds and store.update_if("a", "c1", str(number), Update(str(number + 1))):
        won.append(number)
print(*won, flush=True)
store.close()
"""


def test_of_processes_that_update_a_branch_at_once_exactly_one_does(
    redis_address: str, opened: Opener, tmp_path: Path
) -> None:
    """Each round changes the digest once, and both processes try each one that they see."""
    store = opened()
    store.put("a", "c2", Update("the other branch"))
    store.put("a", "c1", Update("0"))
    rounds = 300
    command = [sys.executable, "-c", UPDATER, redis_address, str(tmp_path / "data"), str(rounds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(int(number) for won in told for number in won) == list(range(rounds))
    chat = store.get("a")
    assert conversations_of(chat) == ["c1", "c2"]
    assert chat is not None
    assert [branch.history_digest for branch in chat.branches] == [str(rounds), "the other branch"]


def test_stats_count_and_give_the_first_and_last_beginning(
    store: ConversationStore, clock: Clock
) -> None:
    assert store.stats() == Stats(0, None, None)
    began = int(clock.now)
    for number in range(3):
        clock.now = began + 10 * number
        store.put(f"chat {number}", "c", UNKNOWN)
    assert store.stats() == Stats(3, began, began + 20)


def test_a_chat_began_with_its_oldest_branch(store: ConversationStore, clock: Clock) -> None:
    began = int(clock.now)
    for number in range(3):
        clock.now = began + 10 * number
        store.put("a", f"c{number}", UNKNOWN)
    assert store.stats() == Stats(1, began, began)
    store.forget("a", "c0")
    assert store.stats() == Stats(1, began + 10, began + 10)


def test_entries_come_newest_first(store: ConversationStore, clock: Clock) -> None:
    for key in "abcd":
        clock.now += 1
        store.put(key, f"c-{key}", UNKNOWN)
    clock.now += 1
    store.put("b", "c-b2", UNKNOWN)
    assert [key for key, _ in store.entries()] == ["b", "d", "c", "a"]
    assert [key for key, _ in store.entries(limit=2)] == ["b", "d"]
    assert list(store.entries(limit=0)) == []


def test_cleanup_goes_by_the_last_use_of_any_branch(store: ConversationStore, clock: Clock) -> None:
    for key in ("old", "used", "new"):
        store.put(key, "c", UNKNOWN)
    clock.now += 30 * DAY
    store.put("used", "c", UNKNOWN)
    clock.now += 1
    store.put("new", "c2", UNKNOWN)
    assert store.cleanup(30) == 1
    assert {key for key, _ in store.entries()} == {"used", "new"}
    assert conversations_of(store.get("new")) == ["c2", "c"]
    assert store.cleanup(float("inf")) == 0
    assert store.cleanup(-1) == 2


def test_a_conversation_is_removed_from_every_chat(opened: Opener) -> None:
    store, other = opened(), opened()
    for key, conversation_id in (
        ("a", "c1"), ("b", "c1"), ("b", "c2"), ("c", "c2"), ("d", "c3"), ("d", "c1"), ("d", "c4"),
    ):  # fmt: skip
        store.put(key, conversation_id, UNKNOWN)
    assert sorted(store.remove_conversation("c1")) == ["a", "b", "d"]
    assert {key: conversations_of(chat) for key, chat in other.entries()} == {
        "b": ["c2"],
        "c": ["c2"],
        "d": ["c4", "c3"],
    }
    assert other.remove_conversation("c1") == []


def test_a_conversation_knows_its_chats(store: ConversationStore) -> None:
    assert store.owners("c1") == []
    store.put("b", "c1", UNKNOWN)
    assert store.owners("c1") == ["b"]
    store.put("b", "c2", UNKNOWN)
    store.put("a", "c1", UNKNOWN)
    assert (store.owners("c1"), store.owners("c2")) == (["a", "b"], ["b"])
    store.move("b", "c", "c1", UNKNOWN)
    assert (store.owners("c1"), store.owners("c2")) == (["a", "c"], ["b"])
    store.forget("a", "c1")
    assert store.owners("c1") == ["c"]
    store.remove_conversation("c2")
    assert (store.owners("c1"), store.owners("c2")) == (["c"], [])


def test_all_see_what_one_wrote(opened: Opener) -> None:
    one, other = opened(), opened()
    one.put("a", "c1", Update("one"))
    assert other.get("a") == one.get("a")
    assert other.update_if("a", "c1", "one", Update("two"))
    assert not one.update_if("a", "c1", "one", Update("three"))
    other.put("a", "c2", UNKNOWN)
    assert conversations_of(one.get("a")) == ["c2", "c1"]
    other.move("a", "b", "c1", UNKNOWN)
    assert (conversations_of(one.get("a")), one.owners("c1")) == (["c2"], ["b"])
    one.forget("b", "c1")
    one.forget("a", "c2")
    assert list(other.entries()) == []


# Chats from elsewhere


def test_chats_are_adopted_as_they_are(store: ConversationStore) -> None:
    several = ChatRecord(
        (
            ConversationRecord("c2", 5, 6, "digest", "other-history", "system"),
            ConversationRecord("c3", 1, 9),
        )
    )
    single = one_branch("c4", 7, 8)
    assert store.adopt({"a": several, "b": single}) == 2
    assert (store.get("a"), store.get("b")) == (several, single)
    assert store.stats() == Stats(2, 1, 7)
    assert store.owners("c3") == ["a"]
    assert store.adopt({}) == 0


def test_the_branches_of_a_chat_that_is_known_are_merged(store: ConversationStore) -> None:
    here = ChatRecord(
        (
            ConversationRecord("both, used here later", 1, 60, "here"),
            ConversationRecord("only here", 1, 40, "here"),
            ConversationRecord("both, used at once", 1, 30, "here"),
            ConversationRecord("both, used there later", 1, 10, "here"),
        )
    )
    there = ChatRecord(
        (
            ConversationRecord("only there", 2, 70, "there"),
            ConversationRecord("both, used there later", 2, 50, "there"),
            ConversationRecord("both, used at once", 2, 30, "there"),
            ConversationRecord("both, used here later", 2, 20, "there"),
        )
    )
    store.adopt({"a": here, "other": here})
    assert store.adopt({"a": there}) == 1
    merged = ChatRecord(
        (
            ConversationRecord("only there", 2, 70, "there"),
            ConversationRecord("both, used here later", 1, 60, "here"),
            ConversationRecord("both, used there later", 2, 50, "there"),
            ConversationRecord("only here", 1, 40, "here"),
            ConversationRecord("both, used at once", 2, 30, "there"),
        )
    )
    assert (store.get("a"), store.get("other")) == (merged, here)
    assert store.owners("only there") == ["a"]
    assert store.adopt({"a": there}) == 0
    assert store.adopt({"a": merged}) == 0


def test_of_merged_branches_that_are_too_many_those_used_last_stay(
    store: ConversationStore,
) -> None:
    here, there = (
        ChatRecord(
            tuple(
                ConversationRecord(f"{name}{n}", n, n)
                for n in range(first, first - 2 * MOST_BRANCHES, -2)
            )
        )
        for name, first in (("here", 20), ("there", 21))
    )
    store.adopt({"a": here})
    assert store.adopt({"a": there}) == 1
    assert conversations_of(store.get("a")) == [
        "there21", "here20", "there19", "here18", "there17", "here16", "there15", "here14",
    ]  # fmt: skip
    assert (store.owners("there13"), store.owners("here12")) == ([], [])
    assert store.adopt({"a": there}) == 0


def test_a_chat_that_is_adopted_may_replace_the_one_that_is_known(
    store: ConversationStore,
) -> None:
    store.put("a", "c1", UNKNOWN)
    store.put("a", "c2", UNKNOWN)
    older = one_branch("c1", 5, 6, "digest")
    assert store.adopt({"a": older}, overwrite=True) == 1
    assert store.get("a") == older
    assert (store.owners("c1"), store.owners("c2")) == (["a"], [])
    assert store.adopt({"a": older}, overwrite=True) == 0


def test_very_many_are_adopted_listed_and_cleaned_away(store: ConversationStore) -> None:
    many = {f"chat {n}": one_branch(f"c{n % 700}", n, n) for n in range(1201)}
    assert store.adopt(many) == 1201
    assert dict(store.entries()) == many
    assert [key for key, _ in store.entries(limit=3)] == ["chat 1200", "chat 1199", "chat 1198"]
    assert store.owners("c0") == ["chat 0", "chat 700"]
    assert store.cleanup(0) == 1201
    assert store.stats() == Stats(0, None, None)
    assert store.owners("c0") == []


STRANGE = ["", "a\0b", "聊天", '["-","m","u","\U0001f600"]', "half \ud800", "x" * 2000, "a:b*c\n"]


@pytest.mark.parametrize("text", STRANGE, ids=ascii)
def test_any_text_is_a_key_a_digest_or_a_conversation(opened: Opener, text: str) -> None:
    store, other = opened(), opened()
    conversation_id = text or "c"
    store.put(text, conversation_id, Update(text, text, text))
    store.put(text, "c1", UNKNOWN)
    chat = other.get(text)
    assert chat is not None
    branch = chat.branch(conversation_id)
    assert branch is not None
    assert (branch.history_digest, branch.reason, branch.system_digest) == (text, text, text)
    assert other.keys() == [text]
    assert other.owners("c1") == other.owners(conversation_id) == [text]
    assert [found for found, _ in other.entries()] == [text]
    other.close()
    assert dict(other.entries()) == {text: chat}
    assert other.remove_conversation(conversation_id) == [text]
    assert other.remove_conversation("c1") == [text]
    assert store.get(text) is None


def test_times_that_people_wrote_do_no_harm(store: ConversationStore) -> None:
    past, future = one_branch("c1", -5, -5), one_branch("c2", 10**30, 10**30)
    assert store.adopt({"past": past, "future": future}) == 2
    assert dict(store.entries()) == {"past": past, "future": future}
    assert store.cleanup(30) == 1
    assert store.keys() == ["future"]


def test_a_store_is_available_while_its_storage_is(store: ConversationStore) -> None:
    store.put("a", "c1", UNKNOWN)
    assert store.available
    assert store.kind in ("file", "redis")


def test_a_closed_store_opens_again(store: ConversationStore) -> None:
    store.put("a", "c1", UNKNOWN)
    store.put("a", "c2", UNKNOWN)
    store.close()
    store.close()
    assert conversations_of(store.get("a")) == ["c2", "c1"]


def test_of_many_threads_each_change_counts(opened: Opener) -> None:
    stores = [opened() for _ in range(4)]

    def use(number: int) -> None:
        for turn in range(10):
            stores[number % 4].put(f"own {number}", f"c{turn}", UNKNOWN)
            stores[number % 4].put("shared", f"c{number}-{turn}", UNKNOWN)

    at_once(use, 8)
    found = {key: conversations_of(chat) for key, chat in stores[0].entries()}
    last = found.pop("shared")
    assert found == {f"own {n}": [f"c{turn}" for turn in range(9, 1, -1)] for n in range(8)}
    assert len(last) == MOST_BRANCHES
    owned = [one for n in range(8) for t in range(10) if stores[1].owners(one := f"c{n}-{t}")]
    assert sorted(owned) == sorted(last)


def test_threads_that_use_branches_of_one_chat_at_once_lose_none(opened: Opener) -> None:
    stores = [opened() for _ in range(4)]

    def use(number: int) -> None:
        for turn in range(10):
            stores[number % 4].put("shared", f"c{number}", Update(str(turn)))

    at_once(use, MOST_BRANCHES)
    chat = stores[0].get("shared")
    assert chat is not None
    assert {branch.conversation_id: branch.history_digest for branch in chat.branches} == {
        f"c{number}": "9" for number in range(MOST_BRANCHES)
    }
