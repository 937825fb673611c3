"""Real processes on one folder: many at once, forked, killed, without rights, on a full disk."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

HEAD = """
    import logging, os, sys, threading, time
    from pathlib import Path
    from opendify.conversations import JsonFileStore, Update
    from opendify.conversations.store.compactor import Compactor

    Compactor.TICK_SECONDS = 0.05
    UNKNOWN = Update("")
    logging.basicConfig(format="%(levelname)s %(message)s")
    folder = Path(sys.argv[1])
    store = JsonFileStore(folder, clock=time.time, max_age_days=None, max_entries=10**5)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """The coverage of these is not measured: one gives up the right to write the data of it."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HEAD) + textwrap.dedent(script)]
        + [str(argument) for argument in arguments],
        cwd=ROOT,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    said, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    return said, complaints


def in_file(folder: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads((folder / "conversation_mappings.json").read_bytes())
    except FileNotFoundError:
        return {}
    return read


def test_five_processes_put_two_hundred_chats_into_the_file(tmp_path: Path) -> None:
    """One is killed as soon as it has put its last: the others bring the file up to date."""
    script = """
        store.get("open, and do not write yet")
        print("ready", flush=True)
        sys.stdin.readline()
        threads = [
            threading.Thread(target=store.put, args=(f"{sys.argv[2]}-{n}", "c", UNKNOWN))
            for n in range(40)
        ]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print("done", flush=True)
        sys.stdin.readline()
        os._exit(0)
    """
    processes = [start(script, tmp_path, number) for number in range(5)]
    for said in ("ready\n", "done\n"):
        for process in processes:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == said
            if said == "ready\n":
                process.stdin.write("go\n")
                process.stdin.flush()
    processes[0].kill()
    deadline = time.monotonic() + 30
    while len(in_file(tmp_path)) < 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(in_file(tmp_path)) == {f"{p}-{n}" for p in range(5) for n in range(40)}
    for process in processes[1:]:
        finish(process)
    processes[0].communicate()
    assert processes[0].returncode == -signal.SIGKILL


def test_making_a_store_opens_nothing_and_children_share_what_they_write(tmp_path: Path) -> None:
    script = """
        before = set(os.listdir("/proc/self/fd")), threading.active_count()
        store = JsonFileStore(folder, clock=time.time, max_age_days=None, max_entries=9)
        assert before == (set(os.listdir("/proc/self/fd")), threading.active_count())
        assert not folder.exists()
        children = []
        for number in range(3):
            if (child := os.fork()) == 0:
                store.put(f"chat {number}", "c", UNKNOWN)
                store.close()
                os._exit(0)
            children.append(child)
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)
        print(sorted(key for key, _ in store.entries()))
        store.close()
    """
    said, complaints = finish(start(script, tmp_path / "data"))
    assert said == "['chat 0', 'chat 1', 'chat 2']\n"
    assert complaints == ""


def test_a_store_in_use_survives_a_fork(tmp_path: Path) -> None:
    """Also when another thread of the parent holds its locks at that moment."""
    script = """
        store.put("parent, before", "c", UNKNOWN)
        ledger = store._map
        ledger._write_lock.acquire(), ledger._memory_lock.acquire()
        if (child := os.fork()) == 0:
            store.put("child", "c", UNKNOWN)
            assert store.get("parent, before") is not None
            time.sleep(1)  # its own keeper brings the file up to date
            assert "child" in (folder / "conversation_mappings.json").read_text()
            os._exit(0)
        ledger._write_lock.release(), ledger._memory_lock.release()
        store.put("parent, after", "c", UNKNOWN)
        assert os.waitpid(child, 0)[1] == 0
        print(sorted(key for key, _ in store.entries()))
        store.close()
    """
    said, complaints = finish(start(script, tmp_path))
    assert said == "['child', 'parent, after', 'parent, before']\n"
    assert complaints == ""


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that a user other than root can get to, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place) / "data"


def test_in_a_read_only_folder_what_is_there_is_known_and_what_is_new_is_in_memory(
    reachable: Path,
) -> None:
    """Root, who may write anywhere, becomes nobody."""
    finish(
        start(
            "store.put('known', 'c1', UNKNOWN); store.close(); store.put('late', 'c1', UNKNOWN)",
            reachable,
        )
    )
    for path in (*reachable.iterdir(), reachable):
        path.chmod(0o555)
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
    script = """
        if os.geteuid() == 0:
            os.setgroups([]), os.setgid(65534), os.setuid(65534)
        for number in range(5):
            store.put(f"chat {number}", "c2", UNKNOWN)
            time.sleep(0.1)
        print(sorted(key for key, _ in store.entries()))
        store.close()
    """
    said, complaints = finish(start(script, reachable))
    assert said == "['chat 0', 'chat 1', 'chat 2', 'chat 3', 'chat 4', 'known', 'late']\n"
    (complaint,) = complaints.splitlines()
    assert "cannot be saved" in complaint
    assert str(reachable) in complaint
    assert stat.S_IMODE(reachable.stat().st_mode) == 0o500
    reachable.chmod(0o700)


def test_on_a_full_disk_answers_go_on_and_nothing_is_lost_once_there_is_space(
    tmp_path: Path,
) -> None:
    script = """
        import resource
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        for number in range(200):
            store.put(f"chat {number}", "c", UNKNOWN)
            assert store.stats().count == number + 1
        store.close()
        assert store.stats().count == 200
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        deadline = time.monotonic() + 20
        while store._map._state.unwritten and time.monotonic() < deadline:
            time.sleep(0.02)
        print("written")
        store.close()
    """
    said, complaints = finish(start(script, tmp_path / "data"))
    assert said == "written\n"
    assert len(in_file(tmp_path / "data")) == 200
    assert [line.split()[0] for line in complaints.splitlines()][:1] == ["ERROR"]
    assert complaints.count("cannot be saved") == 1
    assert complaints.count("are saved in") == 1


def storm(chats: int, kills: int) -> dict[str, Any]:
    arguments = ["--chats", str(chats), "--kills", str(kills), "--fold-every", "100"]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.crash.storm", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


@pytest.mark.parametrize(
    ("chats", "kills"), [(1_000, 30), pytest.param(10_000, 200, marks=pytest.mark.long)]
)
def test_writers_killed_at_random_lose_nothing_that_was_acknowledged(
    chats: int, kills: int
) -> None:
    report = storm(chats, kills)
    assert report["told"] >= chats
    assert report["kills"] >= kills
    assert (report["lost"], report["wrong"], report["not_in_the_file"]) == (0, 0, 0)
