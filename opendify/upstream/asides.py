"""Work that nobody waits for, off the threads of requests: what a caller who left leaves behind."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

# Each holds a connection to Dify; more of them than this are not worth it.
MOST_AT_A_TIME = 64


class Asides:
    """Runs each piece of work on a thread of its own, at most ``most`` at a time. Starts no
    thread before there is work; what still runs when the process ends is dropped."""

    def __init__(self, most: int = MOST_AT_A_TIME) -> None:
        self._free = threading.BoundedSemaphore(most)

    def run(self, work: Callable[[], None]) -> bool:
        """Begins the work; False where too much of it is under way already."""
        if not self._free.acquire(blocking=False):
            return False
        threading.Thread(target=self._run, args=(work,), name="aside", daemon=True).start()
        return True

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            log.exception("unexpected error in what a caller left behind")
        finally:
            self._free.release()
