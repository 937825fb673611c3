"""A store that fails: answers still go out, and nothing that was acknowledged is lost."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.faults.calls import ask, question
from tests.faults.chaos import Chaos
from tests.faults.conftest import started
from tests.support.redis_server import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_for

HISTORY = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "All is well"},
    {"role": "user", "content": "And now?"},
]


def begin(running: Service, chat: str) -> int:
    return ask(running, question("trailers"), {"X-OpenWebUI-Chat-Id": chat}).status


def goes_on(running: Service, chaos: Chaos, chat: str) -> bool:
    """Whether the next turn of a chat is asked in its conversation."""
    body = {**question("trailers"), "messages": HISTORY}
    assert ask(running, body, {"X-OpenWebUI-Chat-Id": chat}).status == 200
    return bool(chaos.asked("trailers")[-1].json["conversation_id"])


@contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[None]:
    """A file system of its own, where that may be made."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(["size=128k", *options]), "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_costs_no_answer(chaos: Chaos, tmp_path: Path) -> None:
    data = tmp_path / "small"
    with (
        small_disk(data),
        started(tmp_path, chaos, DATA_DIR=str(data), GUNICORN_WORKERS="1") as running,
    ):
        assert [begin(running, chat) for chat in ("before", "earlier")] == [200] * 2
        (data / "filler").write_bytes(b"")
        with (data / "filler").open("ab", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(b"x" * 1024)
        assert [begin(running, f"full-{number}") for number in range(20)] == [200] * 20
        assert goes_on(running, chaos, "full-3"), "it is kept in memory"
        assert goes_on(running, chaos, "before")
        told = [line for line in running.output().splitlines() if "ERROR" in line]
        assert 1 <= len(told) <= 3, told
        (data / "filler").unlink()
        assert begin(running, "after") == 200
        running.stop()
        with started(tmp_path, chaos, DATA_DIR=str(data)) as again:
            for chat in ("earlier", "full-7", "after"):
                assert goes_on(again, chaos, chat), f"the chat '{chat}' was lost"


def test_a_folder_that_cannot_be_written_costs_no_answer(chaos: Chaos, tmp_path: Path) -> None:
    data = tmp_path / "small"
    with small_disk(data, "ro"), started(tmp_path, chaos, DATA_DIR=str(data)) as running:
        assert [begin(running, f"c{number}") for number in range(5)] == [200] * 5
        assert goes_on(running, chaos, "c1"), "it is kept in memory"
        assert "Traceback" not in running.output()


def test_a_corrupt_file_is_put_aside_and_the_service_starts(chaos: Chaos, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "conversation_mappings.json").write_text('{"a": {"dify_conv')
    with started(tmp_path, chaos) as running:
        assert begin(running, "c1") == 200
        assert goes_on(running, chaos, "c1")
    (aside,) = data.glob("*.corrupt-*")
    assert aside.read_text() == '{"a": {"dify_conv'


def test_a_redis_that_is_away_costs_no_answer(chaos: Chaos, tmp_path: Path) -> None:
    server = RedisServer()
    try:
        with started(tmp_path, chaos, CONVERSATION_STORE=server.url) as running:
            assert begin(running, "c1") == 200
            assert goes_on(running, chaos, "c1")
            server.kill()
            assert [begin(running, f"away-{number}") for number in range(3)] == [200] * 3
            assert goes_on(running, chaos, "away-1"), "it is kept in memory"
            health = httpx.get(f"{running.url}/healthz", timeout=5, trust_env=False)
            assert health.status_code == 200
            server.start()
            wait_for(lambda: begin(running, "back") == 200 and stored(server), 20, "the Redis")
            server.pause()
            assert begin(running, "stuck") == 200
            server.go_on()
    finally:
        server.close()


def stored(server: RedisServer) -> bool:
    with server.client() as client:
        return any(b"back" in key for key in client.scan_iter())
