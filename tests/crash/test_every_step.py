"""The process dies, or the disk fails, at each single system call of a short history."""

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opendify.conversations import ConversationStore
from opendify.conversations.keeper import Keeper

CALLS = [
    "open", "write", "pread", "replace", "rename", "unlink", "listdir",
    "mkdir", "chmod", "stat", "fstat",
]  # fmt: skip

Known = dict[str, str]
Hook = Callable[[str, tuple[Any, ...]], None]


@pytest.fixture(autouse=True)
def slow_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "TICK_SECONDS", 3600.0)
    monkeypatch.setattr("opendify.conversations.ledger._PATIENCE", 0.0)


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


def opened(folder: Path, sync: bool = False) -> ConversationStore:
    return ConversationStore(
        folder, clock=lambda: 1e9, max_age_days=1e6, max_entries=10**6, sync=sync
    )


def known_by(store: ConversationStore) -> Known:
    return {key: mapping.conversation_id for key, mapping in store.entries()}


def known_in(folder: Path) -> Known:
    store = opened(folder)
    try:
        return known_by(store)
    finally:
        store.close()


def history(store: ConversationStore) -> Iterator[tuple[Callable[[], object], Known]]:
    """Steps, and what is known after each; closing folds, and the next step opens again."""
    known: Known = {}
    yield lambda: store.put("a", "c1"), (known := known | {"a": "c1"})
    yield lambda: store.put("b", "c2"), (known := known | {"b": "c2"})
    yield store.close, known
    yield lambda: store.move("a", "d", "c1", "heard"), (known := {"b": "c2", "d": "c1"})
    yield lambda: store.put("long " * 300, "c3"), (known := known | {"long " * 300: "c3"})
    yield store.close, known
    yield lambda: store.forget("b", "c2"), (known := {k: v for k, v in known.items() if k != "b"})
    yield lambda: store.put("a", "c4"), (known | {"a": "c4"})
    yield store.close, (known | {"a": "c4"})


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
    said: Known = {"a": "c1"}
    kept: list[bool] = []
    store.put("a", "c1")

    def speak(name: str, _: tuple[Any, ...]) -> None:
        key = f"before call {len(said)}, {name}"
        said[key] = "c2"
        other.put(key, "c2")
        kept.append(not other._ledger._unwritten)

    kernel.before = speak
    store.close()
    kernel.before = None
    assert kept.count(True) > 10
    for _ in range(5):
        other._keeper.tick()
    assert known_by(other) == known_by(store) == known_in(folder) == said
    other.close()
    store.close()


@pytest.mark.parametrize(
    ("number", "once", "sync"),
    [
        (errno.ENOSPC, False, False),
        (errno.ENOSPC, True, True),
        (errno.EIO, True, False),
        (errno.EIO, False, True),
        (errno.EACCES, True, False),
        (errno.EROFS, False, False),
        (errno.ESTALE, True, False),
    ],
    ids=[
        "full",
        "full once, sync",
        "once",
        "from then on, sync",
        "refused once",
        "read-only",
        "stale",
    ],
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
            store._keeper.tick()
        assert known_by(store) == after
        assert known_in(folder) == after, f"after call {first} failed"
        store.close()
        shutil.rmtree(folder)
        first, ended = first + 1, calls < first
    assert first > 50
