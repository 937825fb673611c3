"""Caps what this process does at once: responses, runs of each model, and file downloads."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from threading import Lock

from opendify import errors

# Most responses take longer, but they do not all finish at the same time.
RETRY_SECONDS = 2

# Files are sent on the threads that responses leave free; a quarter of these is reserved for
# everything else.
_RESERVED_DIVISOR = 4
_RESPONSES_PER_FILE = 4
# One for a file and one for everything else.
_MIN_FREE_THREADS = 2

Release = Callable[[], None]

_RESPONSES_EXHAUSTED = "OpenDify is answering as many requests as it can; try again in a moment."
_FILES_EXHAUSTED = "OpenDify is sending as many files as it can; try again in a moment."


class ServerCapacity:
    """Caps concurrent responses, runs and file downloads.

    ``max_responses`` caps responses; it stays below the thread count so that rejections still get
    a thread. ``max_runs`` caps the concurrent Dify runs of a model, for the models that have a
    limit. ``max_files`` caps file downloads (default: ``max_responses``);
    ``files_count_as_responses`` makes each download use a response permit as well.

    Each ``acquire_*`` method returns the function that releases the permit (calling it again does
    nothing), or raises Overloaded at once where no permit is free.
    """

    def __init__(
        self,
        max_responses: int,
        max_runs: Mapping[str, int],
        max_files: int | None = None,
        files_count_as_responses: bool = False,
    ) -> None:
        self.max_responses = max_responses
        self._files_count_as_responses = files_count_as_responses
        self._responses = _PermitPool(max_responses, _RESPONSES_EXHAUSTED)
        self._files = _PermitPool(
            max_responses if max_files is None else max_files, _FILES_EXHAUSTED
        )
        self._runs = {
            model: _PermitPool(
                limit,
                f"The model '{model}' is answering as many requests as it may; "
                "try again in a moment.",
            )
            for model, limit in max_runs.items()
        }

    def acquire_response(self) -> Release:
        """Acquire a permit for one response; release it once that is sent."""
        return self._responses.acquire()

    def acquire_run(self, model: str) -> Release:
        """Acquire a permit for one run of this model; release it once the run has finished in Dify
        and its response is sent."""
        pool = self._runs.get(model)
        return pool.acquire() if pool is not None else _no_op

    def acquire_file(self) -> Release:
        """Acquire a permit for one file download; release it once the file is sent."""
        with ExitStack() as permits:
            permits.callback(self._files.acquire())
            if self._files_count_as_responses:
                permits.callback(self._responses.acquire())
            return permits.pop_all().close


def files_count_as_responses(threads: int, max_responses: int) -> bool:
    """Whether downloads have to use response permits: so few threads are spare that a slow download
    could occupy the last one, and no rejection could be sent."""
    return threads - max_responses < _MIN_FREE_THREADS


def max_files(threads: int, max_responses: int) -> int:
    """How many files a process with ``threads`` threads sends at once: at least one, fewer than
    ``max_responses``, and more than one only on threads that responses never need."""
    free = threads - max_responses
    reserved = max(1, free // _RESERVED_DIVISOR)
    return max(1, min(free - reserved, max_responses // _RESPONSES_PER_FILE))


class _PermitPool:
    def __init__(self, limit: int, message: str) -> None:
        self._free = limit
        self._message = message
        self._lock = Lock()

    def acquire(self) -> Release:
        with self._lock:
            if self._free <= 0:
                raise errors.Overloaded(self._message, retry_after=RETRY_SECONDS)
            self._free -= 1
        return _Permit(self).release

    def release(self) -> None:
        with self._lock:
            self._free += 1


class _Permit:
    """A permit that is held until the first call of ``release``."""

    def __init__(self, pool: _PermitPool) -> None:
        self._pool: _PermitPool | None = pool
        self._lock = Lock()

    def release(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.release()


def _no_op() -> None:
    """The release function where there is no limit."""
