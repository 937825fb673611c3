"""LOG_FILE, written by several workers while log rotation takes it away."""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.service import Service, free_variables, running

ASKERS = 4


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    variables = free_variables(
        "http://127.0.0.1:9/v1", GUNICORN_WORKERS="3", LOG_FILE="logs/gunicorn.log"
    )
    with running(tmp_path, variables) as running_service:
        yield running_service


@contextmanager
def asking(service: Service) -> Iterator[set[str]]:
    """Asks all the time; what it gives is the names of the requests."""
    names: set[str] = set()
    over = threading.Event()

    def ask(asker: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            name = f"r-{asker}-{number}"
            # Each on a connection of its own, so that every worker gets some.
            httpx.get(
                f"{service.url}/v1/models", headers={"X-Request-Id": name}, trust_env=False
            ).raise_for_status()
            names.add(name)

    threads = [threading.Thread(target=ask, args=(asker,)) for asker in range(ASKERS)]
    for thread in threads:
        thread.start()
    try:
        yield names
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


def logged(*paths: Path) -> Counter[str]:
    text = "".join(path.read_text() for path in paths if path.exists())
    return Counter(re.findall(r" request id=(r-\S+) ", text))


def until_logged(wanted: set[str], *paths: Path) -> Counter[str]:
    deadline = time.monotonic() + 15
    while (found := logged(*paths)).keys() < wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_no_line_is_lost_or_doubled_when_the_file_is_moved_away(
    service: Service, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "gunicorn.log"
    moved = [log.with_suffix(f".{number}") for number in range(3)]
    with asking(service) as names:
        for path in moved:
            time.sleep(0.4)
            log.rename(path)
            while not log.exists():
                time.sleep(0.01)
    found = until_logged(names, log, *moved)
    assert found.keys() == names
    assert set(found.values()) == {1}
    assert logged(log)


def test_after_the_file_was_copied_and_cut_lines_go_on_at_its_beginning(
    service: Service, tmp_path: Path
) -> None:
    log, copy = tmp_path / "logs" / "gunicorn.log", tmp_path / "copy"
    with asking(service):
        time.sleep(0.5)
    with log.open("r+b") as file:  # as logrotate's copytruncate does
        copy.write_bytes(file.read())
        file.truncate(0)
    with asking(service) as names:
        time.sleep(0.5)
    assert until_logged(names, log).keys() == names
    assert b"\0" not in log.read_bytes()
    assert logged(copy)
