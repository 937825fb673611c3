"""OpenDify as an operator runs it: real Gunicorn, real sockets, in a folder of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.ports import free_port

ROOT = Path(__file__).parent.parent.parent
_KEPT = ("PATH", "HOME", "LANG", "SSL_CERT_FILE", "COVERAGE_PROCESS_CONFIG")


@dataclass
class Service:
    """A running Gunicorn; ``log`` is the file with all its output."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def threads(self) -> int:
        """How many threads its only worker has."""
        (worker,) = self.workers()
        return len(list(Path(f"/proc/{worker}/task").iterdir()))

    def stop(self, sig: signal.Signals = signal.SIGTERM, timeout: float = 40) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(timeout)


def environment(**variables: str) -> dict[str, str]:
    """What a service sees: nothing of the machine's own settings but where programs are."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


@contextmanager
def running(
    folder: Path,
    variables: Mapping[str, str],
    *arguments: str,
    ready: bool = True,
    application: str = "main:app",
    host: str = "127.0.0.1",
) -> Iterator[Service]:
    """Starts Gunicorn with ``gunicorn_config.py`` in ``folder``, where ``data/`` will be."""
    port = free_port()
    log = folder / f"service-{port}.log"
    command = [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn_config.py")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments, application],
            cwd=folder,
            env=environment(SERVER_HOST=host, SERVER_PORT=str(port), **variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    service = Service(process, f"http://127.0.0.1:{port}", log)
    try:
        if ready:
            wait_until_ready(service)
        yield service
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def wait_until_ready(service: Service, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if service.process.poll() is not None:
            raise AssertionError(f"the service ended:\n{service.output()}")
        try:
            if httpx.get(f"{service.url}/healthz", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"the service did not get ready:\n{service.output()}")


def free_variables(base: str, **more: str) -> dict[str, str]:
    """The least that a service needs, for a Dify at ``base``."""
    return {"DIFY_API_BASE": base, "MODEL_CONFIG": '{"tiny":"app-secret-key"}', **more}


def receive_until(connection: socket.socket, word: bytes) -> bytes:
    """What comes on the connection, up to this word at least."""
    received = b""
    while word not in received:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received


def sent(service: Service, content: Any) -> socket.socket:
    """The connection on which a question for a stream was sent."""
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": content}]}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    caller = socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), 10)
    caller.sendall(head.encode() + data)
    return caller
