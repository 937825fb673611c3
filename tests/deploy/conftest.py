"""A host with nothing but deploy.sh and a fake docker on it."""

import copy
import gzip
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .fake_docker import NEW, FakeDocker, fresh_state, put_client

ROOT = Path(__file__).resolve().parents[2]
GOOD = """DIFY_API_BASE="https://dify.example.com/v1"
MODEL_CONFIG='{"gpt-4":"app-secret-key-1234"}'
SERVER_HOST="0.0.0.0"
SERVER_PORT=59871
"""
DEPLOYED: list[dict[str, Any]] = []


@dataclass
class Host:
    """The folder that deploy.sh was copied to, and the engine's folder."""

    folder: Path
    engine: Path
    environment: dict[str, str]
    docker: FakeDocker

    def run(
        self, *words: str, stdin: str | bytes | None = None, code: int | None = 0, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs deploy.sh without a terminal and checks its exit code."""
        text = stdin.decode() if isinstance(stdin, bytes) else stdin
        done = subprocess.run(
            ["bash", str(self.folder / "deploy.sh"), *words],
            cwd=self.folder,
            env=self.environment | more,
            input=text if text is not None else "",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def interrupt(
        self, *words: str, at: str, by: signal.Signals = signal.SIGTERM, **more: str
    ) -> tuple[int, str]:
        """Sends the signal when the engine is called for ``at``. Exit code and what was said."""
        self.forget_calls()
        with subprocess.Popen(
            ["bash", str(self.folder / "deploy.sh"), *words],
            cwd=self.folder,
            env=self.environment | more,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        ) as process:
            deadline = time.monotonic() + 30
            while at not in [call[0] for call in self.calls()]:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            if by == signal.SIGKILL:
                os.killpg(process.pid, by)
            else:
                process.send_signal(by)
            _, said = process.communicate(timeout=30)
        return process.returncode, said

    @property
    def env_file(self) -> Path:
        return self.folder / ".env.production"

    def configure(self, text: str = GOOD, name: str = ".env.production") -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def deploy(self) -> None:
        """As after a first deploy of GOOD, which is really run only once in a test run."""
        self.configure()
        if not DEPLOYED:
            self.run("deploy")
            DEPLOYED.append(self.state())
            self.forget_calls()
        self.change(**copy.deepcopy(DEPLOYED[0]))

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(self.docker.state)

    def change(self, **values: Any) -> None:
        self.docker.state.update(values)

    def containers(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.state()["containers"]}

    def running(self) -> dict[str, str]:
        """Name to image of what runs."""
        return {
            name: one["image"]
            for name, one in self.containers().items()
            if one["state"] == "running"
        }

    def calls(self) -> list[list[str]]:
        return list(self.docker.calls)

    def forget_calls(self) -> None:
        self.docker.calls.clear()

    def new_image(self, **behaviour: str) -> None:
        state = self.state()
        state["images"]["opendify:latest"] = NEW
        state["behaviour"][NEW] = behaviour
        self.change(**state)

    def archive(self, reference: str = "opendify:latest", image: str = NEW) -> Path:
        path = self.folder / "opendify.tar.gz"
        plain = json.dumps({"reference": reference, "id": image})
        path.write_bytes(gzip.compress(plain.encode()))
        return path


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    folder, engine, programs = tmp_path / "the host", tmp_path / "engine", tmp_path / "bin"
    for path in (folder, engine, programs, engine / "volumes", tmp_path / "run"):
        path.mkdir(mode=0o700)
    shutil.copy(ROOT / "deploy.sh", folder)
    put_client(programs)
    docker = FakeDocker(engine, fresh_state())
    environment = {
        "PATH": f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "USER": "tester",
        "LC_ALL": "C.UTF-8",
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "FAKE_DOCKER": str(engine),
    }
    yield Host(folder, engine, environment, docker)
    docker.close()
    assert not list((tmp_path / "run").glob("opendify.*[!k]")), "a private folder was left behind"
