"""The threads of a worker."""

from concurrent.futures import ThreadPoolExecutor


class ThreadPool(ThreadPoolExecutor):
    """Goes on with the threads there are where the system gives no more of them: whoever asks for
    one is the main loop, on which all streams of the worker depend."""

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:  # "can't start new thread"; what is to be done waits for another
            if not self._threads:
                raise
