"""The tier on a real engine: when it runs, and how it ends where no engine comes up."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.service import ROOT

WORDS = 'echo "$0 $*" >>"$CALLS"\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """.ci/run and what it starts, where everything but the engine is quick and good."""
    for name in (".ci/run", "tests/docker/run"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, tmp_path / name)
    put(tmp_path / "scripts/venv.sh", "find_python() { :; }\ninstall_requirements() { :; }\n")
    script = (ROOT / ".ci/run").read_text()
    for name in re.findall(r"^(?:\./)?([\w./]+/[\w.]+)$", script, re.MULTILINE):
        put(tmp_path / name, "")
    put(tmp_path / "run_tests.sh", WORDS)
    put(tmp_path / "bin/docker", "exit 1\n")
    put(tmp_path / ".venv/bin/python", WORDS)
    engine(tmp_path, "echo export DOCKER_HOST=unix:///x")
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(0o755)


def engine(checkout: Path, answer_to_up: str) -> None:
    put(
        checkout / "tests/docker/engine.sh", f"{WORDS}case $1 in up | env) {answer_to_up} ;; esac\n"
    )


def ci(checkout: Path, **variables: str) -> tuple[int, str, list[str]]:
    """Exit code, what was said, and the calls of the parts that stand in."""
    calls = checkout / "calls"
    done = subprocess.run(
        [checkout / ".ci/run"],
        env={
            "PATH": f"{checkout}/bin:{os.defpath}",
            "CALLS": str(calls),
            "ENGINE_SECONDS": "1",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=40,
    )
    return done.returncode, done.stderr, calls.read_text().splitlines()


def test_the_tier_always_runs_and_its_engine_ends_with_it(checkout: Path) -> None:
    code, _, calls = ci(checkout)
    assert code == 0
    assert [call.removeprefix(f"{checkout}/") for call in calls] == [
        "./run_tests.sh --cov --cov-report=term:skip-covered",
        "tests/docker/engine.sh up",
        "tests/docker/engine.sh env",
        ".venv/bin/python -m pytest -m docker tests/docker",
        "tests/docker/engine.sh down",
    ]


def test_what_fails_is_not_run_again(checkout: Path) -> None:
    put(checkout / "run_tests.sh", f"{WORDS}exit 3\n")
    code, _, calls = ci(checkout, SKIP_DOCKER="1")
    assert code == 3
    assert len(calls) == 1


@pytest.mark.parametrize("how", ["echo no cgroups >&2; exit 1", "sleep 50"])
def test_an_engine_that_does_not_come_up_fails_with_the_remedy(checkout: Path, how: str) -> None:
    engine(checkout, how)
    code, said, calls = ci(checkout)
    assert code == 69
    assert "SKIP_DOCKER=1 .ci/run" in said
    assert calls[-1].endswith("engine.sh down")


def test_it_is_left_out_only_on_request_and_reports_it(checkout: Path) -> None:
    code, said, calls = ci(checkout, SKIP_DOCKER="1")
    assert code == 0
    assert "nothing was tested on a Docker engine" in said
    assert len(calls) == 1


def test_an_engine_that_answers_is_used_and_left_running(checkout: Path) -> None:
    put(checkout / "bin/docker", "exit 0\n")
    code, _, calls = ci(checkout)
    assert code == 0
    assert not [call for call in calls if "engine.sh" in call]
