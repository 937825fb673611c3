"""The data folder that processes share: its permissions and its file locks."""

import fcntl
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

_MIN_PAUSE, _MAX_PAUSE = 0.0001, 0.002


class FileLock:
    """A lock between processes, on a file that is never replaced; the kernel releases it when its
    holder dies.

    The file is opened for each acquisition, so threads exclude each other too, a forked child
    shares nothing with its parent, and deleting the file does no harm.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def acquire(self, timeout: float) -> "LockGuard":
        """Acquire the lock; a ``with`` block on the result holds it. Raises TimeoutError when it is
        not free within ``timeout`` seconds.

        Polls instead of blocking, because the holder may be a paused container.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._acquire(descriptor, timeout)
        except BaseException:
            os.close(descriptor)
            raise
        return LockGuard(descriptor)

    def _acquire(self, descriptor: int, timeout: float) -> None:
        pause = _MIN_PAUSE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if timeout <= 0:
                    raise TimeoutError(f"another process holds {self._path}") from None
            time.sleep(pause)
            timeout -= pause
            pause = min(pause * 2, _MAX_PAUSE)


class LockGuard:
    """An acquired lock, released at the end of a ``with`` block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> None:
        """The lock is already acquired."""

    def __exit__(self, *exc_info: object) -> None:
        try:
            # Closing is not enough if the process forked meanwhile: the copy of the descriptor in
            # the child would keep the lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            os.close(self._descriptor)


class DataDir:
    """The paths in the data folder. ``journal_lock`` is held to append to a journal,
    ``snapshot_lock`` to replace the snapshot; code that needs both acquires ``snapshot_lock``
    first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.snapshot = path / "conversation_mappings.json"
        self.journal_lock = FileLock(path / "conversation_mappings.lock")
        self.snapshot_lock = FileLock(path / "conversation_mappings.fold.lock")
        self._permissions_checked = False

    def prepare(self) -> None:
        """Create the folder if it is missing, and make it private to its owner. Raises OSError.

        A folder that belongs to another user, or that is world-writable by design such as /tmp,
        keeps its permissions.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._permissions_checked:
            self._permissions_checked = True
            _make_private(self.path)


@contextmanager
def replaced_file(path: Path, prefix: str, suffix: str = "") -> Iterator[BinaryIO]:
    """A new file, private to its owner, that takes the place of the one at ``path`` at the end of
    the ``with`` block. Until then it has another name in the same folder, with this prefix and
    suffix; it is removed if the block raises. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=suffix)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable against a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_and_close(descriptor: int) -> None:
    """Make what was written to a file durable against a power failure, and close it."""
    try:
        if sys.platform == "darwin":  # no fdatasync there
            os.fsync(descriptor)
        else:
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def warn_if_not_owner(path: Path) -> None:
    """Log a warning if the folder belongs to another user. Call it once at startup, not in each
    worker."""
    with suppress(OSError):  # not created yet, or reported when it is used
        owner, me = path.stat().st_uid, os.geteuid()
        if owner != me:
            log.warning(
                "%s belongs to user %d, but OpenDify runs as user %d: "
                "its permissions are not changed.",
                path,
                owner,
                me,
            )


def _make_private(path: Path) -> None:
    status = path.stat()
    is_shared = status.st_mode & 0o077 and not status.st_mode & stat.S_ISVTX
    if status.st_uid == os.geteuid() and is_shared:
        try:
            path.chmod(stat.S_IMODE(status.st_mode) & ~0o077)
        except OSError as error:
            log.warning(
                "%s is accessible to other users and cannot be made private: %s.", path, error
            )
