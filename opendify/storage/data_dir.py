"""The folder that processes share: whose it is, and the locks between those who use it."""

import fcntl
import logging
import os
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.0001, 0.002


class FileLock:
    """A lock between processes, on a file that is never replaced; the kernel frees a dead holder's.

    The file is opened anew each time. So threads exclude each other too, a process that forks
    shares nothing with its child, and it does no harm when somebody deletes the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def held(self, patience: float) -> "LockGuard":
        """Takes the lock, for a ``with`` block to hold; raises TimeoutError when it is not free
        within so many seconds.

        Asked for again and again instead of waited for: the holder may be a paused container.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._acquire(descriptor, patience)
        except BaseException:
            os.close(descriptor)
            raise
        return LockGuard(descriptor)

    def _acquire(self, descriptor: int, patience: float) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if patience <= 0:
                    raise TimeoutError(f"another process holds {self._path}") from None
            time.sleep(pause)
            patience -= pause
            pause = min(pause * 2, _LONGEST_PAUSE)


class LockGuard:
    """A lock that is held to the end of a ``with`` block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> None:
        """It is held already."""

    def __exit__(self, *exc_info: object) -> None:
        try:
            # Closing is not enough if the process forked meanwhile: the child's copy of the
            # descriptor would go on holding the lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            os.close(self._descriptor)


class DataDir:
    """Where everything is. `changing` is held to append to a journal, `folding` to replace the
    snapshot; who needs both takes `folding` first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.snapshot = path / "conversation_mappings.json"
        self.changing = FileLock(path / "conversation_mappings.lock")
        self.folding = FileLock(path / "conversation_mappings.fold.lock")
        self._examined = False

    def prepare(self) -> None:
        """Make the folder if there is none, and its owner's alone; raises OSError.

        One that belongs to somebody else is left as it is, and so is one that everybody may write
        to by design, such as /tmp.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._examined:
            self._examined = True
            _make_private(self.path)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder outlast a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_and_close(descriptor: int) -> None:
    """Make what was written to a file outlast a power failure."""
    try:
        if sys.platform == "darwin":  # which has no fdatasync
            os.fsync(descriptor)
        else:
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def warn_if_foreign(path: Path) -> None:
    """Says so where the folder belongs to somebody else. For the start, before there are workers
    that would each say it."""
    with suppress(OSError):  # there is none yet, or what is wrong shows when it is used
        owner, me = path.stat().st_uid, os.geteuid()
        if owner != me:
            log.warning(
                "%s belongs to user %d, and this runs as user %d: its permissions are not changed.",
                path,
                owner,
                me,
            )


def _make_private(path: Path) -> None:
    status = path.stat()
    is_for_others = status.st_mode & 0o077 and not status.st_mode & stat.S_ISVTX
    if status.st_uid == os.geteuid() and is_for_others:
        try:
            path.chmod(stat.S_IMODE(status.st_mode) & ~0o077)
        except OSError as error:
            log.warning("%s is open to other users and cannot be closed to them: %s.", path, error)
