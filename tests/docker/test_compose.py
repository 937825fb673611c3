"""The Compose files on a real engine. Images are built beforehand: builds need the network."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.fake_dify import FakeDify
from tests.support.ports import free_port

from .conftest import ROOT, docker

pytestmark = pytest.mark.docker
Compose = Callable[..., str]


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Compose]:
    """`docker compose` in a copy of the project with a project name of its own."""
    shutil.copytree(
        ROOT,
        tmp_path / "project",
        ignore=shutil.ignore_patterns(".git", ".venv", ".env", "data", "tests", "__pycache__"),
    )
    environment = os.environ | {
        "COMPOSE_PROJECT_NAME": "opendify-test",
        "SERVER_PORT": str(free_port()),
    }

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            ["docker", "compose", *words],
            cwd=tmp_path / "project",
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    run.folder = tmp_path / "project"  # type: ignore[attr-defined]
    run.url = f"http://127.0.0.1:{environment['SERVER_PORT']}"  # type: ignore[attr-defined]
    yield run
    for file in ("docker-compose.dev.yml", "docker-compose.yml"):
        with_settings = {"DIFY_API_BASE": "x", "MODEL_CONFIG": "x"}
        (tmp_path / "project" / ".env").touch()
        subprocess.run(
            ["docker", "compose", "-f", file, "down", "--volumes", "--timeout", "5"],
            cwd=tmp_path / "project",
            env=environment | with_settings,
            check=True,
            capture_output=True,
        )


def ask(url: str, model: str) -> str:
    answer = httpx.post(
        f"{url}/v1/chat/completions",
        headers={"X-OpenWebUI-Chat-Id": "one"},
        json={"model": model, "messages": [{"role": "user", "content": "Hi"}]},
        timeout=30,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_production_waits_for_health_and_keeps_its_data(
    image: str, compose: Compose, dify: FakeDify
) -> None:
    models = json.dumps({"tiny": "app-$ecret"})
    (compose.folder / ".env").write_text(
        f"DIFY_API_BASE=\"{dify.base}\"\nMODEL_CONFIG='{models}'\nLOG_FILE=logs/gunicorn.log\n"
    )
    said = compose("up", "-d", "--wait", "--no-build")
    assert "WARN" not in said
    assert ask(compose.url, "tiny") == "Hello"
    assert dify.asked()[0].headers["authorization"] == "Bearer app-$ecret"
    assert docker("exec", "opendify", "sh", "-c", "test -s logs/gunicorn.log && id -u") == "1000"
    compose("down")
    compose("up", "-d", "--wait", "--no-build")
    counted = httpx.get(f"{compose.url}/v1/conversation/mappings", trust_env=False).json()
    assert counted["mapping_count"] == 1


def test_what_is_missing_is_named_before_anything_starts(compose: Compose) -> None:
    (compose.folder / ".env").write_text("LOG_LEVEL=info\n")
    said = compose("up", "-d", "--no-build", code=1)
    assert "DIFY_API_BASE" in said and "MODEL_CONFIG" in said


def test_development_has_a_demo_and_reloads(compose: Compose) -> None:
    docker(
        *("build", "-q", "--network", "host", "-t", "opendify-dev:latest"),
        *("-f", str(ROOT / "Dockerfile.dev"), str(ROOT)),
    )
    dev = ("-f", "docker-compose.dev.yml")
    compose(*dev, "up", "-d", "--wait", "--no-build")
    assert ask(compose.url, "demo-chat")
    room = compose.folder / "opendify" / "errors.py"
    room.write_text(room.read_text() + "\nraise SystemExit('seen by the reloader')\n")
    deadline = time.monotonic() + 60
    while "seen by the reloader" not in compose(*dev, "logs"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert not (compose.folder / "data").exists()
