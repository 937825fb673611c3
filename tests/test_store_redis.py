"""Conversations in Redis: what only this kind has, and what trouble with the server does."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from hypothesis import settings
from hypothesis.stateful import rule

from opendify.conversations import ChatRecord, ConversationRecord, Stats, Update
from opendify.conversations.store.redis import RedisStore
from opendify.storage.redis_connection import RETRY_SECONDS, RedisConnection
from tests.support.chats import (
    DAY,
    MOST_BRANCHES,
    Chats,
    Clock,
    conversations_of,
    latest_of,
    one_branch,
)
from tests.support.profiles import examples
from tests.support.redis_server import RedisServer
from tests.support.service import ROOT
from tests.support.waiting import wait_for

Opener = Callable[..., RedisStore]
UNKNOWN = Update("")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One that a test may harm."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def opened(clock: Clock) -> Iterator[Opener]:
    stores: list[RedisStore] = []

    def make(url: str, retry_seconds: float = 0.2, **options: Any) -> RedisStore:
        chosen = {"clock": clock, "max_age_days": None, "max_entries": 1000} | options
        chosen["write_back_retry_seconds"] = retry_seconds
        link = RedisConnection(url, "redis://shown:6379/0", retry_seconds)
        stores.append(RedisStore(link, **chosen))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def return_of(store: RedisStore) -> None:
    """Waits until the store has found out that Redis is back."""
    wait_for(lambda: (store.get("anything"), store.available)[1])


# In Redis


def test_nothing_is_opened_before_the_first_use(redis_server: RedisServer, opened: Opener) -> None:
    with redis_server.client() as client:
        before = client.info("clients")["connected_clients"]
        store = opened(redis_server.url)
        assert client.info("clients")["connected_clients"] == before
        store.get("a")
        assert client.info("clients")["connected_clients"] == before + 1
        store.close()
        wait_for(lambda: client.info("clients")["connected_clients"] == before)


def test_all_keys_have_our_prefix_and_none_is_left_behind(
    redis_url: str, redis_server: RedisServer, opened: Opener
) -> None:
    store = opened(redis_url)
    store.put("a", "c1", Update("digest"))
    store.move("a", "b", "c2", UNKNOWN)
    store.move("a", "b", "c1", UNKNOWN)
    with redis_server.client() as client:
        assert sorted(client.keys()) == [
            b"opendify:chat:b",
            b"opendify:conversation:c1",
            b"opendify:created",
            b"opendify:used",
        ]
        store.put("b", "c2", UNKNOWN)
        store.forget("b", "c1")
        assert not client.exists("opendify:conversation:c1")
        store.forget("b", "c2")
        assert client.keys() == []


def conversation_index(server: RedisServer) -> dict[str, set[str]]:
    """The chats of each conversation, as the index says."""
    prefix = "opendify:conversation:"
    with server.client() as client:
        return {
            raw.decode().removeprefix(prefix): {member.decode() for member in client.smembers(raw)}
            for raw in client.keys(f"{prefix}*")
        }


def test_the_index_of_conversations_follows_the_branches(
    redis_url: str, redis_server: RedisServer, opened: Opener, clock: Clock
) -> None:
    store = opened(redis_url)
    for number in range(MOST_BRANCHES):
        store.put("a", f"c{number}", UNKNOWN)
    every = {f"c{number}": {"a"} for number in range(MOST_BRANCHES)}
    assert conversation_index(redis_server) == every
    store.put("a", "c0", UNKNOWN)
    store.put("a", "one more", UNKNOWN)  # c1 is dropped
    del every["c1"]
    assert conversation_index(redis_server) == every | {"one more": {"a"}}
    store.put("b", "c2", UNKNOWN)
    assert conversation_index(redis_server)["c2"] == {"a", "b"}
    assert store.move("a", "b", "c3", UNKNOWN)
    assert store.move("a", "b", "c2", UNKNOWN)
    store.forget("a", "c4")
    store.remove_conversation("c5")
    assert store.update_if("a", "c6", "", Update("digest"))
    kept = {"c0", "c6", "c7", "one more"}
    expected = {conversation_id: {"a"} for conversation_id in kept} | {"c2": {"b"}, "c3": {"b"}}
    assert conversation_index(redis_server) == expected
    store.adopt({"b": one_branch("adopted", 1, int(clock.now))})
    assert conversation_index(redis_server) == expected | {"adopted": {"b"}}
    store.adopt({"b": one_branch("adopted", 1, 1)}, overwrite=True)
    del expected["c2"], expected["c3"]
    assert conversation_index(redis_server) == expected | {"adopted": {"b"}}
    store.cleanup(-1)
    assert conversation_index(redis_server) == {}


def test_a_chat_is_the_entry_of_the_file(
    redis_url: str, redis_server: RedisServer, opened: Opener
) -> None:
    store = opened(redis_url)
    store.put("聊天", "c1", Update("digest", "first-turn", "system"))
    with redis_server.client() as client:
        first = (
            b'"dify_conversation_id":"c1","created_at":1700000000,"last_used":1700000000,'
            b'"history_digest":"digest","reason":"first-turn","system_digest":"system"'
        )
        assert client.get("opendify:chat:聊天") == b"{" + first + b"}"
        store.put("聊天", "c2", UNKNOWN)
        assert client.get("opendify:chat:聊天") == (
            b'{"dify_conversation_id":"c2","created_at":1700000000,"last_used":1700000000,'
            b'"branches":[{' + first + b"}]}"
        )


def test_all_branches_come_back_from_redis(redis_url: str, opened: Opener, clock: Clock) -> None:
    store = opened(redis_url)
    for number in range(MOST_BRANCHES):
        clock.now += 1
        store.put("a", f"c{number}", Update(f"digest {number}", f"reason {number}", "system"))
    began = int(clock.now) - MOST_BRANCHES + 1
    assert opened(redis_url).get("a") == ChatRecord(
        tuple(
            ConversationRecord(
                f"c{n}", began + n, began + n, f"digest {n}", f"reason {n}", "system"
            )
            for n in range(MOST_BRANCHES - 1, -1, -1)
        )
    )


@pytest.mark.parametrize(
    ("digest", "member"),
    [("h", b',"heard":"h"'), ("h", b',"history_digest":"h"'), ("", b"")],
    ids=["earlier name", "current name", "none"],
)
def test_a_chat_of_an_earlier_release_has_one_branch_and_gets_more(
    redis_url: str, redis_server: RedisServer, opened: Opener, digest: str, member: bytes
) -> None:
    earlier = b'{"dify_conversation_id":"c1","created_at":1,"last_used":2' + member + b"}"
    with redis_server.client() as client:
        client.set("opendify:chat:a", earlier)
        store = opened(redis_url)
        assert store.get("a") == one_branch("c1", 1, 2, digest)
        assert store.update_if("a", "c1", digest, Update("new"))
        store.put("a", "c2", UNKNOWN)
        assert client.get("opendify:chat:a") == (
            b'{"dify_conversation_id":"c2","created_at":1700000000,"last_used":1700000000,'
            b'"branches":[{"dify_conversation_id":"c1","created_at":1,"last_used":1700000000,'
            b'"history_digest":"new"}]}'
        )
    assert (store.owners("c1"), store.owners("c2")) == (["a"], ["a"])


@pytest.mark.parametrize("gone", ["chat:a", "used", "created", "conversation:c1"])
def test_what_the_server_evicts_does_no_harm(
    redis_url: str, redis_server: RedisServer, opened: Opener, gone: str
) -> None:
    store = opened(redis_url)
    store.put("a", "c1", UNKNOWN)
    store.put("b", "c2", UNKNOWN)
    with redis_server.client() as client:
        client.delete(f"opendify:{gone}")
    assert store.owners("c1") in (["a"], [])
    assert (store.get("a") is None) == (gone == "chat:a")
    assert set(latest_of(store)) <= {"a", "b"}
    store.put("a", "c3", UNKNOWN)
    assert store.owners("c3") == ["a"]
    assert store.owners("c1") == ([] if gone == "chat:a" else ["a"])
    store.put("a", "c1", UNKNOWN)
    assert store.owners("c1") == ["a"]
    store.cleanup(-1)
    assert latest_of(store) == {}


BROKEN = [
    b"no mapping",
    b'{"dify_conversation_id":"c1","created_at":1,"last_used":1,"branches":{}}',
    b'{"dify_conversation_id":"c1","created_at":1,"last_used":1,"branches":[{}]}',
    b'{"dify_conversation_id":"c1","created_at":1,"last_used":1,"reason":7}',
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_record_is_treated_as_missing_and_overwritten(
    redis_url: str, redis_server: RedisServer, opened: Opener, broken: bytes
) -> None:
    store = opened(redis_url)
    store.put("a", "c1", UNKNOWN)
    with redis_server.client() as client:
        client.set("opendify:chat:a", broken)
    assert store.get("a") is None
    assert latest_of(store) == {}
    assert not store.update_if("a", "c1", "", UNKNOWN)
    assert not store.move("a", "b", "c1", UNKNOWN)
    store.put("a", "c2", UNKNOWN)
    assert latest_of(store) == {"a": "c2"}
    assert conversations_of(store.get("a")) == ["c2"]


def test_old_mappings_go_by_themselves(redis_url: str, opened: Opener, clock: Clock) -> None:
    store = opened(redis_url, max_age_days=7)
    store.put("old", "c1", UNKNOWN)
    store.put("used", "c2", UNKNOWN)
    clock.now += 7 * DAY
    store.put("used", "c2", UNKNOWN)
    clock.now += 1
    opened(redis_url, max_age_days=7).put("new", "c3", UNKNOWN)
    assert latest_of(store) == {"new": "c3", "used": "c2"}


def test_the_least_recently_used_go_when_there_are_too_many(
    redis_url: str, opened: Opener, clock: Clock
) -> None:
    store = opened(redis_url)
    store.adopt({f"chat {n}": one_branch("c", n, n) for n in range(1300)})
    clock.now = 5000
    store.put("chat 0", "c", UNKNOWN)
    small = opened(redis_url, max_entries=10)
    small.put("new", "c2", UNKNOWN)
    last = {"new", "chat 0"} | {f"chat {n}" for n in range(1292, 1300)}
    assert set(latest_of(store)) == last
    assert small.stats().count == 10


def test_a_forked_child_makes_its_own_connections(
    redis_url: str, redis_server: RedisServer, opened: Opener
) -> None:
    store = opened(redis_url)
    store.put("of the parent", "c1", UNKNOWN)
    child = os.fork()
    if child == 0:
        try:
            store.put("of the child", "c2", UNKNOWN)
            os._exit(0 if store.owners("c2") == ["of the child"] else 1)
        finally:
            os._exit(2)
    for number in range(200):
        store.put("of the parent", f"c1-{number}", UNKNOWN)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert latest_of(store) == {"of the parent": "c1-199", "of the child": "c2"}


WRITER = """
import sys, time
from opendify.storage.redis_connection import RedisConnection
from opendify.conversations.store.mutations import Update
from opendify.conversations.store.redis import RedisStore
link = RedisConnection(sys.argv[1], "Redis")
store = RedisStore(link, clock=time.time, max_age_days=None, max_entries=100_000)
for number in range(10**9):
    store.put(f"{sys.argv[2]} {number}", f"c-{sys.argv[2]}-{number}", Update("digest"))
    print(number, flush=True)
"""


def test_a_killed_process_loses_no_acknowledged_mapping(redis_url: str, opened: Opener) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for writer in range(3):
        command = [sys.executable, "-c", WRITER, redis_url, str(writer)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(50):
                process.stdout.readline()
            process.kill()
            told = 50 + process.stdout.read().count(b"\n")
        store = opened(redis_url)
        for number in range(told):
            assert store.owners(f"c-{writer}-{number}") == [f"{writer} {number}"]
        written = [key for key, _ in store.entries() if key.startswith(f"{writer} ")]
        assert told <= len(written) <= told + 1


def test_as_many_threads_as_there_are_may_ask_at_once(redis_url: str) -> None:
    link = RedisConnection(redis_url, "Redis")
    together = threading.Barrier(200)

    def ask(_: int) -> bool:
        return link.execute(
            lambda client: client.transaction(lambda pipe: together.wait(30), "x") == []
        )

    with ThreadPoolExecutor(200) as threads:
        assert all(threads.map(ask, range(200)))
    assert link.available
    link.close()


# Redis is away


def test_what_was_seen_and_what_is_new_is_known_while_redis_is_away(
    server: RedisServer, opened: Opener, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(server.url)
    store.put("seen", "c1", Update("one"))
    server.kill()
    clock.now += 1
    assert store.get("seen") == one_branch("c1", int(clock.now) - 1, int(clock.now) - 1, "one")
    assert store.get("unknown") is None
    store.put("new", "c2", UNKNOWN)
    assert store.move("new", "moved", "c2", Update("two"))
    assert not store.move("new", "elsewhere", "c2", UNKNOWN)
    clock.now += 1
    store.put("seen", "c4", UNKNOWN)
    assert store.update_if("seen", "c1", "one", Update("two"))
    assert not store.update_if("seen", "c1", "one", Update("three"))
    assert conversations_of(store.get("seen")) == ["c1", "c4"]
    store.put("to be forgotten", "c3", UNKNOWN)
    store.forget("to be forgotten", "c3")
    assert not store.available
    assert set(latest_of(store)) == set(store.keys()) == {"seen", "moved"}
    assert [key for key, _ in store.entries(limit=1)] == ["seen"]
    assert store.stats() == Stats(2, int(clock.now) - 2, int(clock.now) - 1)
    assert [store.owners(f"c{number}") for number in range(2, 5)] == [["moved"], [], ["seen"]]
    assert (store.cleanup(0), store.remove_conversation("c1")) == (0, [])
    store.close()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "redis://shown:6379/0 cannot be used (ConnectionError" in caplog.text


def test_what_was_new_meanwhile_is_kept_when_redis_is_back(
    server: RedisServer, opened: Opener, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store, other = opened(server.url), opened(server.url)
    store.put("seen", "c1", UNKNOWN)
    server.kill()
    store.put("new", "c2", UNKNOWN)
    store.put("contested", "c3", UNKNOWN)
    server.start()
    clock.now += 5
    other.put("contested", "c4", UNKNOWN)
    return_of(store)
    assert other.get("new") == one_branch("c2", int(clock.now) - 5, int(clock.now) - 5)
    assert latest_of(store) == {"contested": "c4", "new": "c2"}
    assert conversations_of(other.get("contested")) == ["c4", "c3"]
    assert store.get("contested") == other.get("contested")
    assert store.get("seen") is None  # this server keeps nothing over a restart
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "are stored in redis://shown:6379/0 again" in caplog.records[1].getMessage()


def test_a_branch_that_was_used_elsewhere_since_keeps_what_it_got_there(
    server: RedisServer, opened: Opener, clock: Clock
) -> None:
    store, other = opened(server.url), opened(server.url)
    server.kill()
    store.put("a", "c1", Update("here"))
    store.put("a", "c2", Update("here"))
    server.start()
    began = int(clock.now)
    clock.now += 5
    other.put("a", "c1", Update("elsewhere"))
    return_of(store)
    assert store.get("a") == ChatRecord(
        (
            ConversationRecord("c1", began + 5, began + 5, "elsewhere"),
            ConversationRecord("c2", began, began, "here"),
        )
    )
    assert (other.owners("c1"), other.owners("c2")) == (["a"], ["a"])


def go_on_from_memory(server: RedisServer, store: RedisStore) -> None:
    server.start()
    wait_for(lambda: (store.stats(), store.available)[1])
    assert store.move("new", "new", "c1", Update("two"))
    assert store.move("new", "moved", "c1", Update("three"))


def test_a_chat_that_waits_to_be_kept_goes_on_from_memory(
    server: RedisServer, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(server.url)
    server.kill()
    store.put("new", "c1", Update("one"))
    with monkeypatch.context() as patched:
        patched.setattr(store, "_write_back", lambda limit: None)
        go_on_from_memory(server, store)
    assert opened(server.url).keys() == []
    assert store.get("new") is None
    kept = opened(server.url).get("moved")
    assert kept is not None
    assert kept.latest.history_digest == "three"


def test_an_address_that_is_no_name_costs_no_answer(
    opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(f"redis://{'a' * 70}..example/0")
    store.put("a", "c1", UNKNOWN)
    assert store.get("a") is not None
    assert len(caplog.records) == 1


def test_closing_keeps_what_was_new_meanwhile(server: RedisServer, opened: Opener) -> None:
    store = opened(server.url)
    server.kill()
    for number in range(120):
        store.put(f"chat {number}", "c", UNKNOWN)
    server.start()
    wait_for(lambda: (store.stats(), store.available)[1])
    store.close()
    assert opened(server.url).stats().count == 120


def test_a_silent_redis_delays_nothing_for_long(
    server: RedisServer, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(server.url, RETRY_SECONDS)
    store.put("a", "c1", UNKNOWN)
    server.pause()
    began = time.monotonic()
    for number in range(50):
        assert store.get("a") is not None
        store.put(f"chat {number}", "c", UNKNOWN)
    assert time.monotonic() - began < 10
    server.go_on()
    return_of(store)
    assert opened(server.url).get("chat 49") is not None
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_threads_find_out_together_that_redis_is_gone_and_back(
    server: RedisServer, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(server.url)
    stop, failures = threading.Event(), []

    def work(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            store.put(f"chat {number}", f"c{number}-{turn}", UNKNOWN)
            mapping = store.get(f"chat {number}")
            if mapping is None or mapping.latest.conversation_id != f"c{number}-{turn}":
                failures.append((number, turn, mapping))
            time.sleep(0.005)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    server.kill()
    wait_for(lambda: not store.available)
    server.start()
    wait_for(lambda: store.available)
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert store.stats().count == 8


@pytest.mark.parametrize(
    "settings_of_redis",
    [{"maxmemory": "1", "maxmemory-policy": "noeviction"}, {"min-replicas-to-write": "1"}],
    ids=["full", "lacks a replica"],
)
def test_a_redis_that_refuses_to_write_is_still_read(
    server: RedisServer,
    opened: Opener,
    caplog: pytest.LogCaptureFixture,
    settings_of_redis: dict[str, str],
) -> None:
    store, other = opened(server.url), opened(server.url)
    other.put("kept", "c1", UNKNOWN)
    other.put("kept too", "c5", UNKNOWN)
    with server.client() as client:
        for name, value in settings_of_redis.items():
            client.config_set(name, value)
        assert store.get("kept") is not None
        store.put('["-","model","anna@example.com","chat"]', "c2", UNKNOWN)
        store.put("kept", "c3", UNKNOWN)
        assert store.get("kept too") is not None
        assert (store.available, other.available) == (False, True)
        found = store.get("kept")
        assert found is not None
        assert conversations_of(found) == ["c3", "c1"]
        assert len(caplog.records) == 1
        assert "refuses to store conversations" in caplog.text
        assert "anna" not in caplog.text
        for name in settings_of_redis:
            client.config_set(name, "noeviction" if "policy" in name else "0")
    return_of(store)
    assert len(latest_of(other)) == 3
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_a_wrong_password_is_logged_without_it(
    redis_server: RedisServer, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server.client() as client:
        client.config_set("requirepass", "right")
    try:
        url = redis_server.url.replace("redis://", "redis://:wrong-secret@")
        assert opened(url).get("a") is None
        assert opened(redis_server.url).get("a") is None
        right = opened(url.replace("wrong-secret", "right"))
        right.put("a", "c1", UNKNOWN)
        assert right.available
    finally:
        with redis.Redis(port=redis_server.port, password="right") as client:
            client.config_set("requirepass", "")
    assert len(caplog.records) == 2
    assert "wrong-secret" not in caplog.text


def test_memory_stays_bounded_while_redis_is_away(
    server: RedisServer, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opendify.conversations.store.redis._MAX_CACHED", 10)
    store = opened(server.url)
    for number in range(30):
        store.put(f"before {number}", "c", UNKNOWN)
    server.kill()
    for number in range(30):
        store.put(f"after {number}", "c", UNKNOWN)
    assert store.stats().count == 20
    assert store.get("after 29") is not None
    assert store.get("before 29") is not None
    assert store.get("after 0") is None


def test_redis_that_was_never_there_costs_no_answer(
    opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened("redis://127.0.0.1:1/0")
    store.put("a", "c1", UNKNOWN)
    assert store.get("a") is not None
    assert len(caplog.records) == 1


# All of it together, against a dict


class ChatsInRedis(Chats):
    """Processes that share one Redis; one may be replaced by another."""

    url = ""

    def prepare(self) -> None:
        self.redis = redis.Redis.from_url(self.url)
        self.redis.flushall()

    def open(self) -> RedisStore:
        link = RedisConnection(self.url, "Redis")
        return RedisStore(link, clock=self.clock, max_age_days=None, max_entries=1000)

    def teardown(self) -> None:
        super().teardown()
        for store in self.stores:
            store.cleanup(-(10**9))
        assert self.redis.keys() == []
        for store in self.stores:
            store.close()
        self.redis.close()

    @rule(who=Chats.whose)
    def restart(self, who: int) -> None:
        self.stores[who].close()
        self.stores[who] = self.open()


@pytest.fixture
def chats_in_redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatsInRedis, "url", redis_url)


@pytest.mark.usefixtures("chats_in_redis")
class TestChatsInRedis(ChatsInRedis.TestCase):
    settings = settings(max_examples=examples(40), stateful_step_count=30)
