"""Takes streamed answers as the main loop of a worker does, one packet of Dify's at a time."""

import select
import threading
import time
from collections.abc import Iterator
from typing import Any

from flask import Flask
from werkzeug.test import EnvironBuilder

from opendify.streaming import READY, WaitFor
from tests.support.fake_dify import Step

_PATIENCE = 5.0


class Packets:
    """What a fake Dify sends: a packet only when the one before was taken."""

    def __init__(self, raw: bytes, size: int, end: Step) -> None:
        self._packets = [raw[at : at + size] for at in range(0, len(raw), size)]
        self._end = end
        self._is_wanted = threading.Semaphore(1)

    def __iter__(self) -> Iterator[Step]:
        for packet in self._packets:
            self._is_wanted.acquire(timeout=_PATIENCE)
            yield packet
        yield self._end

    def want(self) -> None:
        """The next may be sent."""
        self._is_wanted.release()


def looped(app: Flask, question: dict[str, Any], packets: Packets) -> tuple[int, bytes]:
    """Status and body of the answer."""
    told: list[str] = []
    builder = EnvironBuilder(method="POST", path="/v1/chat/completions", json=question)
    stopper = threading.Event()
    # What is read before an answer has begun is read in a thread, which wants all of it.
    pump = threading.Thread(target=_pump, args=(packets, stopper), daemon=True)
    pump.start()
    body: Any = app(builder.get_environ(), lambda status, headers, exc=None: told.append(status))
    stopper.set()
    pump.join()
    try:
        pieces = list(_taken(iter(getattr(body, "steps", body)), packets))
    finally:
        body.close()
    return int(told[0][:3]), b"".join(pieces)


def _pump(packets: Packets, stopper: threading.Event) -> None:
    while not stopper.wait(0.002):
        packets.want()


def _taken(steps: Any, packets: Packets) -> Iterator[bytes]:
    sent = None
    while True:
        try:
            step = steps.send(sent) if sent else next(steps)
        except StopIteration:
            return
        sent = None
        if isinstance(step, WaitFor):
            packets.want()
            if not step.needs_thread and _is_readable(step):
                sent = READY
        else:
            yield step


def _is_readable(wait: WaitFor) -> bool:
    poll = select.poll()
    poll.register(wait.descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, wait.deadline - time.monotonic()) * 1000))
