"""Ports for servers that are started in processes of their own."""

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import TextIO

# Below the ports that the kernel gives to outgoing connections (from 32768), one of which could
# take the port before the server listens.
_PORTS = range(20000, 30000)
_reserved: list[TextIO] = []


def free_port() -> int:
    """A port on which nothing listens. No other test gets it as long as this process runs: that is
    what a lock on a file of the port's name says, also to test processes that run at once."""
    folder = Path(tempfile.gettempdir(), f"opendify-test-ports-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    for _ in range(1000):
        port = random.SystemRandom().choice(_PORTS)
        lock = (folder / str(port)).open("w")
        if _is_locked(lock) and _is_free(port):
            _reserved.append(lock)
            return port
        lock.close()
    raise AssertionError(f"no port is free from {_PORTS.start} to {_PORTS.stop - 1}")


def _is_locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
