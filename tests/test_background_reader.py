"""What nobody waits for, read on one thread."""

import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest

from opendify.upstream.background_reader import BackgroundReader, Steps, WaitFor
from tests.support.waiting import wait_for_value


class Pipe:
    def __init__(self) -> None:
        self.out, self.into = os.pipe()

    def close(self) -> None:
        os.close(self.out)
        os.close(self.into)


@pytest.fixture
def pipes() -> Iterator[list[Pipe]]:
    made = [Pipe() for _ in range(3)]
    yield made
    for pipe in made:
        pipe.close()


def reading(pipe: Pipe, received: list[bytes], seconds: float = 10) -> Steps:
    """Reads until "." comes or it is time, and then says "closed"."""
    until = time.monotonic() + seconds
    try:
        while b"." not in received and time.monotonic() < until:
            yield WaitFor(pipe.out, until)
            if time.monotonic() < until:
                received.append(os.read(pipe.out, 1))
    finally:
        received.append(b"closed")


def watchers() -> int:
    return [thread.name for thread in threading.enumerate()].count("background-reader")


def test_all_are_read_on_one_thread_which_is_begun_when_it_is_needed(pipes: list[Pipe]) -> None:
    before = watchers()
    watcher = BackgroundReader()
    assert watchers() == before
    received: list[list[bytes]] = [[], [], []]
    for pipe, one in zip(pipes, received, strict=True):
        watcher.add(reading(pipe, one))
    assert watchers() == before + 1
    for pipe in reversed(pipes):
        os.write(pipe.into, b"a")
    for pipe in pipes:
        os.write(pipe.into, b".")
    wait_for_value(lambda: len(watcher), 0)
    assert received == [[b"a", b".", b"closed"]] * 3


def test_what_has_no_time_left_is_over(pipes: list[Pipe]) -> None:
    watcher, received, late = BackgroundReader(), list[bytes](), list[bytes]()
    watcher.add(reading(pipes[0], received, seconds=0.05))
    watcher.add(reading(pipes[1], late))
    wait_for_value(lambda: len(watcher), 1)
    assert (received, late) == ([b"closed"], [])
    os.write(pipes[1].into, b".")
    wait_for_value(lambda: len(watcher), 0)


def test_of_too_many_the_oldest_is_given_up(pipes: list[Pipe]) -> None:
    watcher = BackgroundReader(max_pending=2)
    received: list[list[bytes]] = [[], [], []]
    for number, (pipe, one) in enumerate(zip(pipes, received, strict=True)):
        watcher.add(reading(pipe, one))
        wait_for_value(lambda: len(watcher), min(number + 1, 2))
    assert received == [[b"closed"], [], []]


def test_one_that_fails_is_logged_and_harms_no_other(
    pipes: list[Pipe], caplog: pytest.LogCaptureFixture
) -> None:
    def failing(descriptor: int) -> Steps:
        if descriptor < 0:
            raise RuntimeError("of the test")
        yield WaitFor(descriptor if descriptor else -1, time.monotonic() + 10)
        raise RuntimeError("of the test")

    watcher, received = BackgroundReader(), list[bytes]()
    os.write(pipes[1].into, b"x")
    with caplog.at_level(logging.ERROR):
        watcher.add(failing(-1))
        watcher.add(failing(0))
        watcher.add(failing(pipes[1].out))
        watcher.add(reading(pipes[0], received))
        wait_for_value(lambda: len(watcher), 1)
    assert caplog.text.count("RuntimeError: of the test") == 2
    assert "the descriptor to wait for is closed" in caplog.text
    os.write(pipes[0].into, b".")
    wait_for_value(lambda: len(watcher), 0)
    assert received == [b".", b"closed"]
