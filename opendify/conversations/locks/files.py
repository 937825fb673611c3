"""Named locks that processes and instances which share a folder hold, usually until they end.

A lock is a file in `locks/` in the data folder. The kernel releases it when its holder is killed.
"""

import fcntl
import hashlib
import logging
import os
import threading
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

_NAME_LENGTH = 32
_MAX_SWEPT = 10_000


class Lock(Protocol):
    """An acquired lock."""

    def release(self) -> None:
        """May be called repeatedly, and from any thread."""


class Locks(Protocol):
    """Locks by name."""

    def try_acquire(self, name: str) -> Lock | None:
        """The lock of this name; None while somebody else holds it.

        A failure of the locks themselves is never raised: it is logged once, and the lock counts as
        acquired.
        """
        ...


class FileLocks:
    """Locks for processes that share a folder. Nothing is opened before the first use."""

    def __init__(self, data_folder: Path) -> None:
        self._folder = data_folder / "locks"
        self._failure_logged = False
        self._swept = False

    def try_acquire(self, name: str) -> Lock | None:
        path = f"{self._folder}/{digest(name)}"
        try:
            self._sweep()
            lock = _try_lock(path)
        except OSError as error:
            self._log_failure(error)
            return FileLock(path, -1, None)
        self._failure_logged = False
        return lock

    def _sweep(self) -> None:
        """Once per process, remove the files that killed processes left behind."""
        if self._swept:
            return
        self._swept = True
        for path in list(islice(self._folder.glob("[0-9a-f]" * _NAME_LENGTH), _MAX_SWEPT)):
            lock = _try_lock(str(path))
            if lock is not None:
                lock.release()

    def _log_failure(self, error: OSError) -> None:
        if not self._failure_logged:
            self._failure_logged = True
            log.error(
                "Processes cannot tell in %s which of them are alive (%s). A turn that a killed "
                "process left may be counted as running, until there is space and this user may "
                "write there.",
                self._folder,
                error,
            )


class FileLock:
    """A locked file and its status, removed on release; no lock if the descriptor is negative."""

    def __init__(self, path: str, descriptor: int, status: os.stat_result | None) -> None:
        self._path = path
        self._descriptor = descriptor
        self._status = status
        self._release_lock = threading.Lock()

    def release(self) -> None:
        with self._release_lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        with suppress(OSError):
            # While locked: a process that has already opened the file then notices that it is gone.
            if self._status is not None and _is_at(self._path, self._status):
                os.unlink(self._path)
        _unlock(descriptor)


def digest(name: str) -> str:
    """The name as files and keys have it; reveals nothing of it."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_NAME_LENGTH]


def _try_lock(path: str) -> FileLock | None:
    """The file at the path, locked; None while another process holds it. Raises OSError."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if _is_at(path, status):
            return FileLock(path, descriptor, status)
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        locks = Path(path).parent
        for folder in (locks.parent, locks):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


def _is_at(path: str, status: os.stat_result) -> bool:
    """Whether the open file still has this name, and was not removed by its last holder."""
    try:
        return os.path.samestat(os.stat(path), status)
    except FileNotFoundError:
        return False


def _unlock(descriptor: int) -> None:
    # Closing is not enough if the process forked meanwhile: the copy of the descriptor in the
    # child would keep the lock.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
