"""What is measured: Dify asked directly, nginx before it, OpenDify, and others from a file."""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.load import Door

ROOT = Path(__file__).resolve().parent.parent
KEY = "app-bench"
_KEPT = ("PATH", "HOME", "LANG")
# The option's number in Linux's prctl.h.
_PR_SET_PDEATHSIG = 1

NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr; worker_processes auto;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream dify {{ server {authority}; keepalive 128; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass {scheme}://dify; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Running:
    """A subject that serves. ``pid`` is the root of its processes, 0 where it has none."""

    name: str
    door: Door
    pid: int = 0
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A subject that a command line starts in a folder. In its environment, headers and model,
    ``{port}``, ``{upstream}`` and ``{key}`` are filled in, and ``{authority}``: the file of whom
    to trust where Dify has TLS, else nothing. ``copies`` is how often its answers say each token,
    and ``checks`` are the paths that tell its health."""

    name: str
    folder: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=dict)
    model: str = "bench"
    copies: int = 1
    checks: tuple[str, ...] = ()


def others(path: Path) -> list[Command]:
    """The subjects that a JSON file lists; bench/others.example.json shows how."""
    return [Command(**told) for told in json.loads(path.read_text())]


def opendify(folder: Path, variables: Mapping[str, str]) -> Command:
    """This project as its operators run it, but for ``variables``."""
    return Command(
        "OpenDify",
        str(folder),
        [
            sys.executable,
            "-m",
            "gunicorn",
            "--config",
            str(ROOT / "gunicorn_config.py"),
            "main:app",
        ],
        {
            "PYTHONPATH": str(ROOT),
            "DIFY_API_BASE": "{upstream}/v1",
            "MODEL_CONFIG": '{{"bench":"{key}"}}',
            "SERVER_HOST": "127.0.0.1",
            "SERVER_PORT": "{port}",
            **variables,
        },
        checks=("/healthz", "/v1/models"),
    )


@contextmanager
def fake_dify(certificate: Mapping[str, str] | None = None) -> Iterator[tuple[str, int]]:
    """The address of a fake Dify, and its process."""
    port = free_port()
    command = [sys.executable, "-m", "bench.dify", str(port)]
    if certificate:
        command += [certificate["chain"], certificate["key"]]
    with _process(command, ROOT, os.environ, Path(os.devnull), port) as process:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{port}", process.pid


def direct(upstream: str) -> Running:
    """Dify with nothing before it."""
    return Running("Dify directly", _dify_door(int(upstream.rpartition(":")[2])))


@contextmanager
def nginx(folder: Path, upstream: str) -> Iterator[Running]:
    """nginx, which passes everything through."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        sys.exit(
            "The benchmark compares with nginx, which is not installed: apt install nginx-light"
        )
    port = free_port()
    scheme, _, authority = upstream.partition("://")
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(folder=folder, port=port, scheme=scheme, authority=authority))
    command = [program, "-p", str(folder), "-c", str(file)]
    with _process(command, folder, os.environ, folder / "nginx.log", port) as process:
        yield Running("nginx", _dify_door(port), process.pid)


@contextmanager
def started(subject: Command, upstream: str, logs: Path, authority: str = "") -> Iterator[Running]:
    """A subject of a command line, with its processes."""
    port = free_port()
    words = {"port": str(port), "upstream": upstream, "key": KEY, "authority": authority}
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {name: text.format(**words) for name, text in subject.environment.items()}
    headers = {name: text.format(**words) for name, text in subject.headers.items()}
    model = subject.model.format(**words)
    log = logs / f"{subject.name}.log"
    with _process(subject.command, Path(subject.folder), environment, log, port) as process:
        door = Door(
            port,
            subject.path,
            headers,
            lambda *asked: _openai_question(model, *asked),
            copies=subject.copies,
        )
        yield Running(subject.name, door, process.pid, tuple(subject.checks))


def end_with_parent() -> None:
    """The kernel ends this process when the one that started it is no more, however that came."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _dify_door(port: int) -> Door:
    headers = {"Authorization": f"Bearer {KEY}"}
    return Door(port, "/v1/chat-messages", headers, _dify_question, b'"message_end"')


def _dify_question(user: str, prompt: str, streamed: bool) -> dict[str, Any]:
    mode = "streaming" if streamed else "blocking"
    return {"query": prompt, "user": user, "inputs": {}, "response_mode": mode}


def _openai_question(model: str, user: str, prompt: str, streamed: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "user": user, "messages": messages, "stream": streamed}


@contextmanager
def _process(
    command: list[str], folder: Path, environment: Mapping[str, str], log: Path, port: int
) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdout=output,
            stderr=output,
            preexec_fn=end_with_parent,
        )
    try:
        _wait_for(port, process, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            sys.exit(f"{process.args!r} ended before it served:\n{log.read_text()}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{process.args!r} did not serve within 30 s.")
