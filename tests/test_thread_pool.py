"""The threads of a worker, where the system gives no more of them."""

import threading

import pytest

from opendify.worker.thread_pool import ThreadPool


def test_what_is_to_be_done_waits_for_a_thread_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = threading.Event()
    with ThreadPool(4) as threads:
        first = threads.submit(go_on.wait, 10)
        monkeypatch.setattr(threading.Thread, "start", _refused)
        others = [threads.submit(lambda n=n: n) for n in range(3)]
        go_on.set()
        assert first.result(10)
        assert [other.result(10) for other in others] == [0, 1, 2]


def test_without_any_thread_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", _refused)
    with pytest.raises(RuntimeError):
        ThreadPool(4).submit(int)


def _refused(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
