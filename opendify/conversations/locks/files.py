"""Turns of one chat come one after the other, in all threads, processes and instances.

A lock of each chat is a file under `locks/` in the data folder. The kernel frees it when its
holder is killed.
"""

import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.05
_NAME_LENGTH = 32
_MOST_SWEPT = 10_000


class TurnLock(Protocol):
    """The turn of a chat; whoever gets one must release it."""

    def release(self) -> None:
        """Let the next turn begin. May be called again, and from any thread."""


class TurnLocks(Protocol):
    """The locks of all chats."""

    def acquire(self, key: str, until: float, caller_gone: Callable[[], bool]) -> TurnLock | None:
        """Waits for the turn of the chat `key`; None when it did not come.

        That is when `until`, a time of `time.monotonic`, has passed or the caller has gone, which
        is asked several times a second. Trouble with the locks themselves is never raised: the
        log tells it once, and the turn counts as given.
        """
        ...


class FileTurnLocks:
    """Locks for those who share a folder. Nothing is opened before the first use."""

    def __init__(self, data_folder: Path) -> None:
        self._folder = data_folder / "locks"
        self._complained = False
        self._swept = False

    def acquire(self, key: str, until: float, caller_gone: Callable[[], bool]) -> TurnLock | None:
        path = f"{self._folder}/{lock_name(key)}"
        try:
            self._sweep()
            lock = waited_for(lambda: _locked(path), until, caller_gone)
        except OSError as error:
            self._complain(error)
            return FileTurnLock(path, -1, None)
        self._complained = False
        return lock

    def _sweep(self) -> None:
        """Once in a process, remove what those left behind who were killed."""
        if self._swept:
            return
        self._swept = True
        for path in list(islice(self._folder.glob("[0-9a-f]" * _NAME_LENGTH), _MOST_SWEPT)):
            lock = _locked(str(path))
            if lock is not None:
                lock.release()

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.error(
                "Turns of one chat cannot be kept apart in %s (%s). Two at once may begin two "
                "conversations, until there is space and this user may write there.",
                self._folder,
                error,
            )


class FileTurnLock:
    """A locked file and its status, removed by the release; none for a descriptor below 0."""

    def __init__(self, path: str, descriptor: int, status: os.stat_result | None) -> None:
        self._path = path
        self._descriptor = descriptor
        self._status = status
        self._releasing = threading.Lock()

    def release(self) -> None:
        with self._releasing:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        with suppress(OSError):
            # While it is locked: who opened the file before finds out that it is gone.
            if self._status is not None and _is_at(self._path, self._status):
                os.unlink(self._path)
        _unlock(descriptor)


def lock_name(key: str) -> str:
    """A name for the lock of a chat that tells nothing of the chat."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:_NAME_LENGTH]


def waited_for(
    attempt: Callable[[], T | None], until: float, caller_gone: Callable[[], bool]
) -> T | None:
    """What the attempt gives, made again and again as long as there is time and a caller."""
    pause = FIRST_PAUSE
    while (result := attempt()) is None:
        left = until - time.monotonic()
        if left <= 0 or caller_gone():
            return None
        time.sleep(min(pause, left))
        pause = min(pause * 2, LONGEST_PAUSE)
    return result


def _locked(path: str) -> FileTurnLock | None:
    """The file at the path, locked; None while another has it. Raises OSError."""
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if _is_at(path, status):
            return FileTurnLock(path, descriptor, status)
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _opened(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        locks = Path(path).parent
        for folder in (locks.parent, locks):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


def _is_at(path: str, status: os.stat_result) -> bool:
    """Whether the open file is still the one of this name, not removed by its last holder."""
    try:
        return os.path.samestat(os.stat(path), status)
    except FileNotFoundError:
        return False


def _unlock(descriptor: int) -> None:
    # Closing is not enough if the process forked meanwhile: the child's copy of the descriptor
    # would go on holding the lock.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
