"""A real Redis server on loopback, for as long as a test needs it."""

import signal
import subprocess
import tempfile
from pathlib import Path

import redis

from tests.support.ports import free_port
from tests.support.programs import require_program
from tests.support.waiting import wait_for


class RedisServer:
    """Holds everything in memory only: what is killed has forgotten all."""

    def __init__(self, *options: str) -> None:
        program = require_program("redis-server")
        self._folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._command += ["--save", "", "--appendonly", "no", "--dir", self._folder.name, *options]
        self.start()

    def start(self) -> None:
        with Path(self._folder.name, "log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_for(self._answers)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def empty(self) -> None:
        with self.client() as client:
            client.flushall()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """It accepts connections and says nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self._folder.cleanup()

    def _answers(self) -> bool:
        assert self.process.poll() is None, Path(self._folder.name, "log").read_text()
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False
