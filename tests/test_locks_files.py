"""Locks by name: one holder at a time, and free when a holder is killed."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from opendify.conversations.locks.files import FileLocks, Lock, Locks
from opendify.conversations.locks.redis import LEASE_SECONDS, RedisLocks
from opendify.storage.redis_connection import RedisConnection
from tests.support.redis_server import RedisServer
from tests.support.service import ROOT
from tests.support.waiting import wait_for

MAKE = """
import sys, threading, time
from pathlib import Path
from opendify.conversations.locks.files import FileLocks
from opendify.conversations.locks.redis import LEASE_SECONDS, RedisLocks
from opendify.storage.redis_connection import RedisConnection
folder, address = sys.argv[1:]
def new_locks(lease=LEASE_SECONDS):
    if address:
        return RedisLocks(RedisConnection(address, "Redis"), lease)
    return FileLocks(Path(folder))
"""

HOLDER = """
locks = new_locks(lease=1.5)
assert locks.try_acquire("held")
print("held", flush=True)
time.sleep(120)
"""

# Adds one to a number in a file, many times, with a pause between reading and writing: any two
# at once lose one.
COUNTER = """
locks = new_locks()
number = Path(folder) / "number"
def add():
    for _ in range(10):
        while not (lock := locks.try_acquire("chat")):
            time.sleep(0.001)
        before = int(number.read_text())
        time.sleep(0.001)
        number.write_text(str(before + 1))
        lock.release()
threads = [threading.Thread(target=add) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


made: list[RedisLocks] = []


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """No lock is prolonged when its test is over."""
    yield
    for locks in made:
        for lock in locks._leases.active():
            lock.release()
    made.clear()


def redis_locks(url: str, lease: float = LEASE_SECONDS) -> RedisLocks:
    made.append(RedisLocks(RedisConnection(url, "Redis"), lease))
    return made[-1]


@pytest.fixture(params=["file", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The folder, and the address of Redis or nothing."""
    is_file = request.param == "file"
    return str(tmp_path / "data"), "" if is_file else request.getfixturevalue("redis_url")


@pytest.fixture
def locks(place: tuple[str, str]) -> Locks:
    return new_locks(place)


def new_locks(place: tuple[str, str]) -> Locks:
    if place[1]:
        return redis_locks(place[1])
    return FileLocks(Path(place[0]))


def left(place: tuple[str, str]) -> list[str]:
    """The locks that there are."""
    if not place[1]:
        return [path.name for path in (Path(place[0]) / "locks").iterdir()]
    with redis.Redis.from_url(place[1]) as client:
        return [key.decode() for key in client.scan_iter()]


def started(place: tuple[str, str], program: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MAKE + program, *place]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


@pytest.fixture
def holder(place: tuple[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock ``held``."""
    with started(place, HOLDER) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_lock_has_one_holder(locks: Locks) -> None:
    first = locks.try_acquire("one")
    assert first is not None
    assert locks.try_acquire("one") is None
    first.release()
    second = locks.try_acquire("one")
    assert second is not None
    first.release()
    assert locks.try_acquire("one") is None
    second.release()


def test_other_locks_are_free(locks: Locks, holder: subprocess.Popen[bytes]) -> None:
    for number in range(20):
        lock = locks.try_acquire(f"chat {number}")
        assert lock is not None
    assert locks.try_acquire("held") is None


def test_the_lock_of_a_killed_holder_is_free_soon(
    place: tuple[str, str], locks: Locks, holder: subprocess.Popen[bytes]
) -> None:
    assert locks.try_acquire("held") is None
    holder.send_signal(signal.SIGKILL)
    found: list[Lock | None] = []

    def is_free() -> bool:
        found.append(locks.try_acquire("held"))
        return found[-1] is not None

    wait_for(is_free, 3 * LEASE_SECONDS)
    assert found[-1] is not None
    found[-1].release()
    assert left(place) == []


def test_two_processes_of_four_threads_never_hold_a_lock_at_once(place: tuple[str, str]) -> None:
    Path(place[0]).mkdir()
    number = Path(place[0]) / "number"
    number.write_text("0")
    processes = [started(place, COUNTER) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert number.read_text() == "80"
    if not place[1]:
        assert left(place) == []


def test_a_lock_is_released_once_however_often_and_from_wherever(
    place: tuple[str, str], locks: Locks
) -> None:
    lock = locks.try_acquire("chat")
    assert lock is not None
    with ThreadPoolExecutor(8) as others:
        for done in [others.submit(lock.release) for _ in range(50)]:
            done.result()
    with open(os.devnull) as reused:  # a second close would hit whoever has the number now
        lock.release()
        os.fstat(reused.fileno())
    assert left(place) == []
    again = locks.try_acquire("chat")
    lock.release()
    assert again is not None
    assert locks.try_acquire("chat") is None


def test_the_name_of_a_lock_reveals_nothing(place: tuple[str, str], locks: Locks) -> None:
    assert locks.try_acquire('["-","tiny","anna","secret chat \ud800"]')
    (name,) = left(place)
    assert "anna" not in name
    assert "chat" not in name


# In files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "locks"


@pytest.fixture
def file_locks(tmp_path: Path) -> FileLocks:
    return FileLocks(tmp_path / "data")


@pytest.mark.parametrize("place", ["file"], indirect=True)
def test_what_a_killed_holder_left_is_removed_by_the_next_process(
    holder: subprocess.Popen[bytes], folder: Path, file_locks: FileLocks
) -> None:
    (path,) = folder.iterdir()
    (folder / path.name[::-1]).touch()
    (folder / "notes.txt").touch()
    holder.kill()
    holder.wait()
    lock = file_locks.try_acquire("chat")
    assert lock is not None
    lock.release()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("place", ["file"], indirect=True)
def test_the_sweep_leaves_the_locks_of_the_living(
    holder: subprocess.Popen[bytes], file_locks: FileLocks
) -> None:
    assert file_locks.try_acquire("chat") is not None
    assert file_locks.try_acquire("held") is None


def test_lock_files_are_their_owners_alone(folder: Path, file_locks: FileLocks) -> None:
    assert file_locks.try_acquire("chat")
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700


def test_while_the_disk_fails_every_lock_counts_as_acquired_which_is_logged_once(
    tmp_path: Path, file_locks: FileLocks, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    for _ in range(3):
        lock = file_locks.try_acquire("chat")
        assert lock is not None
        lock.release()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert str(tmp_path / "data" / "locks") in caplog.text
    (tmp_path / "data").unlink()
    assert file_locks.try_acquire("chat") is not None
    assert file_locks.try_acquire("chat") is None


def test_a_folder_that_is_removed_meanwhile_is_made_again(
    folder: Path, file_locks: FileLocks
) -> None:
    lock = file_locks.try_acquire("chat")
    assert lock is not None
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    lock.release()
    assert file_locks.try_acquire("chat") is not None
    assert len(list(folder.iterdir())) == 1


def test_a_file_that_others_made_anew_is_not_removed(folder: Path, file_locks: FileLocks) -> None:
    lock = file_locks.try_acquire("chat")
    assert lock is not None
    (path,) = folder.iterdir()
    path.unlink()
    other = file_locks.try_acquire("chat")
    assert other is not None
    lock.release()
    assert file_locks.try_acquire("chat") is None
    other.release()
    assert list(folder.iterdir()) == []


def test_a_file_that_is_removed_between_opening_and_locking_is_no_lock(
    file_locks: FileLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = file_locks.try_acquire("chat")
    assert first is not None
    ordinary = fcntl.flock
    others: list[Lock | None] = []

    def let_another_be_faster(descriptor: int, operation: int) -> None:
        if not others:
            others.append(None)
            first.release()
            others.append(file_locks.try_acquire("chat"))
        ordinary(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", let_another_be_faster)
    assert file_locks.try_acquire("chat") is None
    assert others[1] is not None
    others[1].release()
    assert file_locks.try_acquire("chat") is not None


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(file_locks: FileLocks) -> None:
    lock = file_locks.try_acquire("chat")
    assert lock is not None
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        lock.release()
        assert file_locks.try_acquire("chat") is not None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# In Redis


def test_a_lock_that_is_held_longer_than_its_lease_is_kept(redis_url: str) -> None:
    locks, other = (redis_locks(redis_url, lease=0.3) for _ in range(2))
    held = [locks.try_acquire(f"chat {number}") for number in range(5)]
    for _ in range(4):
        time.sleep(0.3)
        assert other.try_acquire("chat 0") is None
    for lock in held:
        assert lock is not None
        lock.release()
    assert all(other.try_acquire(f"chat {number}") for number in range(5))


def test_a_lock_that_somebody_else_has_by_now_is_left_alone(redis_url: str) -> None:
    locks = redis_locks(redis_url)
    lock = locks.try_acquire("chat")
    assert lock is not None
    (name,) = left(("", redis_url))
    with redis.Redis.from_url(redis_url) as client:
        client.set(name, "of another")
        lock.release()
        assert client.get(name) == b"of another"


def test_every_lock_counts_as_acquired_while_redis_is_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = RedisServer()
    locks = redis_locks(server.url)
    first = locks.try_acquire("chat")
    server.kill()
    second = locks.try_acquire("chat")
    assert first is not None
    assert second is not None
    for lock in (first, second):
        lock.release()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "Redis" in caplog.text
    server.start()
    wait_for(lambda: locks.try_acquire("chat") is None)
    server.close()
