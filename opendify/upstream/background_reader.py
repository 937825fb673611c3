"""Reads responses that no caller waits for: those of disconnected callers, and Dify's to a stop.

One thread reads all of them. It starts with the first one, so a process forked before that has its
own.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from queue import SimpleQueue

from opendify.streaming import WaitFor

log = logging.getLogger(__name__)

# Each holds a connection to Dify; beyond this, the oldest are dropped.
MAX_PENDING = 128

# Bytes in TLS buffers do not make a descriptor readable, so all readers run at least this often.
_MAX_POLL_SECONDS = 0.5

# A generator that is resumed after each WaitFor, usually with something to read. Must not block.
Steps = Generator[WaitFor, None, None]


class BackgroundReader:
    """Resumes generators when their descriptors are readable. One that raises is logged and
    closed."""

    def __init__(self, max_pending: int = MAX_PENDING) -> None:
        self._max_pending = max_pending
        self._added: SimpleQueue[Steps] = SimpleQueue()
        self._waiting: dict[Steps, WaitFor] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake_pipe = (-1, -1)

    def __len__(self) -> int:
        """How many generators have not ended."""
        return self._count

    def add(self, steps: Steps) -> None:
        """Takes over a generator; its first step runs on the background thread too. Where the
        system has no thread or descriptor left, the generator is started and closed immediately,
        so that it releases its resources."""
        with self._lock:
            self._count += 1
            is_started = self._start()
            if is_started:
                self._added.put(steps)
                os.write(self._wake_pipe[1], b"\0")
        if not is_started:
            with suppress(StopIteration):  # a generator that never started runs no ``finally``
                next(steps)
            self._end(steps)

    def _start(self) -> bool:
        """Starts the thread if necessary; returns whether it runs."""
        if self._thread is not None and self._thread.is_alive():
            return True
        try:
            self._wake_pipe = os.pipe()
            self._thread = threading.Thread(target=self._run, name="background-reader", daemon=True)
            self._thread.start()
        except (OSError, RuntimeError) as exc:
            log.error("the response of a disconnected caller cannot be read: %s", exc)
            return False
        return True

    def _run(self) -> None:
        while True:
            ready = self._poll()
            if self._wake_pipe[0] in ready:
                os.read(self._wake_pipe[0], 1)
                self._advance(self._added.get())
            now = time.monotonic()
            for steps, wait in list(self._waiting.items()):
                if wait.descriptor in ready or now >= wait.deadline or not ready:
                    self._advance(steps)
            while len(self._waiting) > self._max_pending:
                log.info("too many responses of disconnected callers: the oldest is dropped")
                self._end(next(iter(self._waiting)))

    def _poll(self) -> set[int]:
        poll = select.poll()
        poll.register(self._wake_pipe[0], select.POLLIN)
        earliest = float("inf")
        for wait in self._waiting.values():
            poll.register(wait.descriptor, select.POLLIN)
            earliest = min(earliest, wait.deadline)
        seconds = min(max(0.0, earliest - time.monotonic()), _MAX_POLL_SECONDS)
        return {
            descriptor for descriptor, _ in poll.poll(seconds * 1000 if self._waiting else None)
        }

    def _advance(self, steps: Steps) -> None:
        try:
            wait = next(steps)
            if wait.descriptor < 0:
                raise ValueError("the descriptor to wait for is closed")
        except StopIteration:
            self._end(steps)
        except Exception:
            log.exception("unexpected error in the response of a disconnected caller")
            self._end(steps)
        else:
            self._waiting[steps] = wait

    def _end(self, steps: Steps) -> None:
        self._waiting.pop(steps, None)
        try:
            steps.close()
        except Exception:
            log.exception("unexpected error in the response of a disconnected caller")
        with self._lock:
            self._count -= 1
