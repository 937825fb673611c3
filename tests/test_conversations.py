"""The conversation store: what it remembers, in which file, and what trouble does to it."""

import errno
import json
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from opendify.conversations import ChatRecord, ConversationRecord, JsonFileStore, Update
from opendify.conversations.store.compactor import Compactor
from opendify.conversations.store.records import (
    Entries,
    Patch,
    merge,
    parse_json,
    parse_patch,
    parse_record,
    to_json,
    to_line,
)
from opendify.conversations.store.snapshot import read_snapshot, write_snapshot
from tests.support.chats import (
    DAY,
    MOST_BRANCHES,
    Chats,
    Clock,
    chat_records,
    conversations_of,
    latest_of,
    one_branch,
)
from tests.support.fake_dify import FakeDify
from tests.support.profiles import examples
from tests.support.service import free_variables, running

FILE = "conversation_mappings.json"
JOURNAL = "conversation_mappings.*.jsonl"
UNKNOWN = Update("")
TEXTS = ("history_digest", "reason", "system_digest")


Opener = Callable[..., JsonFileStore]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slow_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper's thread does nothing during a test, so that the test says when it does."""
    monkeypatch.setattr(Compactor, "TICK_SECONDS", 3600.0)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for power failures, which no test can make, and takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def opened(folder: Path, clock: Clock, slow_keeper: None) -> Iterator[Opener]:
    """Makes stores on one folder; each is to the others like one of another process."""
    stores = []

    def make(**options: Any) -> JsonFileStore:
        defaults = {"clock": clock, "max_age_days": None, "max_entries": 100_000}
        stores.append(JsonFileStore(folder, **(defaults | options)))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Opener) -> JsonFileStore:
    return opened()


def entry(conversation_id: str, created_at: float = 1, last_used: float = 1) -> dict[str, Any]:
    return {
        "dify_conversation_id": conversation_id,
        "created_at": created_at,
        "last_used": last_used,
    }


def in_file(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
    return read


def journals(folder: Path) -> list[Path]:
    return sorted(folder.glob(JOURNAL))


# The file that people read


@pytest.mark.parametrize("count", [0, 1, 3, 499, 500, 501, 1001])
def test_the_file_is_the_one_that_scripts_know(
    store: JsonFileStore, folder: Path, clock: Clock, count: int
) -> None:
    expected = {}
    now = int(clock.now)
    store.put("to be forgotten", "c", UNKNOWN)
    store.forget("to be forgotten", "c")
    for number in range(count):
        key = f'["-","模型","user \\"{number}\\"","chat"]'
        store.put(key, f"c-{number}", UNKNOWN)
        expected[key] = entry(f"c-{number}", now, now)
    store.close()
    text = (folder / FILE).read_text("utf-8")
    assert text == json.dumps(expected, indent=2, ensure_ascii=False) + "\n"


def test_what_is_unknown_of_a_branch_is_not_in_the_file(
    store: JsonFileStore, folder: Path, clock: Clock
) -> None:
    now = int(clock.now)
    store.put("a", "c1", Update('digest "1" 二', "first-turn", "system"))
    store.put("b", "c2", Update("", "first-turn"))
    store.close()
    members = {"history_digest": 'digest "1" 二', "reason": "first-turn", "system_digest": "system"}
    assert in_file(folder) == {
        "a": entry("c1", now, now) | members,
        "b": entry("c2", now, now) | {"reason": "first-turn"},
    }
    text = (folder / FILE).read_text("utf-8")
    assert text == json.dumps(in_file(folder), indent=2, ensure_ascii=False) + "\n"


def test_the_branch_used_last_is_the_entry_and_the_others_follow_on_a_line_each(
    store: JsonFileStore, folder: Path, clock: Clock
) -> None:
    store.put("a", "c1", Update("一", "first-turn"))
    clock.now += 1
    store.put("a", "c2", Update("two", "other-history", "system"))
    clock.now += 1
    store.put("a", "c3", UNKNOWN)
    store.put("b", "c4", UNKNOWN)
    store.close()
    assert (
        (folder / FILE).read_text("utf-8")
        == """{
  "a": {
    "dify_conversation_id": "c3",
    "created_at": 1700000002,
    "last_used": 1700000002,
    "branches": [
      {"dify_conversation_id": "c2", "created_at": 1700000001, "last_used": 1700000001, \
"history_digest": "two", "reason": "other-history", "system_digest": "system"},
      {"dify_conversation_id": "c1", "created_at": 1700000000, "last_used": 1700000000, \
"history_digest": "一", "reason": "first-turn"}
    ]
  },
  "b": {
    "dify_conversation_id": "c4",
    "created_at": 1700000002,
    "last_used": 1700000002
  }
}
"""
    )


def test_all_branches_come_back_from_the_journal_and_from_the_file(
    opened: Opener, folder: Path, clock: Clock
) -> None:
    writer = opened()
    for number in range(MOST_BRANCHES):
        clock.now += 1
        writer.put("a", f"c{number}", Update(f"digest {number}", f"reason {number}", "system"))
    assert writer.update_if("a", "c3", "digest 3", Update("new", "whole-history"))
    writer.forget("a", "c5")
    chat = writer.get("a")
    assert conversations_of(chat) == ["c3", "c7", "c6", "c4", "c2", "c1", "c0"]
    assert not (folder / FILE).exists()
    assert opened().get("a") == chat
    writer.close()
    assert (folder / FILE).exists()
    assert opened().get("a") == chat
    by_hand = json.dumps(in_file(folder), indent=4)
    (folder / FILE).write_text(by_hand)
    assert opened().get("a") == chat


def test_closing_twice_or_unused_does_no_harm(opened: Opener, folder: Path) -> None:
    unused, used = opened(), opened()
    unused.close()
    assert not folder.exists()
    used.put("a", "c1", UNKNOWN)
    used.close()
    used.close()
    assert used.get("a") is not None


def test_a_store_that_only_read_writes_nothing(opened: Opener, folder: Path) -> None:
    folder.mkdir()
    (folder / FILE).write_text('{"a": {"dify_conversation_id":"c1","created_at":1,"last_used":1}}')
    before = (folder / FILE).stat()
    store = opened()
    assert store.get("a") == one_branch("c1", 1, 1)
    store.close()
    assert (folder / FILE).stat() == before or (folder / FILE).stat().st_ino == before.st_ino
    assert journals(folder) == []


def test_folder_and_files_are_their_owners_alone(store: JsonFileStore, folder: Path) -> None:
    store.put("a", "c1", UNKNOWN)
    store.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_an_open_folder_of_ours_is_closed_to_others(store: JsonFileStore, folder: Path) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    store.get("a")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_for_everybody_is_left_as_it_is(store: JsonFileStore, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o1777)
    store.put("a", "c1", UNKNOWN)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_left_as_it_is(store: JsonFileStore, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    os.chown(folder, 4321, 4321)
    store.put("a", "c1", UNKNOWN)
    store.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_service_warns_once_of_a_folder_of_somebody_else(dify: FakeDify, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 4321, 4321)
    variables = free_variables(dify.base, GUNICORN_WORKERS="2", GUNICORN_THREADS="4")
    with running(tmp_path, variables) as service:
        for _ in range(6):
            httpx.get(f"{service.url}/readyz", trust_env=False)
        assert service.output().count("belongs to user 4321") == 1


# Files of others, and damaged ones


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (entry("c", 1, 2), one_branch("c", 1, 2)),
        (entry("c", 1.9, 2.1), one_branch("c", 1, 2)),
        (entry("c", -1, 0), one_branch("c", -1, 0)),
        (entry("c", 10**400, 0), one_branch("c", 10**400, 0)),
        (entry("c") | {"history_digest": "h"}, one_branch("c", 1, 1, "h")),
        (entry("c") | {"heard": "h"}, one_branch("c", 1, 1, "h")),
        (entry("c") | {"history_digest": "h", "heard": "x"}, one_branch("c", 1, 1, "h")),
        (entry("c") | {"reason": "r"}, one_branch("c", 1, 1, "", "r")),
        (entry("c") | {"system_digest": "s"}, one_branch("c", 1, 1, "", "", "s")),
        (entry("c") | {"user": "unknown to us"}, one_branch("c", 1, 1)),
        (entry("c") | {"branches": []}, one_branch("c", 1, 1)),
    ],
)
def test_an_entry_of_any_release_is_a_chat_with_one_branch(raw: Any, expected: ChatRecord) -> None:
    assert parse_record(raw) == expected


def branches_of(raw: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    return raw | {"branches": list(others)}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(
            branches_of(entry("c1"), entry("c2", 3, 9), entry("c3", 2.5, 1)),
            [
                ConversationRecord("c1", 1, 1),
                ConversationRecord("c2", 3, 9),
                ConversationRecord("c3", 2, 1),
            ],
            id="in the order of the file",
        ),
        pytest.param(
            branches_of(entry("c1"), entry("c2") | {"heard": "h", "reason": "r", "x": 1}),
            [ConversationRecord("c1", 1, 1), ConversationRecord("c2", 1, 1, "h", "r")],
            id="with the members that an entry has",
        ),
        pytest.param(
            branches_of(entry("c1", 5, 5), entry("c1", 2, 2), entry("c2")),
            [ConversationRecord("c1", 5, 5), ConversationRecord("c2", 1, 1)],
            id="the entry itself counts",
        ),
        pytest.param(
            branches_of(entry("c1"), branches_of(entry("c2"), entry("c3"))),
            [ConversationRecord("c1", 1, 1), ConversationRecord("c2", 1, 1)],
            id="branches have none of their own",
        ),
        pytest.param(
            branches_of(entry("c0"), *(entry(f"c{number}") for number in range(1, 20))),
            [ConversationRecord(f"c{number}", 1, 1) for number in range(MOST_BRANCHES)],
            id="as many as a chat may have",
        ),
    ],
)
def test_the_branches_of_an_entry_are_read(raw: Any, expected: list[ConversationRecord]) -> None:
    assert parse_record(raw) == ChatRecord(tuple(expected))


def test_of_two_branches_of_one_conversation_the_first_counts() -> None:
    raw = branches_of(entry("c1"), entry("c2", 5, 5), entry("c3"), entry("c2", 2, 2))
    chat = parse_record(raw)
    assert sorted(conversations_of(chat)) == ["c1", "c2", "c3"]
    assert chat.branch("c2") == ConversationRecord("c2", 5, 5)


WRONG_ENTRIES = [
    None,
    "c1",
    [],
    {},
    entry(""),
    {"dify_conversation_id": "c", "created_at": 1},
    entry("c") | {"dify_conversation_id": 7},
    entry("c") | {"created_at": "2024-01-01"},
    entry("c") | {"created_at": True},
    entry("c") | {"last_used": None},
    entry("c") | {"last_used": float("nan")},
    entry("c") | {"last_used": float("inf")},
    entry("c") | {"history_digest": ["no text"]},
    entry("c") | {"heard": ["no text"]},
    entry("c") | {"reason": 1},
    entry("c") | {"system_digest": None},
    entry("c") | {"branches": None},
    entry("c") | {"branches": entry("c2")},
    entry("c") | {"branches": ["c2"]},
    branches_of(entry("c"), entry("c2"), {}),
    branches_of(entry("c"), entry("") | {"history_digest": "h"}),
    branches_of(entry("c"), entry("c2") | {"last_used": "now"}),
    branches_of(entry("c"), entry("c2") | {"reason": ["no text"]}),
    branches_of(entry("c"), entry("c") | {"created_at": None}),
]


@pytest.mark.parametrize("raw", WRONG_ENTRIES, ids=repr)
def test_what_is_not_an_entry_is_refused(raw: Any) -> None:
    with pytest.raises(ValueError):
        parse_record(raw)


def test_wrong_entries_are_left_out_with_one_warning(
    store: JsonFileStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(mode=0o700)
    content = {f"wrong {n}": raw for n, raw in enumerate(WRONG_ENTRIES)} | {"right": entry("c")}
    (folder / FILE).write_text(json.dumps(content))
    assert store.get("right") == one_branch("c", 1, 1)
    assert store.stats().count == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{len(WRONG_ENTRIES)} entries" in caplog.text
    assert "wrong 0" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_written_by_hand_is_read_and_taken_over(
    opened: Opener, folder: Path, clock: Clock, encoding: str
) -> None:
    folder.mkdir()
    by_hand = {
        "聊天": entry("c1", 1.5, 2.5),
        "of an earlier release": entry("c3") | {"heard": "h"},
    }
    (folder / FILE).write_text(json.dumps(by_hand, ensure_ascii=False), encoding)
    store = opened()
    assert store.get("聊天") == one_branch("c1", 1, 2)
    assert store.get("of an earlier release") == one_branch("c3", 1, 1, "h")
    store.put("new", "c2", UNKNOWN)
    store.close()
    now = int(clock.now)
    assert in_file(folder) == {
        "聊天": entry("c1", 1, 2),
        "of an earlier release": entry("c3") | {"history_digest": "h"},
        "new": entry("c2", now, now),
    }


def test_an_old_chat_gets_branches_and_an_earlier_release_reads_the_one_used_last(
    opened: Opener, folder: Path, clock: Clock
) -> None:
    """Earlier releases read these members, and no others."""
    earlier = {"dify_conversation_id", "created_at", "last_used", "history_digest"}
    folder.mkdir()
    (folder / FILE).write_text(json.dumps({"a": entry("c1") | {"heard": "old"}}))
    now = int(clock.now)
    store = opened()
    store.put("a", "c2", Update("new", "other-history", "system"))
    (line,) = journals(folder)[0].read_bytes().splitlines()
    store.close()
    for written in (json.loads(line), in_file(folder)):
        read = {name: value for name, value in written["a"].items() if name in earlier}
        assert read == entry("c2", now, now) | {"history_digest": "new"}
        assert written["a"]["branches"] == [entry("c1") | {"history_digest": "old"}]


def test_a_chat_that_an_earlier_release_wrote_over_has_one_branch(
    opened: Opener, folder: Path
) -> None:
    """While both run on one folder, or after a release was taken back."""
    store = opened()
    store.put("a", "c1", UNKNOWN)
    store.put("a", "c2", UNKNOWN)
    assert store.owners("c1") == ["a"]
    with journals(folder)[0].open("ab") as journal:
        journal.write(json.dumps({"a": entry("c2", 5, 6)}).encode() + b"\n")
    assert store.get("a") == opened().get("a") == one_branch("c2", 5, 6)
    assert (store.owners("c1"), store.owners("c2")) == ([], ["a"])


@pytest.mark.parametrize("content", [b"", b" \n"])
def test_an_empty_file_is_no_mappings(
    store: JsonFileStore, folder: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(mode=0o700)
    (folder / FILE).write_bytes(content)
    assert store.get("a") is None
    assert caplog.records == []


CORRUPT = [b"{", b"[]", b"null", b'"text"', b"\xff\xfe\xff", b'{"a": 1} rest', b"[" * 100_000]


@pytest.mark.parametrize("content", CORRUPT, ids=lambda content: repr(content[:12]))
def test_a_corrupt_file_is_kept_aside_and_the_journal_still_counts(
    opened: Opener,
    folder: Path,
    clock: Clock,
    content: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer = opened()
    writer.put("a", "c1", UNKNOWN)
    (folder / FILE).write_bytes(content)
    reader = opened()
    assert reader.get("a") == one_branch("c1", int(clock.now), int(clock.now))
    aside = folder / f"{FILE}.corrupt-{int(clock.now)}"
    assert aside.read_bytes() == content
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert str(aside) in caplog.text
    reader.close()
    assert set(in_file(folder)) == {"a"}


def test_a_file_that_was_replaced_meanwhile_is_not_put_aside(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading a corrupt file and renaming it, another process may write a good one."""
    folder.mkdir(mode=0o700)
    (folder / FILE).write_text("{")
    good = folder / "good"
    good.write_text(json.dumps({"a": entry("c1")}))
    ordinary = os.open

    def replace_first(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith(".fold.lock") and good.exists():
            good.replace(folder / FILE)
        return ordinary(path, *rest, **more)

    monkeypatch.setattr(os, "open", replace_first)
    assert opened().get("a") == one_branch("c1", 1, 1)
    assert list(folder.glob("*.corrupt-*")) == []


def test_a_key_that_utf8_cannot_hold_does_not_spoil_the_file(
    store: JsonFileStore, folder: Path
) -> None:
    half = "half \ud83d of a pair"
    store.put(half, "c1", Update(half, half, half))
    store.put(half, half, UNKNOWN)
    store.put("a", "c2", UNKNOWN)
    chat = store.get(half)
    assert conversations_of(chat) == [half, "c1"]
    store.close()
    assert set(in_file(folder)) == {half, "a"}
    assert store.get(half) == chat


# The journal


times = st.integers(-(2**40), 2**40)
chats = chat_records(
    st.builds(
        ConversationRecord, st.text(min_size=1), times, times, st.text(), st.text(), st.text()
    )
)


@given(st.dictionaries(st.text(), st.none() | chats))
def test_a_line_says_what_it_was_given(patch: dict[str, ChatRecord | None]) -> None:
    line = to_line(patch)
    assert line.count(b"\n") == 1
    assert parse_patch(line) == patch
    assert line.decode() == json.dumps(json.loads(line), separators=(",", ":")) + "\n"


@given(chats)
def test_a_chat_comes_back_from_json(chat: ChatRecord) -> None:
    assert parse_json(to_json(chat)) == chat
    assert to_json(chat).decode() == json.dumps(json.loads(to_json(chat)), separators=(",", ":"))


@given(st.dictionaries(st.text(), chats))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(50))
def test_any_chats_come_back_from_the_file(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, ChatRecord]
) -> None:
    path = tmp_path_factory.mktemp("snapshot") / FILE
    write_snapshot(path, entries)
    assert read_snapshot(path) == entries


def test_every_change_is_in_the_journal_at_once(store: JsonFileStore, folder: Path) -> None:
    store.put("a", "c1", UNKNOWN)
    store.move("a", "b", "c1", UNKNOWN)
    store.forget("b", "c1")
    assert len(journals(folder)[0].read_bytes().splitlines()) == 3
    assert not (folder / FILE).exists()


@pytest.fixture
def three_lines(opened: Opener, folder: Path) -> tuple[bytes, list[dict[str, str]]]:
    """A journal, and what is known after each of its lines."""
    writer = opened()
    known: list[dict[str, str]] = [{}]
    for step in (
        lambda: writer.put("a", "c1", UNKNOWN),
        lambda: writer.move("a", "b", "c1", Update("moved")),
        lambda: writer.put("a", "c2", UNKNOWN),
    ):
        step()
        known.append(latest_of(writer))
    return journals(folder)[0].read_bytes(), known


def test_a_journal_cut_anywhere_says_what_its_whole_lines_say(
    three_lines: tuple[bytes, list[dict[str, str]]],
    tmp_path: Path,
    clock: Clock,
) -> None:
    whole, known = three_lines
    for length in range(len(whole) + 1):
        folder = tmp_path / f"cut-{length}"
        folder.mkdir(mode=0o700)
        (folder / "conversation_mappings.00000001.jsonl").write_bytes(whole[:length])
        reader, writer = (
            JsonFileStore(folder, clock=clock, max_age_days=None, max_entries=9) for _ in range(2)
        )
        lines = whole[:length].count(b"\n")
        assert latest_of(reader) == known[lines]
        writer.put("new", "c3", UNKNOWN)
        # A line that lacks only its newline gets it from the next writer, and is then said.
        missing_only_its_newline = whole[length : length + 1] == b"\n"
        expected = known[lines + missing_only_its_newline] | {"new": "c3"}
        assert latest_of(writer) == latest_of(reader) == expected
        reader.close()
        writer.close()
        assert {
            key: raw["dify_conversation_id"] for key, raw in in_file(folder).items()
        } == expected


@pytest.mark.parametrize("damage", [b"\0" * 50 + b"\n", b"not JSON\n", b"[1]\n", b'{"a": 1}\n'])
def test_a_damaged_line_is_skipped_and_logged(
    opened: Opener, folder: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    opened().put("before", "c1", UNKNOWN)
    with journals(folder)[0].open("ab") as journal:
        journal.write(damage)
    opened().put("after", "c2", UNKNOWN)
    reader = opened()
    assert latest_of(reader) == {"before": "c1", "after": "c2"}
    assert "skipping an incomplete line" in caplog.text


def test_a_journal_before_a_gap_counts_no_more(opened: Opener, folder: Path, clock: Clock) -> None:
    """A clean-up that lost power may leave an old journal behind while later ones are gone."""
    folder.mkdir(mode=0o700)
    (folder / FILE).write_text(json.dumps({"a": entry("c2")}))
    old, new = {"a": one_branch("c1")}, {"b": one_branch("c3")}
    (folder / "conversation_mappings.00000005.jsonl").write_bytes(to_line(old))
    (folder / "conversation_mappings.00000007.jsonl").write_bytes(to_line(new))
    store = opened()
    assert latest_of(store) == {"a": "c2", "b": "c3"}
    store.put("c", "c4", UNKNOWN)
    store.close()
    assert set(in_file(folder)) == {"a", "b", "c"}
    assert [path.name for path in journals(folder)] == ["conversation_mappings.00000008.jsonl"]


# Several processes on one folder


def test_all_see_what_one_wrote(opened: Opener) -> None:
    one, other = opened(), opened()
    one.put("a", "c1", UNKNOWN)
    assert latest_of(other) == {"a": "c1"}
    other.move("a", "b", "c1", UNKNOWN)
    assert latest_of(one) == {"b": "c1"}
    one.forget("b", "c1")
    assert latest_of(other) == {}


def test_folds_by_others_go_unnoticed(opened: Opener) -> None:
    idle, busy = opened(), opened()
    assert idle.get("nothing yet") is None
    for number in range(4):
        busy.put(f"chat {number}", "c", UNKNOWN)
        busy.close()
    assert idle.stats().count == 4
    idle.put("mine", "c", UNKNOWN)
    busy.put("last", "c", UNKNOWN)
    busy.close()
    assert idle.stats().count == 6
    assert latest_of(opened()) == latest_of(idle)


def test_a_folder_that_is_emptied_under_a_running_process_is_filled_anew(
    opened: Opener, folder: Path
) -> None:
    store = opened()
    store.put("a", "c1", UNKNOWN)
    for path in folder.iterdir():
        path.unlink()
    store.put("b", "c2", UNKNOWN)
    assert latest_of(opened()) == {"b": "c2"}


def test_a_journal_that_was_cut_short_by_hand_is_read_anew(opened: Opener, folder: Path) -> None:
    store = opened()
    store.put("a", "c1", UNKNOWN)
    journals(folder)[0].write_bytes(b"")
    assert latest_of(store) == {}
    store.put("b", "c2", UNKNOWN)
    assert latest_of(store) == latest_of(opened()) == {"b": "c2"}


# When the file is brought up to date


def keeper_of(store: JsonFileStore) -> Compactor:
    return store._compactor


def test_the_file_holds_everything_when_it_has_settled(opened: Opener, folder: Path) -> None:
    writer, survivor = opened(), opened()
    survivor.get("a")
    writer.put("a", "c1", UNKNOWN)
    for _ in range(5):
        keeper_of(survivor).tick()
    writer.put("b", "c2", UNKNOWN)
    for _ in range(5):
        keeper_of(survivor).tick()
    assert not (folder / FILE).exists()
    keeper_of(survivor).tick()
    assert set(in_file(folder)) == {"a", "b"}
    assert [path.stat().st_size for path in journals(folder)] == [0]


def test_a_settled_file_is_not_written_again(opened: Opener, folder: Path) -> None:
    store = opened()
    store.put("a", "c1", UNKNOWN)
    for _ in range(6):
        keeper_of(store).tick()
    settled = (folder / FILE).stat()
    for _ in range(20):
        keeper_of(store).tick()
    store.close()
    assert (folder / FILE).stat() == settled


def test_the_thread_brings_the_file_up_to_date_by_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Compactor, "TICK_SECONDS", 0.01)
    store = JsonFileStore(folder, clock=time.time, max_age_days=None, max_entries=10)
    store.put("a", "c1", UNKNOWN)
    deadline = time.monotonic() + 20
    while not (folder / FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(in_file(folder)) == {"a"}
    store.close()


def test_a_large_store_is_written_when_its_journal_outgrew_the_file(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Compactor, "MIN_COMPACT_BYTES", 1000)
    monkeypatch.setattr("opendify.conversations.store.compactor._SMALL_MAP", 10)
    store = opened()
    for number in range(20):
        store.put(f"chat {number}", "c", UNKNOWN)
    keeper_of(store).tick()
    assert len(in_file(folder)) == 20
    store.put("one more", "c", UNKNOWN)
    for _ in range(10):
        keeper_of(store).tick()
    assert len(in_file(folder)) == 20
    store.close()
    assert len(in_file(folder)) == 21


def test_old_mappings_go_when_the_file_is_written(
    opened: Opener, folder: Path, clock: Clock
) -> None:
    store, other = opened(max_age_days=7), opened(max_age_days=7)
    store.put("old", "c1", UNKNOWN)
    store.put("used", "c2", UNKNOWN)
    clock.now += 7 * DAY
    other.put("used", "c2", UNKNOWN)
    clock.now += 1
    assert latest_of(other) == {"old": "c1", "used": "c2"}
    store.close()
    assert set(in_file(folder)) == {"used"}
    assert latest_of(other) == {"used": "c2"}


def test_the_least_recently_used_go_when_there_are_too_many(
    opened: Opener, folder: Path, clock: Clock
) -> None:
    store, other = opened(max_entries=10), opened(max_entries=10)
    for number in range(15):
        clock.now += 1
        store.put(f"chat {number}", "c", UNKNOWN)
    clock.now += 4000
    other.put("chat 0", "c", UNKNOWN)
    keeper_of(other).tick()
    expected = {"chat 0"} | {f"chat {number}" for number in range(6, 15)}
    assert set(latest_of(store)) == expected
    store.close()
    assert set(in_file(folder)) == expected


def test_memory_stays_bounded_while_the_disk_fails(opened: Opener, folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    store = opened(max_entries=10)
    for number in range(1000):
        store.put(f"chat {number}", "c", UNKNOWN)
        if number % 10 == 0:
            keeper_of(store).tick()
    keeper_of(store).tick()
    assert store.stats().count <= 13
    assert store.get("chat 999") is not None
    assert len(store._map._state.unwritten) <= 10


# Trouble with the disk


def test_a_folder_that_cannot_be_made_costs_no_answer(
    opened: Opener, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file where the folder should be")
    store = opened()
    for number in range(3):
        store.put(f"chat {number}", "c", UNKNOWN)
        assert store.move(f"chat {number}", f"moved {number}", "c", UNKNOWN)
        keeper_of(store).tick()
    store.put("moved 0", "c2", UNKNOWN)
    assert set(latest_of(store)) == {"moved 0", "moved 1", "moved 2"}
    assert store.update_if("moved 0", "c", "", Update("later"))
    assert not store.update_if("moved 0", "c", "", Update("too late"))
    assert len(caplog.records) == 1
    assert str(folder) in caplog.text
    folder.unlink()
    for _ in range(5):
        keeper_of(store).tick()
    assert set(latest_of(opened())) == {"moved 0", "moved 1", "moved 2"}
    assert conversations_of(opened().get("moved 0")) == ["c", "c2"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_could_not_be_written_stays_on_top_of_what_others_write(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = opened(), opened()
    store.put("a", "c1", UNKNOWN)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", no_space)
        store.put("a", "c2", UNKNOWN)
        for _ in range(8):
            keeper_of(store).tick()
    other.put("a", "c3", UNKNOWN)
    other.put("b", "c4", UNKNOWN)
    assert latest_of(store) == {"a": "c2", "b": "c4"}
    other.close()
    assert latest_of(store) == {"a": "c2", "b": "c4"}
    for _ in range(13):
        keeper_of(store).tick()
    assert latest_of(other) == {"a": "c2", "b": "c4"}
    assert in_file(folder)["a"]["dify_conversation_id"] == "c2"


def test_closing_is_a_last_chance_to_write(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", no_space)
        store.put("a", "c1", UNKNOWN)
    store.close()
    assert set(in_file(folder)) == {"a"}


def test_each_new_problem_is_logged_once(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened()
    for trouble in range(3):
        store.put(f"chat {trouble}", "c", UNKNOWN)
        caplog.clear()
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", no_space)
            store.put("a", f"c{trouble}", UNKNOWN)
            store.put("b", f"c{trouble}", UNKNOWN)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", no_space)
            for _ in range(5):
                keeper_of(store).tick()
            store.close()
            store.close()
        told = [(record.levelname, record.getMessage()) for record in caplog.records]
        assert [level for level, _ in told] == ["ERROR", "WARNING", "ERROR"]
        assert "cannot be saved" in told[0][1]
        assert "cannot be updated" in told[2][1]
        store.get("a")
        store.close()
    assert set(in_file(folder)) == {"chat 0", "chat 1", "chat 2", "a", "b"}


def test_a_file_that_may_not_be_read_is_not_overwritten(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(mode=0o700)
    (folder / FILE).write_text(json.dumps({"a": entry("c1")}))
    ordinary = Path.open

    def refuse(path: Path, *rest: Any, **more: Any) -> Any:
        if path.name == FILE:
            raise PermissionError(errno.EACCES, "not yours", str(path))
        return ordinary(path, *rest, **more)

    store = opened()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        store.put("b", "c2", UNKNOWN)
        assert latest_of(store) == {"b": "c2"}
        store.close()
    assert set(in_file(folder)) == {"a"}
    assert latest_of(store) == {"b": "c2"}
    for _ in range(5):
        keeper_of(store).tick()
    assert latest_of(store) == {"a": "c1", "b": "c2"}


def test_a_paused_process_that_holds_the_lock_delays_no_other(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("opendify.conversations.store.journaled_map._LOCK_TIMEOUT", 0.05)
    store, other = opened(), opened()
    store.put("a", "c1", UNKNOWN)
    with other._map._folder.journal_lock.acquire(0):
        for number in range(100):
            store.put(f"chat {number}", "c", UNKNOWN)
        assert store.stats().count == 101
        before = journals(folder)
        store.close()
        assert journals(folder) == before
        assert not (folder / FILE).exists()
    assert len(caplog.records) == 1
    for _ in range(5):
        keeper_of(store).tick()
    assert other.stats().count == 101


def test_a_change_begun_without_the_lock_is_not_written_without_it(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the disk is tried again, by the keeper, before the change is complete."""
    monkeypatch.setattr("opendify.conversations.store.journaled_map._LOCK_TIMEOUT", 0.0)
    store, other = opened(), opened()
    store.put("a", "c1", UNKNOWN)
    size = journals(folder)[0].stat().st_size
    mending = threading.Thread(target=store._map.retry_writes)

    def plan(_: Entries) -> Patch:
        mending.start()
        mending.join(0.2)
        return {"c": one_branch("c3")}

    with other._map._folder.journal_lock.acquire(0):
        store.put("b", "c2", UNKNOWN)
        store._map.change(plan)
        mending.join()
        assert journals(folder)[0].stat().st_size == size
    store.close()
    assert set(in_file(folder)) == {"a", "b", "c"}


def test_readers_do_not_wait_for_a_writer(opened: Opener) -> None:
    store, other = opened(), opened()
    store.put("a", "c1", UNKNOWN)
    with other._map._folder.journal_lock.acquire(0):
        writer = threading.Thread(target=store.put, args=("b", "c2", UNKNOWN))
        writer.start()
        assert store.get("a") is not None
        assert writer.is_alive()
    writer.join()
    assert other.get("b") is not None


# All of it together, against a dict


def entry_of(chat: ChatRecord) -> dict[str, Any]:
    latest, *others = (
        entry(branch.conversation_id, branch.created_at, branch.last_used)
        | {name: text for name in TEXTS if (text := getattr(branch, name))}
        for branch in chat.branches
    )
    return latest | ({"branches": others} if others else {})


class ChatsInFiles(Chats):
    """Processes on one folder, with folds, kills and torn lines as well."""

    def prepare(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name) / "data"

    def open(self) -> JsonFileStore:
        return JsonFileStore(self.folder, clock=self.clock, max_age_days=None, max_entries=1000)

    def teardown(self) -> None:
        super().teardown()
        if self.model:
            expected = {key: entry_of(chat) for key, chat in self.model.items()}
            assert in_file(self.folder) == expected
        self.place.cleanup()

    @rule(who=Chats.whose)
    def settle(self, who: int) -> None:
        for _ in range(7):
            self.stores[who]._compactor.tick()

    @rule(who=Chats.whose)
    def kill(self, who: int) -> None:
        self.stores[who]._compactor.stop()
        self.stores[who]._map.close_unlocked()
        self.stores[who] = self.open()

    @precondition(lambda self: bool(journals(self.folder)))
    @rule(torn=st.sampled_from([b"{", b'{"a":{"dify_conv', b'{"a":null', b"\0\0\0", b"\xff"]))
    def killed_while_writing(self, torn: bytes) -> None:
        with journals(self.folder)[-1].open("ab") as journal:
            journal.write(torn)


@pytest.mark.usefixtures("slow_keeper")
class TestChatsInFiles(ChatsInFiles.TestCase):
    settings = settings(max_examples=examples(40), stateful_step_count=30)


# --- branches of one chat that several write -----------------------------------------------------


def test_merging_keeps_the_order_of_the_newcomer_within_a_second() -> None:
    stored = ChatRecord((ConversationRecord("c1", 5, 5),))
    newer = ChatRecord((ConversationRecord("c2", 5, 5), ConversationRecord("c1", 5, 5)))
    assert merge(stored, newer) == newer


def test_adopting_what_is_there_changes_nothing_after_the_clock_went_back(tmp_path: Path) -> None:
    clock = Clock()
    store = JsonFileStore(tmp_path / "data", clock=clock, max_age_days=None, max_entries=9)
    store.put("a", "c1", Update(""))
    clock.now -= 10
    store.put("a", "c2", Update(""))
    same = store.get("a")
    assert same is not None
    assert store.adopt({"a": same}) == 0
    store.close()


def test_the_first_of_equal_branches_in_an_edited_file_counts() -> None:
    branches = [entry("c2"), entry("c3"), entry("c2")]
    assert conversations_of(parse_record(entry("c1") | {"branches": branches})) == [
        "c1",
        "c2",
        "c3",
    ]


def test_branches_that_others_began_while_the_disk_failed_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Compactor, "TICK_SECONDS", 3600.0)
    clock = Clock()
    options: dict[str, Any] = {"clock": clock, "max_age_days": None, "max_entries": 9}
    store, other = (JsonFileStore(tmp_path / "data", **options) for _ in range(2))
    store.put("a", "c1", Update(""))

    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as failing:
        failing.setattr(os, "write", no_space)
        store.put("a", "c2", Update(""))
    clock.now += 5
    other.put("a", "c3", Update("of another process"))
    for _ in range(6):
        store._compactor.tick()
    assert sorted(conversations_of(other.get("a"))) == ["c1", "c2", "c3"]
    store.close()
    other.close()
