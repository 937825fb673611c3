"""The turns of one chat: one after the other, wherever they come in, and nobody else waits."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opendify.conversations.turn_locks import FileTurnLocks, TurnLocks
from tests.service import ROOT

LONG = 30.0

HOLDER = """
import sys, time
from pathlib import Path
from opendify.conversations.turn_locks import FileTurnLocks
locks = FileTurnLocks(Path(sys.argv[1]))
assert locks.acquire(sys.argv[2], time.monotonic() + 30, lambda: False)
print("held", flush=True)
time.sleep(60)
"""

# Adds one to a number in a file, many times, with a pause between reading and writing: any two
# at once lose one.
COUNTER = """
import sys, threading, time
from pathlib import Path
from opendify.conversations.turn_locks import FileTurnLocks
locks, number = FileTurnLocks(Path(sys.argv[1])), Path(sys.argv[1]) / "number"
def add():
    for _ in range(10):
        lock = locks.acquire("chat", time.monotonic() + 50, lambda: False)
        assert lock is not None
        before = int(number.read_text())
        time.sleep(0.001)
        number.write_text(str(before + 1))
        lock.release()
threads = [threading.Thread(target=add) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.fixture
def locks(tmp_path: Path) -> FileTurnLocks:
    return FileTurnLocks(tmp_path / "data")


def stays() -> bool:
    return False


def left(folder: Path) -> list[str]:
    return [path.name for path in (folder / "data" / "locks").iterdir()]


def started(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the turn of the chat ``held``."""
    with started(HOLDER, str(tmp_path / "data"), "held") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_turn_waits_until_the_earlier_one_lets_it(locks: TurnLocks) -> None:
    first = locks.acquire("chat", time.monotonic(), stays)
    assert first is not None
    assert locks.acquire("chat", time.monotonic() + 0.05, stays) is None
    with ThreadPoolExecutor(1) as others:
        waiting = others.submit(locks.acquire, "chat", time.monotonic() + LONG, stays)
        time.sleep(0.1)
        assert not waiting.done()
        first.release()
        second = waiting.result(LONG)
    assert second is not None
    first.release()
    assert locks.acquire("chat", time.monotonic(), stays) is None
    second.release()


def test_no_other_chat_waits(locks: TurnLocks, holder: subprocess.Popen[bytes]) -> None:
    for number in range(20):
        lock = locks.acquire(f"chat {number}", time.monotonic(), stays)
        assert lock is not None
    assert locks.acquire("held", time.monotonic(), stays) is None


def test_who_hangs_up_waits_no_longer(locks: TurnLocks, holder: subprocess.Popen[bytes]) -> None:
    gone = threading.Event()
    asked: list[float] = []

    def is_gone() -> bool:
        asked.append(time.monotonic())
        return gone.is_set()

    with ThreadPoolExecutor(1) as others:
        waiting = others.submit(locks.acquire, "held", time.monotonic() + LONG, is_gone)
        time.sleep(0.5)
        gone.set()
        assert waiting.result(5) is None
    assert 5 < len(asked) < 30  # often enough to notice, and not a busy loop


def test_a_killed_holder_frees_the_turn(
    locks: TurnLocks, holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert locks.acquire("held", time.monotonic() + 0.1, stays) is None
    holder.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    lock = locks.acquire("held", killed + LONG, stays)
    assert lock is not None
    assert time.monotonic() - killed < 1
    lock.release()
    assert left(tmp_path) == []


def test_what_a_killed_holder_left_is_removed_by_the_next_process(
    holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (name,) = left(tmp_path)
    other_name = name[::-1]
    (tmp_path / "data" / "locks" / other_name).touch()
    (tmp_path / "data" / "locks" / "notes.txt").touch()
    holder.kill()
    holder.wait()
    lock = FileTurnLocks(tmp_path / "data").acquire("chat", time.monotonic() + LONG, stays)
    assert lock is not None
    lock.release()
    assert left(tmp_path) == ["notes.txt"]


def test_the_sweep_leaves_the_locks_of_the_living(
    holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    locks = FileTurnLocks(tmp_path / "data")
    assert locks.acquire("chat", time.monotonic() + LONG, stays) is not None
    assert locks.acquire("held", time.monotonic() + 0.1, stays) is None


def test_two_processes_of_four_threads_never_hold_a_turn_at_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    number = tmp_path / "data" / "number"
    number.write_text("0")
    processes = [started(COUNTER, str(tmp_path / "data")) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert number.read_text() == "80"
    assert left(tmp_path) == []


def test_a_turn_is_released_once_however_often_and_from_wherever(
    locks: TurnLocks, tmp_path: Path
) -> None:
    lock = locks.acquire("chat", time.monotonic(), stays)
    assert lock is not None
    with ThreadPoolExecutor(8) as others:
        for done in [others.submit(lock.release) for _ in range(50)]:
            done.result()
    with open(os.devnull) as reused:  # a second close would hit whoever has the number now
        lock.release()
        os.fstat(reused.fileno())
    assert left(tmp_path) == []


def test_lock_files_tell_nothing_and_are_their_owners_alone(
    locks: TurnLocks, tmp_path: Path
) -> None:
    assert locks.acquire('["-","tiny","anna","secret chat \ud800"]', time.monotonic(), stays)
    (path,) = (tmp_path / "data" / "locks").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700
    assert "anna" not in path.name


def test_trouble_with_the_disk_lets_every_turn_go_and_is_told_once(
    locks: TurnLocks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    for _ in range(3):
        lock = locks.acquire("chat", time.monotonic() + LONG, stays)
        assert lock is not None
        lock.release()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert str(tmp_path / "data" / "locks") in caplog.text
    (tmp_path / "data").unlink()
    assert locks.acquire("chat", time.monotonic(), stays) is not None
    assert locks.acquire("chat", time.monotonic(), stays) is None


def test_a_folder_that_is_removed_meanwhile_is_made_again(locks: TurnLocks, tmp_path: Path) -> None:
    lock = locks.acquire("chat", time.monotonic(), stays)
    assert lock is not None
    for path in (tmp_path / "data" / "locks").iterdir():
        path.unlink()
    (tmp_path / "data" / "locks").rmdir()
    lock.release()
    assert locks.acquire("chat", time.monotonic(), stays) is not None
    assert len(left(tmp_path)) == 1
