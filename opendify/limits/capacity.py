"""How much is done at once in this process: answers, runs of each model, and files."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from threading import Lock

from opendify import errors

# Most answers take longer, but their ends are spread.
RETRY_SECONDS = 2

# Files are sent by the threads that answers leave free; a part of these is for everything else.
_PART_FOR_THE_REST = 4
_ANSWERS_PER_FILE = 4
# One for a file, one for everything else.
_MIN_FREE_THREADS = 2

Release = Callable[[], None]

_ANSWERS_TAKEN = "OpenDify is answering as many requests as it can; try again in a moment."
_FILES_TAKEN = "OpenDify is sending as many files as it can; try again in a moment."


class ServerCapacity:
    """Counts places. ``max_answers`` is how many answers there may be at once, below the number of
    threads, so that threads are left to say that all are taken; ``max_runs`` is how many runs a
    model may have at once in Dify, for the models that have a limit; ``max_files`` is how many
    files may be sent at once, and ``files_take_answers`` whether each of them takes the place of an
    answer as well.

    Each ``take_`` method raises Overloaded, at once, where no place is free; else it returns the
    function that gives the place back. Calling that twice is harmless.
    """

    def __init__(
        self,
        max_answers: int,
        max_runs: Mapping[str, int],
        max_files: int | None = None,
        files_take_answers: bool = False,
    ) -> None:
        self.max_answers = max_answers
        self._files_take_answers = files_take_answers
        self._answers = _Places(max_answers, _ANSWERS_TAKEN)
        self._files = _Places(max_answers if max_files is None else max_files, _FILES_TAKEN)
        self._runs = {
            model: _Places(
                limit,
                f"The model '{model}' is answering as many requests as it may; "
                "try again in a moment.",
            )
            for model, limit in max_runs.items()
        }

    def take_answer(self) -> Release:
        """For one answer, until it is sent."""
        return self._answers.take()

    def take_run(self, model: str) -> Release:
        """For one run of this model, until it is over in Dify and its answer is sent."""
        places = self._runs.get(model)
        return places.take() if places is not None else _nothing_to_release

    def take_file(self) -> Release:
        """For one file, until it is sent."""
        with ExitStack() as taken:
            taken.callback(self._files.take())
            if self._files_take_answers:
                taken.callback(self._answers.take())
            return taken.pop_all().close


def files_take_answers(threads: int, max_answers: int) -> bool:
    """Whether so few threads are left beside answers that one for a file would be the last, and
    nobody could be told anything while its caller reads slowly."""
    return threads - max_answers < _MIN_FREE_THREADS


def max_files(threads: int, max_answers: int) -> int:
    """How many files a process with so many threads sends at once: fewer than it gives answers.
    One at least; more only on threads that answers never need."""
    free = threads - max_answers
    rest = max(1, free // _PART_FOR_THE_REST)
    return max(1, min(free - rest, max_answers // _ANSWERS_PER_FILE))


class _Places:
    def __init__(self, limit: int, refusal: str) -> None:
        self._free = limit
        self._refusal = refusal
        self._lock = Lock()

    def take(self) -> Release:
        with self._lock:
            if self._free <= 0:
                raise errors.Overloaded(self._refusal, retry_after=RETRY_SECONDS)
            self._free -= 1
        return _Place(self).release

    def give_back(self) -> None:
        with self._lock:
            self._free += 1


class _Place:
    """A place that is taken until it is released for the first time."""

    def __init__(self, places: _Places) -> None:
        self._places: _Places | None = places
        self._lock = Lock()

    def release(self) -> None:
        with self._lock:
            places, self._places = self._places, None
        if places is not None:
            places.give_back()


def _nothing_to_release() -> None:
    """Where there is no limit, nothing was counted."""
