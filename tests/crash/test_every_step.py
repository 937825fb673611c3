"""The process dies, or the disk fails, at each single system call of a short history."""

import errno
import io
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opendify.conversations import JsonFileStore, Update
from opendify.conversations.store.compactor import Compactor
from tests.support.chats import conversations_of

CALLS = [
    "open", "write", "pread", "replace", "rename", "unlink", "listdir",
    "mkdir", "chmod", "stat", "fstat", "access",
]  # fmt: skip

UNKNOWN = Update("")

Known = dict[str, list[str]]
Hook = Callable[[str, tuple[Any, ...]], None]


@pytest.fixture(autouse=True)
def slow_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compactor, "TICK_SECONDS", 3600.0)
    monkeypatch.setattr("opendify.conversations.store.journaled_map._LOCK_TIMEOUT", 0.0)


class Kernel:
    """Stands before the system calls that a store makes, and lets a test act before each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: Hook | None = None
        self._inside = False
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        for name in ("fsync", "fdatasync"):  # no test can tell whether it was done, but its time
            monkeypatch.setattr(os, name, self._wrapped(name, lambda descriptor: None))
        monkeypatch.setattr(io, "open", self._wrapped("io.open", io.open))

    def _wrapped(self, name: str, ordinary: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.before is not None and not self._inside:
                self._inside = True
                try:
                    self.before(name, arguments)
                finally:
                    self._inside = False
            return ordinary(*arguments, **named)

        return call


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def opened(folder: Path, sync: bool = False) -> JsonFileStore:
    return JsonFileStore(folder, clock=lambda: 1e9, max_age_days=1e6, max_entries=10**6, sync=sync)


def known_by(store: JsonFileStore) -> Known:
    return {key: conversations_of(chat) for key, chat in store.entries()}


def known_in(folder: Path) -> Known:
    store = opened(folder)
    try:
        return known_by(store)
    finally:
        store.close()


def history(store: JsonFileStore) -> Iterator[tuple[Callable[[], object], Known]]:
    """Steps, and what is known after each; closing folds, and the next step opens again."""
    long, one, two = "long " * 300, Update("one"), Update("two")
    known: Known = {}
    yield lambda: store.put("a", "c1", one), (known := known | {"a": ["c1"]})
    yield lambda: store.put("b", "c2", one), (known := known | {"b": ["c2"]})
    yield lambda: store.put("a", "c5", one), (known := known | {"a": ["c5", "c1"]})
    yield lambda: store.update_if("a", "c1", "one", two), (known := known | {"a": ["c1", "c5"]})
    yield store.close, known
    yield (
        lambda: store.move("a", "d", "c1", two),
        (known := known | {"a": ["c5"], "d": ["c1"]}),
    )
    yield lambda: store.put(long, "c3", one), (known := known | {long: ["c3"]})
    yield lambda: store.forget("a", "c5"), (known := {k: v for k, v in known.items() if k != "a"})
    yield store.close, known
    yield lambda: store.move("b", "d", "c2", two), (known := {long: ["c3"], "d": ["c2", "c1"]})
    yield lambda: store.remove_conversation("c2"), (known := known | {"d": ["c1"]})
    yield lambda: store.put("a", "c4", one), (known := known | {"a": ["c4"]})
    yield store.close, known


def test_whoever_is_killed_at_any_moment_leaves_all_that_was_said(
    tmp_path: Path, kernel: Kernel
) -> None:
    folder, before, photographs = tmp_path / "data", {}, []

    def photograph(name: str, arguments: tuple[Any, ...]) -> None:
        if not folder.exists():
            return
        copy = tmp_path / f"photograph-{len(photographs)}"
        shutil.copytree(folder, copy)
        photographs.append(copy)
        if name == "write":  # and once more, killed in the middle of it
            half = tmp_path / f"photograph-{len(photographs)}"
            shutil.copytree(folder, half)
            target = half / Path(os.readlink(f"/proc/self/fd/{arguments[0]}")).name
            with target.open("ab") as file:
                file.write(arguments[1][: len(arguments[1]) // 2])
            photographs.append(half)

    store = opened(folder)
    for step, after in history(store):
        photographs.clear()
        kernel.before = photograph
        step()
        kernel.before = None
        assert photographs or step == store.close
        for copy in photographs:
            assert known_in(copy) in (before, after), (copy, sorted(copy.iterdir()))
            shutil.rmtree(copy)
        assert known_by(store) == after
        before = after
    store.close()


def test_what_others_say_during_a_fold_is_kept(tmp_path: Path, kernel: Kernel) -> None:
    folder = tmp_path / "data"
    store, other = opened(folder), opened(folder)
    said: Known = {"a": ["c1"]}
    kept: list[bool] = []
    store.put("a", "c1", UNKNOWN)

    def speak(name: str, _: tuple[Any, ...]) -> None:
        key = f"before call {len(said)}, {name}"
        said[key] = ["c2"]
        other.put(key, "c2", UNKNOWN)
        kept.append(not other._map._state.unwritten)

    kernel.before = speak
    store.close()
    kernel.before = None
    assert kept.count(True) > 10
    for _ in range(5):
        other._compactor.tick()
    assert known_by(other) == known_by(store) == known_in(folder) == said
    other.close()
    store.close()


@pytest.mark.parametrize(
    ("number", "once", "sync"),
    [
        (errno.ENOSPC, False, True),
        (errno.EIO, True, True),
        (errno.ESTALE, True, False),
        (errno.EACCES, True, False),
        (errno.EROFS, False, False),
    ],
    ids=["full", "broken once", "stale once", "refused once", "read-only"],
)
def test_a_disk_that_fails_at_any_moment_costs_nothing_in_the_end(
    tmp_path: Path, kernel: Kernel, number: int, once: bool, sync: bool
) -> None:
    """Nothing is raised, memory is right all the while, and after mending so is the disk."""
    first, ended = 1, False
    while not ended:
        folder = tmp_path / f"fails-at-{first}"
        store, calls = opened(folder, sync), 0

        def fail(_: str, __: tuple[Any, ...], first: int = first) -> None:
            nonlocal calls
            calls += 1
            if calls == first or (calls > first and not once):
                raise OSError(number, os.strerror(number))

        for step, after in history(store):
            kernel.before = fail
            step()
            known = known_by(store)
            kernel.before = None
            assert known == after, f"after call {first} failed"
        for _ in range(6):
            store._compactor.tick()
        assert known_by(store) == after
        assert known_in(folder) == after, f"after call {first} failed"
        store.close()
        shutil.rmtree(folder)
        first, ended = first + 1, calls < first
    assert first > 50


def folds(store: JsonFileStore, times: int) -> None:
    for time in range(times):
        store.put(f"fold {time}", "c2", UNKNOWN)
        store.close()


@pytest.mark.parametrize("fresh", [True, False], ids=["at its first look", "at a later look"])
@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_who_reads_while_others_write_and_fold_misses_nothing(
    tmp_path: Path, kernel: Kernel, fresh: bool, times: int
) -> None:
    """At each system call of a look, another process writes and folds so many times."""
    at, calls = 1, 1
    while at <= calls:
        folder = tmp_path / f"folded-at-{at}"
        reader, other = opened(folder), opened(folder)
        other.put("a", "c1", UNKNOWN)
        folds(other, 1)
        other.put("b", "c1", UNKNOWN)
        if not fresh:
            assert known_by(reader)["b"] == ["c1"]
            other.put("c", "c1", UNKNOWN)
        said, calls = known_by(other), 0

        def act(_: str, __: tuple[Any, ...], at: int = at, other: JsonFileStore = other) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                other.put("during", "c3", UNKNOWN)
                folds(other, times)

        kernel.before = act
        seen = known_by(reader)
        kernel.before = None
        assert said.items() <= seen.items(), f"at call {at}"
        assert known_by(reader) == known_by(other), f"at call {at}"
        reader.close()
        other.close()
        assert known_in(folder) == known_by(other)
        at += 1
    assert calls > 2


@pytest.mark.parametrize("why", ["too old", "too many"])
def test_what_is_used_while_others_are_cleaned_up_stays(
    tmp_path: Path, kernel: Kernel, why: str
) -> None:
    now = 1e9
    cleaner, other = (
        JsonFileStore(tmp_path / "data", clock=lambda: now, max_age_days=None, max_entries=3)
        for _ in range(2)
    )
    for key in ("used", "unused", "third", "fourth", "fifth"):
        cleaner.put(key, "c1", UNKNOWN)
        now += 86400

    def use(_: str, arguments: tuple[Any, ...]) -> None:
        if str(arguments[0]).endswith("mappings.lock"):
            other.put("used", "c1", UNKNOWN)

    kernel.before = use
    if why == "too old":
        assert cleaner.cleanup(3.5) == 1
    else:
        cleaner._compactor.expire()
    kernel.before = None
    assert set(known_by(other)) == {"used", "third", "fourth", "fifth"}
    cleaner.close()
    other.close()


def test_a_full_disk_that_takes_half_a_line_costs_no_mapping(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    store = opened(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        for number in range(30):
            store.put(f"chat {number}", "c", UNKNOWN)
            assert store.stats().count == number + 1
        written = known_in(folder)
        assert 0 < len(written) < 30
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for _ in range(5):
        store._compactor.tick()
    assert len(known_in(folder)) == 30
    store.close()
