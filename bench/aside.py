"""What is measured beside the answers themselves: health under load, and memory."""

import asyncio
import http.client
import threading
import time
from array import array

import uvloop

from bench import processes
from bench.load import Load, run, worst
from bench.subjects import Running


def health_under_load(subject: Running, streams: int, seconds: float) -> dict[str, float]:
    """The 99th of a hundred answer times of each health check, in seconds, while streams run."""
    times: dict[str, array[float]] = {path: array("d") for path in subject.checks}
    stop = threading.Event()
    asking = threading.Thread(target=_ask_again_and_again, args=(subject, times, stop))
    asking.start()
    try:
        uvloop.run(run(Load(streams, int(seconds / 0.02), 20, ramp=0.5), subject.door))
    finally:
        stop.set()
        asking.join()
    return {path: worst(seen) for path, seen in times.items()}


def memory_per_stream(subject: Running, few: int, many: int) -> float:
    """Bytes that one more open stream takes, its thread included where it has one: the difference
    between a few streams and many in a subject that never had more."""
    low, high = _memory_with(subject, few), _memory_with(subject, many)
    return (high - low) / (many - few)


def _memory_with(subject: Running, streams: int) -> int:
    return uvloop.run(_weigh(subject, streams))


async def _weigh(subject: Running, streams: int) -> int:
    load = Load(streams, 20, 500, ramp=3)
    running = asyncio.create_task(run(load, subject.door))
    await asyncio.sleep(6)
    weight = await asyncio.to_thread(processes.memory_bytes, subject.pid)
    await running
    return weight


def _ask_again_and_again(
    subject: Running, times: dict[str, "array[float]"], stop: threading.Event
) -> None:
    while not stop.wait(0.01):
        for path, seen in times.items():
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", subject.door.port, timeout=30)
            connection.request("GET", path)
            connection.getresponse().read()
            connection.close()
            seen.append(time.monotonic() - began)
