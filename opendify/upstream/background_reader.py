"""Reads what nobody waits for: answers whose callers have left, and what Dify says to a stop.

One thread for all of it, begun when there is something to read: a process forked before that has
one of its own.
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

# Each holds a connection to Dify; where there are more, those that waited longest are given up.
MOST = 128

# What TLS holds back shows on no descriptor, so all are looked at now and then.
_LOOK_SECONDS = 0.5

# Goes on after each Wait, mostly with something to read; never blocks for long.
Steps = Generator[WaitFor, None, None]


class BackgroundReader:
    """Takes steps whenever what they wait for is there. Steps that raise are logged and over."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._new: SimpleQueue[Steps] = SimpleQueue()
        self._waiting: dict[Steps, WaitFor] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._alarm = (-1, -1)

    def __len__(self) -> int:
        """How much is not over."""
        return self._count

    def add(self, steps: Steps) -> None:
        """Takes over; the first step is made on the thread too. Where the system has no thread or
        descriptor for that, the steps are begun and ended at once, so that they free what they
        hold."""
        with self._lock:
            self._count += 1
            is_started = self._start()
            if is_started:
                self._new.put(steps)
                os.write(self._alarm[1], b"\0")
        if not is_started:
            with suppress(StopIteration):  # what was never begun would run no ``finally``
                next(steps)
            self._end(steps)

    def _start(self) -> bool:
        """Whether there is a thread."""
        if self._thread is not None and self._thread.is_alive():
            return True
        try:
            self._alarm = os.pipe()
            self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
            self._thread.start()
        except (OSError, RuntimeError) as exc:
            log.error("what a caller has left behind cannot be watched: %s", exc)
            return False
        return True

    def _run(self) -> None:
        while True:
            ready = self._poll()
            if self._alarm[0] in ready:
                os.read(self._alarm[0], 1)
                self._go_on(self._new.get())
            now = time.monotonic()
            for steps, wait in list(self._waiting.items()):
                if wait.descriptor in ready or now >= wait.until or not ready:
                    self._go_on(steps)
            while len(self._waiting) > self._most:
                log.info("too much is waited for that callers left behind: one is given up")
                self._end(next(iter(self._waiting)))

    def _poll(self) -> set[int]:
        poll = select.poll()
        poll.register(self._alarm[0], select.POLLIN)
        first = float("inf")
        for wait in self._waiting.values():
            poll.register(wait.descriptor, select.POLLIN)
            first = min(first, wait.until)
        seconds = min(max(0.0, first - time.monotonic()), _LOOK_SECONDS)
        return {
            descriptor for descriptor, _ in poll.poll(seconds * 1000 if self._waiting else None)
        }

    def _go_on(self, steps: Steps) -> None:
        try:
            wait = next(steps)
            if wait.descriptor < 0:
                raise ValueError("what is waited for is closed")
        except StopIteration:
            self._end(steps)
        except Exception:
            log.exception("unexpected error in what a caller has left behind")
            self._end(steps)
        else:
            self._waiting[steps] = wait

    def _end(self, steps: Steps) -> None:
        self._waiting.pop(steps, None)
        try:
            steps.close()
        except Exception:
            log.exception("unexpected error in what a caller has left behind")
        with self._lock:
            self._count -= 1
