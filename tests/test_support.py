"""What tests rely on: ports, waiting, programs."""

import socket
import subprocess
import sys

import pytest

from tests.support import programs
from tests.support.ports import free_port
from tests.support.service import ROOT
from tests.support.waiting import wait_for, wait_for_value

SOME = "from tests.support.ports import free_port; print(*[free_port() for _ in range({})])"


def test_processes_that_run_at_once_get_different_ports() -> None:
    script = SOME.format(100) + "\nimport sys; sys.stdout.flush(); sys.stdin.read()"
    command = [sys.executable, "-c", script]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(3)
    ]
    ports: list[str] = []
    for process in started:
        assert process.stdout is not None
        ports += process.stdout.readline().split()
    for process in started:
        process.communicate(timeout=30)
    assert len(set(ports)) == len(ports) == 300


def test_a_port_that_is_taken_is_not_given() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert free_port() != port


def test_what_is_waited_for_is_returned() -> None:
    values = iter([0, "", "found"])
    assert wait_for(lambda: next(values), 5) == "found"
    wait_for_value(iter([1, 2, 3]).__next__, 3, 5)


def test_what_does_not_come_is_named() -> None:
    with pytest.raises(AssertionError, match=r"waited 0\.05 s in vain for the answer"):
        wait_for(lambda: False, 0.05, "the answer")
    with pytest.raises(AssertionError, match="1 did not become 2"):
        wait_for_value(lambda: 1, 2, 0.05)


def test_a_missing_program_is_skipped_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(programs.os, "defpath", "")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install redis-server"):
        programs.require_program("redis-server")


def test_in_ci_a_missing_program_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not installed"):
        programs.require_program("no-such-program")


def test_each_program_is_listed_once_with_a_package() -> None:
    lines = [line for line in programs.LIST.read_text().splitlines() if not line.startswith("#")]
    assert len(programs.packages()) == len(lines)
    assert lines == sorted(lines)
