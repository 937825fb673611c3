"""Copying the conversations from one store to another, by the command that operators use."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from opendify.conversations import ChatRecord, ConversationRecord, JsonFileStore, Update
from opendify.conversations.store.redis import RedisStore
from opendify.storage.redis_connection import RedisConnection
from tests.support.chats import MOST_BRANCHES, conversations_of, one_branch
from tests.support.redis_server import RedisServer
from tests.support.service import ROOT, environment

MANY = {
    f'["-","tiny","user {n}","聊天 {n}"]': ChatRecord(
        tuple(
            ConversationRecord(f"c{n}" + "-older" * b, n, n + 8 - b, f"digest {n}" * (n % 2), "r")
            for b in range(n % MOST_BRANCHES + 1)
        )
    )
    for n in range(1234)
}
OPTIONS: dict[str, Any] = {"clock": lambda: 5000.0, "max_age_days": None, "max_entries": 10_000}


@pytest.fixture
def file_store(tmp_path: Path) -> Path:
    """A working folder with many mappings in its ``data``."""
    store = JsonFileStore(tmp_path / "data", **OPTIONS)
    store.adopt(MANY)
    store.close()
    return tmp_path


def in_redis(url: str) -> RedisStore:
    return RedisStore(RedisConnection(url, "Redis"), **OPTIONS)


def transfer(
    folder: Path, *arguments: str, module: str = "migrate", **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"opendify.conversations.{module}", *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_everything_goes_there_and_back(
    file_store: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = (file_store / "data/conversation_mappings.json").read_bytes()
    there = transfer(file_store, "--from", "file", "--to", redis_url)
    assert (there.returncode, there.stderr) == (0, "")
    assert there.stdout == (
        f"1234 mappings in {file_store / 'data'}: 1234 copied to {redis_url}, "
        "0 were already there, as new or newer.\n"
    )
    store = in_redis(redis_url)
    assert dict(store.entries()) == MANY
    assert store.owners("c7-older") == ['["-","tiny","user 7","聊天 7"]']
    store.close()
    assert (file_store / "data/conversation_mappings.json").read_bytes() == before
    empty = tmp_path_factory.mktemp("empty")
    back = transfer(empty, "--from", redis_url, "--to", "file")
    assert back.returncode == 0
    assert "1234 copied" in back.stdout
    copied = json.loads((empty / "data/conversation_mappings.json").read_text("utf-8"))
    assert copied == json.loads(before)


def test_a_second_time_copies_only_what_is_new(file_store: Path, redis_url: str) -> None:
    transfer(file_store, "--from", "file", "--to", redis_url)
    first, second = list(MANY)[:2]
    newer_there, newer_here = one_branch("c0", 0, 99_999, "there"), one_branch("c1", 1, 99_999)
    there = in_redis(redis_url)
    there.adopt({first: newer_there}, overwrite=True)
    here = JsonFileStore(file_store / "data", **OPTIONS)
    here.adopt({second: newer_here}, overwrite=True)
    here.close()
    again = transfer(file_store, "--from", "file", "--to", redis_url)
    assert "1234 mappings" in again.stdout
    assert " 1 copied" in again.stdout
    assert "1233 were already there" in again.stdout
    merged = ChatRecord((*newer_here.branches, *MANY[second].branches[1:]))
    assert dict(there.entries()) == {**MANY, first: newer_there, second: merged}
    overwritten = transfer(file_store, "--from", "file", "--to", redis_url, "--overwrite")
    assert " 2 copied" in overwritten.stdout
    assert there.get(first) == MANY[first]
    assert there.get(second) == newer_here
    there.close()


@pytest.mark.parametrize("way", ["into Redis", "into the file"])
def test_the_branches_of_a_chat_on_both_sides_are_merged(
    tmp_path: Path, redis_url: str, way: str
) -> None:
    key = '["-","tiny","anna","chat"]'
    both, only = ConversationRecord("both", 1, 30, "s"), ConversationRecord("only there", 1, 20)
    of_file = JsonFileStore(tmp_path / "data", **OPTIONS)
    of_redis = in_redis(redis_url)
    source, target = (of_file, of_redis) if way == "into Redis" else (of_redis, of_file)
    source.adopt({key: ChatRecord((both, ConversationRecord("from", 1, 10, "", "reason", "sys")))})
    target.adopt({key: ChatRecord((only, ConversationRecord("both", 1, 15, "t")))})
    of_file.close()
    places = ("file", redis_url) if way == "into Redis" else (redis_url, "file")
    for copied in (1, 0):
        done = transfer(tmp_path, "--from", places[0], "--to", places[1])
        assert (done.returncode, done.stderr) == (0, "")
        assert f": {copied} copied to" in done.stdout
        assert target.get(key) == ChatRecord(
            (both, only, ConversationRecord("from", 1, 10, "", "reason", "sys"))
        )
        assert conversations_of(source.get(key)) == ["both", "from"]
    assert [target.owners(branch) for branch in ("both", "only there", "from")] == [[key]] * 3
    target.put(key, "later", Update(""))
    again = transfer(tmp_path, "--from", places[0], "--to", places[1], "--overwrite")
    assert ": 1 copied to" in again.stdout
    assert conversations_of(target.get(key)) == ["both", "from"]
    assert target.owners("later") == []
    for store in (of_file, of_redis):
        store.close()


def test_a_file_of_an_earlier_release_is_copied_with_one_branch_for_each_chat(
    tmp_path: Path, redis_url: str
) -> None:
    old = {"dify_conversation_id": "c1", "created_at": 1.5, "last_used": 2}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/conversation_mappings.json").write_text(
        json.dumps({"a": old, "b": old | {"heard": "h"}, "c": old | {"history_digest": "h"}})
    )
    assert transfer(tmp_path, "--from", "file", "--to", redis_url).returncode == 0
    store = in_redis(redis_url)
    with_digest = one_branch("c1", 1, 2, "h")
    expected = {"a": one_branch("c1", 1, 2), "b": with_digest, "c": with_digest}
    assert dict(store.entries()) == expected
    store.close()


def test_the_settings_of_the_environment_and_the_env_file_count(
    file_store: Path, redis_url: str, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        client.config_set("requirepass", "pass-secret")
    try:
        address = redis_url.replace("redis://", "redis://:pass-secret@")
        (file_store / ".env").write_text(f'CONVERSATION_STORE="{address}"\nDATA_DIR=elsewhere\n')
        done = transfer(file_store, "--from", "file", "--to", "setting", DATA_DIR="data")
        assert done.returncode == 0
        assert "1234 copied" in done.stdout
        assert "pass-secret" not in done.stdout + done.stderr
        back = transfer(file_store, "--from", "setting", "--to", "file")
        assert "1234 copied" in back.stdout
        assert (file_store / "elsewhere").is_dir()
    finally:
        with redis.Redis(port=redis_server.port, password="pass-secret") as client:
            client.config_set("requirepass", "")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("file", "redis://127.0.0.1:1/0", "cannot be used"),
        ("redis://127.0.0.1:1", "file", "cannot be used"),
        ("file", "file", "both the source and the target"),
        ("file", "setting", "both the source and the target"),
        ("file", "mysql://secret", "must be"),
    ],
)
def test_what_cannot_be_done_is_refused(
    file_store: Path, source: str, target: str, message: str
) -> None:
    before = (file_store / "data/conversation_mappings.json").read_bytes()
    refused = transfer(file_store, "--from", source, "--to", target)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert refused.stdout == ""
    assert "secret" not in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (file_store / "data/conversation_mappings.json").read_bytes() == before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, redis_url: str) -> None:
    refused = transfer(tmp_path, "--from", "file", "--to", redis_url, DATA_DIR="nowhere")
    assert refused.returncode == 1
    assert "There is no folder nowhere" in refused.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_full_redis_is_reported_with_what_was_copied(file_store: Path) -> None:
    server = RedisServer()
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
    refused = transfer(file_store, "--from", "file", "--to", server.url)
    server.close()
    assert refused.returncode == 1
    assert "0 were copied before" in refused.stderr
    assert "OutOfMemory" in refused.stderr


def test_a_folder_that_cannot_be_written_is_reported(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    refused = transfer(tmp_path, "--from", redis_url, "--to", "file")
    assert refused.returncode == 1
    assert "Nothing was copied" in refused.stderr


def test_the_help_says_what_a_store_is(tmp_path: Path) -> None:
    told = transfer(tmp_path, "--help")
    assert told.returncode == 0
    for word in ("--from", "--to", "--overwrite", "file", "setting", "redis://", "example"):
        assert word in told.stdout
    assert transfer(tmp_path).returncode == 2
    assert str(ROOT) not in told.stdout


def test_it_is_found_under_its_earlier_name(tmp_path: Path) -> None:
    done = transfer(tmp_path, "--help", module="transfer")
    assert (done.returncode, "--from STORE --to STORE" in done.stdout) == (0, True)
