"""Work that nobody waits for."""

import logging
import threading

import pytest

from opendify.upstream.asides import Asides


def test_work_is_done_aside_and_only_so_much_at_a_time() -> None:
    asides, may_end, done = Asides(most=2), threading.Event(), threading.Semaphore(0)

    def work() -> None:
        may_end.wait(10)
        done.release()

    assert [asides.run(work) for _ in range(3)] == [True, True, False]
    may_end.set()
    assert done.acquire(timeout=10) and done.acquire(timeout=10)


def test_work_that_fails_is_logged_and_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    asides, done = Asides(most=1), threading.Event()

    def fail() -> None:
        done.set()
        raise RuntimeError("of the test")

    with caplog.at_level(logging.ERROR):
        assert asides.run(fail)
        assert done.wait(10)
        while not asides.run(lambda: None):
            done.wait(0.01)
    assert "RuntimeError: of the test" in caplog.text
