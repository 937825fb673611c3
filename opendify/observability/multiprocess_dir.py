"""The folder of the files in which the processes of one instance count.

prometheus_client keeps a file for each process and kind of metric, and all are read together. It
takes the folder from the environment: a value says that there are several processes, an empty
one that there is no folder yet. Gunicorn's master makes it before it forks, else the first
process that counts, so that it is never one of an earlier run.
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

# The files are written through memory: on a full disk, a page that has no place yet ends the
# process. So each file gets its place when it is made, and as much as it can come to need.
MIN_FILE_BYTES = 64 * 1024
BYTES_PER_MODEL = 10 * 1024
KINDS = ("counter", "histogram", "gauge_livesum")
LOCK = "lock"
PREFIX = "opendify-metrics-"

# A folder that is not locked is in use if it is as young as that.
LOCK_GRACE_SECONDS = 60.0


def create_dir() -> Path | None:
    """Makes the folder of this instance, which goes when this process ends.

    None, and a line in the log, where there is no place for one.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        (folder / LOCK).touch()
        _remove_stale(folder.parent)
    except OSError as exc:
        log.warning("there are no metrics, for want of a folder for their files: %s", exc)
        return None
    # While it is locked, neither another instance nor systemd-tmpfiles takes it away.
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)
    os.environ[VARIABLE] = str(folder)
    atexit.register(_remove, folder, os.getpid())
    return folder


def current_dir() -> Path | None:
    """The folder of this instance, if there is one by now. One that we did not make is none."""
    path = os.environ.get(VARIABLE, "")
    return Path(path) if path and os.path.isfile(os.path.join(path, LOCK)) else None


def join_dir(models: int) -> Path | None:
    """The folder, with files in it for this process to count so many models in; None where there
    is no place for them."""
    folder = current_dir() or create_dir()
    if folder is None:
        return None
    try:
        for kind in KINDS:
            path = folder / f"{kind}_{os.getpid()}.db"
            allocate(path, MIN_FILE_BYTES + models * BYTES_PER_MODEL)
    except OSError as exc:
        log.warning("there are no metrics of this process, for want of space: %s", exc)
        return None
    return folder


def allocate(path: Path, size: int) -> None:
    """Sees to it that the file has so many bytes, and a place for each. Raises OSError."""
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def shared_lock(folder: Path) -> Iterator[None]:
    """While this is held, no file of the folder goes."""
    with _locked(folder, fcntl.LOCK_SH):
        yield


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """While this is held, nobody else holds anything. Raises BlockingIOError instead of waiting."""
    with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        yield


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    with (folder / LOCK).open() as file:
        fcntl.flock(file, how)
        yield


def _remove_stale(place: Path) -> None:
    """Removes the folders of instances that were killed."""
    for path in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            found = path.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if is_ours and time.time() - found.st_mtime > LOCK_GRACE_SECONDS:
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


def _remove(folder: Path, maker: int) -> None:
    if os.getpid() == maker:  # and not a worker that it has forked
        shutil.rmtree(folder, ignore_errors=True)
