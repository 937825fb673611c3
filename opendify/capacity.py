"""How much is answered at once in this process, in all and for each model."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

from opendify import errors

# Most answers take longer, but their ends are spread.
RETRY_SECONDS = 2


class Capacity:
    """Places for answers. ``most`` is how many there are, below the number of threads, so that
    threads are left to say that all are taken; ``most_of`` is how many of them a model may have,
    for those that have a limit."""

    def __init__(self, most: int, most_of: Mapping[str, int]) -> None:
        self.most = most
        self._most_of = most_of
        self._taken: Counter[str] = Counter()
        self._lock = Lock()

    @contextmanager
    def place(self, model: str = "") -> Iterator[None]:
        """Holds a place while an answer is made and sent. Raises Overloaded, at once, where there
        is none."""
        self._take(model)
        try:
            yield
        finally:
            with self._lock:
                self._taken[model] -= 1
                if not self._taken[model]:  # callers can make up any number of names
                    del self._taken[model]

    def _take(self, model: str) -> None:
        with self._lock:
            if self._taken.total() >= self.most:
                raise errors.Overloaded(
                    "OpenDify is answering as many requests as it can; try again in a moment.",
                    retry_after=RETRY_SECONDS,
                )
            if self._taken[model] >= self._most_of.get(model, self.most):
                raise errors.Overloaded(
                    f"The model '{model}' is answering as many requests as it may; "
                    "try again in a moment.",
                    retry_after=RETRY_SECONDS,
                )
            self._taken[model] += 1
