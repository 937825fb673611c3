"""A real engine with our image on it, and hosts that deploy onto it."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.support.fake_dify import FakeDify
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]


def docker(*words: str, code: int | None = 0, **more: object) -> str:
    """Runs docker and gives what it printed."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, **more)
    assert code is None or done.returncode == code, (words, done.stdout, done.stderr)
    return done.stdout.strip()


def fact(name: str, form: str) -> str:
    return docker("inspect", "-f", form, name)


def build(tag: str, text: str) -> None:
    docker("build", "-q", "-t", tag, "-", input=text)


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """These tests remove what is called opendify: never somebody's own."""
    names = docker("ps", "-a", "--format", "{{.Names}}").split()
    names += docker("volume", "ls", "-q").split()
    mine = [name for name in names if name.startswith("opendify")]
    if mine:
        pytest.exit(f"An OpenDify is in use on this Docker engine ({', '.join(mine)}).", 2)


@pytest.fixture(scope="session")
def image() -> str:
    """The image as the Dockerfile makes it."""
    docker("build", "-q", "--network", "host", "-t", "opendify:latest", str(ROOT))
    return docker("image", "inspect", "-f", "{{.Id}}", "opendify:latest")


@pytest.fixture(scope="session")
def quick(image: str) -> str:
    """The same, asked for its health every second, so that tests need not wait ten."""
    check = docker("image", "inspect", "-f", "{{json .Config.Healthcheck.Test}}", image)
    words = json.dumps(json.loads(check)[1:])
    build("opendify:quick", f"FROM opendify:latest\nHEALTHCHECK --interval=1s CMD {words}\n")
    return "opendify:quick"


@pytest.fixture(scope="session")
def gateway(image: str) -> str:
    """This machine, as containers see it: the way out of their network."""
    routes = docker("run", "--rm", image, "cat", "/proc/net/route").splitlines()
    way = next(line.split()[2] for line in routes if line.split()[1] == "00000000")
    return socket.inet_ntoa(int(way, 16).to_bytes(4, "little"))


@pytest.fixture
def dify(gateway: str) -> Iterator[FakeDify]:
    fake = FakeDify(host=gateway)
    yield fake
    fake.close()


@dataclass
class Server:
    """A folder with deploy.sh in it, and what it deployed."""

    folder: Path
    port: int = field(default_factory=free_port)

    def run(
        self, *words: str, code: int | None = 0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["./deploy.sh", *words],
            cwd=self.folder,
            env=os.environ | {"LC_ALL": "C.UTF-8"},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert code is None or done.returncode == code, (words, done.stdout, done.stderr)
        return done

    def set_up(self, base: str, name: str = ".env.production", port: int = 0) -> None:
        answers = f"{base}\ntiny\napp-secret-of-the-operator\ndone\n"
        shown = str(port or self.port)
        self.run("setup", "--env-file", name, "--port", shown, "--yes", stdin=answers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def models(self) -> int:
        return httpx.get(f"{self.url}/v1/models", timeout=10, trust_env=False).status_code

    def chat(self, chat_id: str) -> str:
        answer = httpx.post(
            f"{self.url}/v1/chat/completions",
            headers={"X-OpenWebUI-Chat-Id": chat_id},
            json={"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]},
            timeout=30,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]

    def mappings(self) -> int:
        answer = httpx.get(f"{self.url}/v1/conversation/mappings", timeout=10, trust_env=False)
        return answer.json()["mapping_count"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    shutil.copy(ROOT / "deploy.sh", tmp_path)
    yield Server(tmp_path)
    ids = docker("ps", "-aq", "--filter", "label=opendify.managed=1").split()
    if ids:
        docker("rm", "-f", *ids)
    for volume in docker("volume", "ls", "-q").split():
        if volume.startswith("opendify"):
            docker("volume", "rm", volume)


class Watch:
    """Asks for the models all the time and counts what went wrong."""

    def __init__(self, server: Server) -> None:
        self.good = self.bad = 0
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(20)

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                self.good += self._server.models() == 200
            except httpx.HTTPError:
                self.bad += 1
            time.sleep(0.1)
