"""How much is answered at once in this process, in all and for each model."""

from collections.abc import Mapping
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
        self._taken: dict[str, int] = {}
        self._total = 0
        self._lock = Lock()

    def place(self, model: str = "") -> "Place":
        """A place to hold in a ``with`` block, while an answer is made and sent. Entering raises
        Overloaded, at once, where there is none."""
        return Place(self, model)

    def take(self, model: str) -> None:
        """Takes a place, or raises Overloaded."""
        with self._lock:
            taken = self._taken.get(model, 0)
            if self._total >= self.most:
                raise errors.Overloaded(
                    "OpenDify is answering as many requests as it can; try again in a moment.",
                    retry_after=RETRY_SECONDS,
                )
            if taken >= self._most_of.get(model, self.most):
                raise errors.Overloaded(
                    f"The model '{model}' is answering as many requests as it may; "
                    "try again in a moment.",
                    retry_after=RETRY_SECONDS,
                )
            self._taken[model] = taken + 1
            self._total += 1

    def give_back(self, model: str) -> None:
        """Gives back a place that was taken for this model."""
        with self._lock:
            self._total -= 1
            self._taken[model] -= 1
            if not self._taken[model]:  # callers can make up any number of names
                del self._taken[model]


class Place:
    """A place for one answer, taken and given back by a ``with`` block."""

    def __init__(self, capacity: Capacity, model: str) -> None:
        self._capacity = capacity
        self._model = model

    def __enter__(self) -> None:
        self._capacity.take(self._model)

    def __exit__(self, *exc_info: object) -> None:
        self._capacity.give_back(self._model)
