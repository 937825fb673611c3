"""What is remembered of chats: the same in every kind of store."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opendify.conversations import (
    ConversationRecord,
    ConversationStore,
    JsonFileStore,
    Stats,
)
from opendify.conversations.store.compactor import Compactor
from opendify.conversations.store.redis import RedisStore
from opendify.storage.redis_connection import RedisConnection
from tests.support.chats import DAY, Clock

Opener = Callable[[], ConversationStore]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["file", "redis"])
def opened(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Opener]:
    """Makes stores on one place; each is to the others like one of another process."""
    stores: list[ConversationStore] = []
    options: dict[str, Any] = {"clock": clock, "max_age_days": None, "max_entries": 100_000}
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
    else:
        monkeypatch.setattr(Compactor, "TICK_SECONDS", 3600.0)

    def make() -> ConversationStore:
        if request.param == "redis":
            stores.append(RedisStore(RedisConnection(url, "Redis"), **options))
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
    store.put("a", "c1", "heard")
    assert store.get("a") == ConversationRecord("c1", int(clock.now), int(clock.now), "heard")


def test_a_moved_chat_counts_from_the_move(store: ConversationStore, clock: Clock) -> None:
    store.put("a", "c1")
    clock.now += 10
    store.put("a", "c2")
    assert store.get("a") == ConversationRecord("c2", int(clock.now), int(clock.now))


def test_the_history_digest_may_change_within_a_conversation(
    store: ConversationStore, clock: Clock
) -> None:
    began = int(clock.now)
    store.put("a", "c1", "one")
    clock.now += 10
    store.put("a", "c1", "two")
    assert store.get("a") == ConversationRecord("c1", began, began + 10, "two")


def test_times_are_whole_seconds(store: ConversationStore, clock: Clock) -> None:
    clock.now = 1_700_000_000.9
    store.put("a", "c1")
    assert store.get("a") == ConversationRecord("c1", 1_700_000_000, 1_700_000_000)


@pytest.mark.parametrize(
    ("seconds", "noted"), [(0, False), (3599, False), (3600, True), (-7200, False)]
)
@pytest.mark.parametrize("how", ["touch", "put"])
def test_the_last_use_is_noted_once_an_hour(
    store: ConversationStore, clock: Clock, seconds: int, noted: bool, how: str
) -> None:
    store.put("a", "c1")
    before = int(clock.now)
    clock.now += seconds
    if how == "touch":
        store.touch("a")
    else:
        store.put("a", "c1")
    assert store.get("a") == ConversationRecord("c1", before, before + seconds if noted else before)


def test_touching_an_unknown_chat_makes_nothing(store: ConversationStore) -> None:
    store.touch("a")
    assert store.get("a") is None


def test_only_the_conversation_that_failed_is_forgotten(store: ConversationStore) -> None:
    store.put("a", "c2")
    store.forget("a", "c1")
    assert store.get("a") is not None
    store.forget("a", "c2")
    assert store.get("a") is None
    store.forget("a", "c2")


def test_a_conversation_is_handed_over_once(store: ConversationStore, clock: Clock) -> None:
    store.put("old", "c1", "one")
    began = int(clock.now)
    clock.now += 5
    assert store.move("old", "new", "c1", "two")
    assert store.get("old") is None
    assert store.get("new") == ConversationRecord("c1", began, began + 5, "two")
    assert not store.move("old", "other", "c1", "three")
    assert store.get("other") is None


def test_a_conversation_is_not_handed_over_by_who_lost_it(store: ConversationStore) -> None:
    store.put("old", "c2")
    assert not store.move("old", "new", "c1", "")
    assert store.get("old") is not None
    assert store.get("new") is None


def test_a_move_onto_itself_keeps_the_chat(store: ConversationStore) -> None:
    store.put("a", "c1")
    assert store.move("a", "a", "c1", "heard")
    moved = store.get("a")
    assert moved is not None
    assert moved.history_digest == "heard"


def test_one_of_many_threads_gets_a_conversation_that_is_handed_over(
    store: ConversationStore,
) -> None:
    store.put("old", "c1")
    taken: list[str] = []

    def take(name: str) -> None:
        if store.move("old", name, "c1", ""):
            taken.append(name)

    threads = [threading.Thread(target=take, args=(f"new{n}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert [key for key, _ in store.entries()] == taken


def test_stats_count_and_give_the_first_and_last_beginning(
    store: ConversationStore, clock: Clock
) -> None:
    assert store.stats() == Stats(0, None, None)
    began = int(clock.now)
    for number in range(3):
        clock.now = began + 10 * number
        store.put(f"chat {number}", "c")
    assert store.stats() == Stats(3, began, began + 20)


def test_entries_come_newest_first(store: ConversationStore, clock: Clock) -> None:
    for key in "abcd":
        clock.now += 1
        store.put(key, f"c-{key}")
    assert [key for key, _ in store.entries()] == ["d", "c", "b", "a"]
    assert [key for key, _ in store.entries(limit=2)] == ["d", "c"]
    assert list(store.entries(limit=0)) == []


def test_cleanup_goes_by_the_last_use(store: ConversationStore, clock: Clock) -> None:
    for key in ("old", "used", "new"):
        store.put(key, "c")
    clock.now += 30 * DAY
    store.touch("used")
    clock.now += 1
    store.put("new", "c2")
    assert store.cleanup(30) == 1
    assert {key for key, _ in store.entries()} == {"used", "new"}
    assert store.cleanup(float("inf")) == 0
    assert store.cleanup(-1) == 2


def test_all_chats_of_a_conversation_are_removed(store: ConversationStore) -> None:
    store.put("a", "c1")
    store.put("b", "c1")
    store.put("c", "c2")
    assert sorted(store.remove_conversation("c1")) == ["a", "b"]
    assert [key for key, _ in store.entries()] == ["c"]
    assert store.remove_conversation("c1") == []


def test_a_conversation_knows_its_chat(store: ConversationStore) -> None:
    assert store.owner("c1") is None
    store.put("a", "c1")
    assert store.owner("c1") == "a"
    store.move("a", "b", "c1", "")
    assert store.owner("c1") == "b"
    store.put("b", "c2")
    assert (store.owner("c1"), store.owner("c2")) == (None, "b")
    store.put("a", "c2")
    assert store.owner("c2") == "a"
    store.forget("a", "c2")
    assert store.owner("c2") == "b"
    store.remove_conversation("c2")
    assert store.owner("c2") is None


def test_all_see_what_one_wrote(opened: Opener) -> None:
    one, other = opened(), opened()
    one.put("a", "c1")
    assert other.get("a") == one.get("a")
    other.move("a", "b", "c1", "")
    assert (one.get("a"), one.owner("c1")) == (None, "b")
    one.forget("b", "c1")
    assert list(other.entries()) == []


def test_mappings_are_taken_over_as_they_are(store: ConversationStore, clock: Clock) -> None:
    store.put("here", "c1")
    now = int(clock.now)
    older, newer = ConversationRecord("c2", 5, 6, "heard"), ConversationRecord("c3", 7, now + 1)
    assert store.adopt({"here": older, "a": older, "b": newer}) == 2
    assert store.get("here") == ConversationRecord("c1", now, now)
    assert (store.get("a"), store.get("b")) == (older, newer)
    assert store.adopt({"here": newer, "a": older, "b": newer}) == 1
    assert store.get("here") == newer
    assert store.adopt({"here": older}, overwrite=True) == 1
    assert store.get("here") == older
    assert store.stats() == Stats(3, 5, 7)
    assert store.adopt({}) == 0


def test_very_many_are_taken_over_listed_and_cleaned_away(store: ConversationStore) -> None:
    many = {f"chat {n}": ConversationRecord(f"c{n % 700}", n, n) for n in range(1201)}
    assert store.adopt(many) == 1201
    assert dict(store.entries()) == many
    assert [key for key, _ in store.entries(limit=3)] == ["chat 1200", "chat 1199", "chat 1198"]
    assert store.owner("c0") == "chat 0"
    assert store.cleanup(0) == 1201
    assert store.stats() == Stats(0, None, None)
    assert store.owner("c0") is None


STRANGE = ["", "a\0b", "聊天", '["-","m","u","\U0001f600"]', "half \ud800", "x" * 2000, "a:b*c\n"]


@pytest.mark.parametrize("key", STRANGE, ids=ascii)
def test_any_text_is_a_key_and_a_digest(opened: Opener, key: str) -> None:
    store, other = opened(), opened()
    store.put(key, "c1", key)
    mapping = other.get(key)
    assert mapping is not None
    assert mapping.history_digest == key
    assert other.keys() == [key]
    assert other.owner("c1") == key
    assert [found for found, _ in other.entries()] == [key]
    assert other.remove_conversation("c1") == [key]
    assert store.get(key) is None


def test_times_that_people_wrote_do_no_harm(store: ConversationStore) -> None:
    past, future = ConversationRecord("c1", -5, -5), ConversationRecord("c2", 10**30, 10**30)
    assert store.adopt({"past": past, "future": future}) == 2
    assert dict(store.entries()) == {"past": past, "future": future}
    assert store.cleanup(30) == 1
    assert store.keys() == ["future"]


def test_a_store_is_available_while_its_storage_is(store: ConversationStore) -> None:
    store.put("a", "c1")
    assert store.available
    assert store.kind in ("file", "redis")


def test_a_closed_store_opens_again(store: ConversationStore) -> None:
    store.put("a", "c1")
    store.close()
    store.close()
    assert store.get("a") is not None


def test_of_many_threads_each_change_counts(opened: Opener) -> None:
    stores = [opened() for _ in range(4)]

    def use(number: int) -> None:
        for turn in range(10):
            stores[number % 4].put(f"own {number}", f"c{turn}")
            stores[number % 4].put("shared", f"c{number}-{turn}")

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {key: mapping.conversation_id for key, mapping in stores[0].entries()}
    last = found.pop("shared")
    assert found == {f"own {number}": "c9" for number in range(8)}
    assert stores[1].owner(last) == "shared"
    assert [one for n in range(8) for t in range(10) if stores[0].owner(one := f"c{n}-{t}")] == [
        last
    ]
