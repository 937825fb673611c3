"""The worker's threads."""

from concurrent.futures import ThreadPoolExecutor


class ThreadPool(ThreadPoolExecutor):
    """Continues with the existing threads when the system refuses another one. The main loop calls
    ``submit``, so an exception there would end all streams of the worker."""

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:  # "can't start new thread": the task waits for an existing one
            if not self._threads:
                raise
