"""The directory of the metrics files of one instance.

prometheus_client keeps one file per process and kind of metric, and reads all of them together. It
takes the directory from an environment variable, where an empty value means several processes but
no directory yet. Gunicorn's master creates the directory before it forks, or else the first process
that counts does, so that it is never one of an earlier run.
"""

import atexit
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# The files are memory-mapped: with a full disk, writing to an unallocated page kills the process.
# So each file is allocated when it is created, with all the space that it can need.
MIN_FILE_BYTES = 64 * 1024
BYTES_PER_MODEL = 10 * 1024
KINDS = ("counter", "histogram", "gauge_livesum")
LOCK = "lock"
PREFIX = "opendify-metrics-"

# An unlocked directory is considered in use until it is this old.
LOCK_GRACE_SECONDS = 60.0


def create_dir() -> Path | None:
    """Creates the directory of this instance, which is removed when this process exits.

    Returns None and logs a warning if it cannot be created.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        (folder / LOCK).touch()
        _remove_stale(folder.parent)
    except OSError as exc:
        log.warning("no metrics: the directory for their files cannot be created: %s", exc)
        return None
    # The lock keeps other instances and systemd-tmpfiles from removing it.
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)
    os.environ[VARIABLE] = str(folder)
    atexit.register(_remove, folder, os.getpid())
    return folder


def current_dir() -> Path | None:
    """The directory of this instance, if it exists. A directory that OpenDify did not create does
    not count."""
    path = os.environ.get(VARIABLE, "")
    return Path(path) if path and os.path.isfile(os.path.join(path, LOCK)) else None


def join_dir(models: int) -> Path | None:
    """The directory, with allocated files for this process and this many models; None if there is
    no space."""
    folder = current_dir() or create_dir()
    if folder is None:
        return None
    try:
        for kind in KINDS:
            path = folder / f"{kind}_{os.getpid()}.db"
            allocate(path, MIN_FILE_BYTES + models * BYTES_PER_MODEL)
    except OSError as exc:
        log.warning("no metrics of this process: no space for their files: %s", exc)
        return None
    return folder


def allocate(path: Path, size: int) -> None:
    """Makes the file at least ``size`` bytes long, with disk space for each. Raises OSError."""
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def shared_lock(folder: Path) -> Iterator[None]:
    """While held, no file of the directory is removed."""
    with _locked(folder, fcntl.LOCK_SH):
        yield


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Held by one process, with no shared locks. Raises BlockingIOError instead of waiting."""
    with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        yield


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[None]:
    with (folder / LOCK).open() as file:
        fcntl.flock(file, operation)
        yield


def _remove_stale(parent: Path) -> None:
    """Removes the directories of instances that were killed."""
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            status = path.lstat()
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if is_ours and time.time() - status.st_mtime > LOCK_GRACE_SECONDS:
                with _open_folder(path) as descriptor:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove(folder: Path, creator_pid: int) -> None:
    if os.getpid() == creator_pid:  # not in forked workers
        shutil.rmtree(folder, ignore_errors=True)
