"""What is counted, and that it is counted over all processes, also those that have ended."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from opendify.observability import multiprocess_dir as folders
from opendify.observability.dead_workers import merge_dead_workers
from opendify.observability.multiprocess_dir import (
    BYTES_PER_MODEL,
    MIN_FILE_BYTES,
    create_dir,
    join_dir,
)
from tests.support.fake_dify import CLOSE, Chat, FakeDify, refused, streamed
from tests.support.service import Service, environment, free_variables, running
from tests.test_web import HI, PATH, post

SAMPLE = re.compile(r"^(opendify_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Samples:
    found = {}
    for name, labels, value in SAMPLE.findall(text):
        pairs = re.findall(r'(\w+)="([^"]*)"', labels)
        found[name, tuple(sorted(pairs))] = float(value)
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"opendify_{name}", tuple(sorted(labels.items()))), 0.0)


@pytest.fixture
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of an instance that has not counted anything."""
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(folders.VARIABLE, "")
    made = create_dir()
    assert made is not None
    return made


@pytest.fixture
def grown(api: FlaskClient) -> Callable[..., float]:
    """By how much a value has grown since the test began: the files are those of all tests."""
    before = parsed(api.get("/metrics").text)
    return lambda name, **labels: (
        value(parsed(api.get("/metrics").text), name, **labels) - value(before, name, **labels)
    )


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_is_counted(api: FlaskClient, grown: Callable[..., float], stream: bool) -> None:
    post(api, stream=stream)
    assert grown("requests_total", route=PATH, model="tiny", outcome="ok") == 1
    assert grown("answer_seconds_count", model="tiny") == 1
    assert grown("first_byte_seconds_count", model="tiny") == stream
    assert grown("tokens_total", model="tiny", kind="prompt") == 3
    assert grown("tokens_total", model="tiny", kind="completion") == 2
    assert grown("streams_open", model="tiny") == 0


def test_a_failure_of_dify_is_counted_by_its_kind(
    api: FlaskClient, dify: FakeDify, grown: Callable[..., float]
) -> None:
    dify.answers = [
        refused(503, {"code": "x", "message": "y", "status": 503}),
        [*streamed(Chat().text("Hal"))[:-1], CLOSE],
    ]
    post(api)
    post(api, stream=True)
    for code in ("upstream_unavailable", "upstream_error"):
        assert grown("requests_total", route=PATH, model="tiny", outcome=code) == 1
        assert grown("upstream_errors_total", model="tiny", kind=code) == 1
    assert grown("answer_seconds_count", model="tiny") == 0


def test_a_fault_of_the_caller_is_none_of_dify(
    api: FlaskClient, grown: Callable[..., float]
) -> None:
    post(api, messages=[])
    assert grown("requests_total", route=PATH, model="", outcome="invalid_request") == 1
    assert grown("upstream_errors_total", model="", kind="invalid_request") == 0


def test_a_stop_and_an_open_stream_are_counted(
    api: FlaskClient, dify: FakeDify, grown: Callable[..., float]
) -> None:
    dify.answers = [streamed(*(Chat().text("word ") for _ in range(9)), 60.0)]
    response = api.post(PATH, json={"model": "tiny", "messages": HI, "stream": True})
    next(iter(response.response))
    assert grown("streams_open", model="tiny") == 1
    response.close()
    assert grown("streams_open", model="tiny") == 0
    assert grown("requests_total", route=PATH, model="tiny", outcome="caller_gone") == 1


def test_what_callers_invent_makes_no_new_series(api: FlaskClient) -> None:
    def ask() -> set[Any]:
        for number in range(3):
            name = f"invented-{os.urandom(4).hex()}"
            post(api, {"X-Request-Id": name}, model=name, user=name)
            api.get(f"/{name}", buffered=True)
            api.get(f"/v1/models/{name}", buffered=True)
            api.open("/v1/models", method=f"M{number}", buffered=True)
        return {key for key in parsed(api.get("/metrics").text) if key[0] != "opendify_dify_up"}

    assert ask() == ask()


def test_the_store_and_dify_are_read_when_asked(api: FlaskClient) -> None:
    post(api, {"X-OpenWebUI-Chat-Id": "chat-1"})
    samples = parsed(api.get("/metrics").text)
    assert value(samples, "conversations") == 1
    assert value(samples, "store_up") == 1


def test_metrics_are_prometheus_text(api: FlaskClient) -> None:
    response = api.get("/metrics")
    assert response.content_type.startswith("text/plain; version=")


# --- files -----------------------------------------------------------------------------------


def test_a_file_is_allocated_on_the_disk_before_it_is_used(own_folder: Path) -> None:
    assert join_dir(3) == own_folder
    paths = list(own_folder.glob("*.db"))
    assert len(paths) == 3
    for path in paths:
        assert path.stat().st_blocks * 512 >= MIN_FILE_BYTES + 3 * BYTES_PER_MODEL


COUNT = """
import sys
from opendify.observability.metrics import Metrics
from opendify.observability.record import Record
metrics = Metrics(3)
for name in sys.argv[1:]:
    record = Record("r", "POST", 0.0, route="/r", model=name, is_streaming=True, ended="ok")
    record.first_byte_at, record.ended_at = 1.5, 3.0
    metrics.stream_began(record)
    metrics.request_ended(record)
metrics.stream_began(record)
print(metrics.exposition([]).decode())
"""


def counted(folder: Path, *models: str) -> Samples:
    """What a process that counts these, and ends, finds counted in all."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *models],
        env=environment(**{folders.VARIABLE: str(folder)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return parsed(done.stdout)


def test_what_ended_processes_counted_is_kept_in_one_file(own_folder: Path) -> None:
    for round_ in (1, 2, 3):
        counted(own_folder, "a", "b", "b")
        merge_dead_workers()
        names = sorted(path.name for path in own_folder.iterdir())
        assert names == ["counter_folded.db", "histogram_folded.db", "lock"]
        samples = counted(own_folder, "c")
        assert value(samples, "requests_total", route="/r", model="b", outcome="ok") == 2 * round_
        assert value(samples, "answer_seconds_count", model="a") == round_
        assert value(samples, "answer_seconds_sum", model="a") == 3 * round_
        assert value(samples, "first_byte_seconds_bucket", model="b", le="1.0") == 0
        assert value(samples, "first_byte_seconds_bucket", model="b", le="2.0") == 2 * round_
        assert value(samples, "streams_open", model="b") == 0  # of those that have ended
        assert value(samples, "streams_open", model="c") == 1
        merge_dead_workers()


def test_the_allocated_size_is_enough_for_every_model_with_a_long_name(own_folder: Path) -> None:
    names = [f"{number}{'a-long-name' * 4}" for number in range(3)]
    counted(own_folder, *names)
    for path in own_folder.glob("*.db"):
        assert path.stat().st_size == MIN_FILE_BYTES + 3 * BYTES_PER_MODEL
        used = int.from_bytes(path.read_bytes()[:4], "little")
        assert used < 3 * BYTES_PER_MODEL
    merge_dead_workers()
    for path in own_folder.glob("*_folded.db"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size >= MIN_FILE_BYTES


def test_files_of_a_process_that_runs_are_left(own_folder: Path) -> None:
    join_dir(3)
    merge_dead_workers()
    assert len(list(own_folder.glob(f"*_{os.getpid()}.db"))) == 3


def test_nothing_is_folded_while_somebody_reads(own_folder: Path) -> None:
    counted(own_folder, "a")
    with folders.shared_lock(own_folder):
        merge_dead_workers()
        assert not list(own_folder.glob("*folded*"))
    merge_dead_workers()
    assert list(own_folder.glob("*folded*"))


def test_a_file_that_was_cut_off_takes_nothing_else_with_it(own_folder: Path) -> None:
    counted(own_folder, "a")
    cut = b"\x40\0\0\0\0\0\0\0\xff\xff\xff\x7f" + b"x" * 100
    (own_folder / "counter_999999999.db").write_bytes(cut)
    merge_dead_workers()
    samples = counted(own_folder, "a")
    assert value(samples, "requests_total", route="/r", model="a", outcome="ok") == 2


def test_the_folder_of_an_instance_that_was_killed_is_removed_by_the_next(own_folder: Path) -> None:
    killed, young = (own_folder.with_name(f"{folders.PREFIX}{name}") for name in ("old", "young"))
    for path in (killed, young):
        path.mkdir()
        (path / "counter_1.db").touch()
    for path in (killed, own_folder):
        os.utime(path, (0, 0))
    made = create_dir()
    assert set(folders_of(own_folder.parent)) == {own_folder, young, made}


def test_without_space_for_files_nothing_is_counted_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(folders.VARIABLE, "")
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path / "none"))
    assert create_dir() is None
    assert join_dir(3) is None
    merge_dead_workers()


# --- the real service ------------------------------------------------------------------------


@pytest.fixture
def scrape() -> Iterator[Callable[[Service], Samples]]:
    with httpx.Client(trust_env=False) as client:
        yield lambda service: parsed(client.get(f"{service.url}/metrics").text)


def asked(service: Service) -> None:
    body = {"model": "tiny", "messages": HI}
    httpx.post(f"{service.url}{PATH}", json=body, trust_env=False).raise_for_status()


def folders_of(folder: Path) -> list[Path]:
    return list(folder.glob("opendify-metrics-*"))


def until_answered(
    service: Service, scrape: Callable[[Service], Samples], wanted: float
) -> Samples:
    """What is counted when so many answers are: one is counted when it was sent, in several
    metrics one after the other."""
    deadline = time.monotonic() + 20
    while True:
        samples = scrape(service)
        found = (
            value(samples, "requests_total", route=PATH, model="tiny", outcome="ok"),
            value(samples, "answer_seconds_count", model="tiny"),
        )
        if found == (wanted, wanted):
            return samples
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@pytest.mark.parametrize("reload", ["false", "true"])
def test_all_workers_are_counted_and_none_is_forgotten(
    tmp_path: Path, dify: FakeDify, scrape: Callable[[Service], Samples], reload: str
) -> None:
    temporary, stale = tmp_path / "tmp", tmp_path / "stale"
    temporary.mkdir()
    stale.mkdir()
    variables = free_variables(
        dify.base, GUNICORN_WORKERS="2", GUNICORN_RELOAD=reload, TMPDIR=str(temporary)
    )
    variables[folders.VARIABLE] = str(stale)  # of an earlier run, or of another instance
    with running(tmp_path, variables) as service:
        for _ in range(8):
            asked(service)
        until_answered(service, scrape, 8)
        (folder,) = folders_of(temporary)
        counting = [int(path.stem.rpartition("_")[2]) for path in folder.glob("counter_*.db")]
        os.kill(counting[0], signal.SIGKILL)
        deadline = time.monotonic() + 20
        while not list(folder.glob("counter_folded.db")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(folder.glob("counter_folded.db"))
        for _ in range(4):
            asked(service)
        samples = until_answered(service, scrape, 12)
        assert value(samples, "build_info", version="0.1.0") == 1
    assert folders_of(temporary) == list(stale.iterdir()) == []


def test_it_counts_without_gunicorn_too(tmp_path: Path, dify: FakeDify) -> None:
    code = (
        "import main; api = main.app.test_client()\n"
        "api.get('/v1/models', buffered=True); print(api.get('/metrics').text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(**free_variables(dify.base, TMPDIR=str(tmp_path))),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert value(parsed(done.stdout), "requests_total", route="/v1/models", model="", outcome="ok")
    assert folders_of(tmp_path) == []
