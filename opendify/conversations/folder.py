"""The folder that the files are in."""

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)


def prepare_folder(folder: Path) -> None:
    """Make the folder, or make it its owner's alone; raises OSError when there is none then.

    One that belongs to somebody else is left as it is, and so is one that everybody may write
    to by design, such as /tmp.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        log.warning(
            "%s belongs to user %d and not to user %d, who runs this; it is left as it is.",
            folder,
            status.st_uid,
            os.geteuid(),
        )
    elif status.st_mode & 0o077 and not status.st_mode & stat.S_ISVTX:
        _make_private(folder)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_private(folder: Path) -> None:
    try:
        folder.chmod(0o700)
    except OSError as error:
        log.warning("%s can be read by others and that cannot be changed: %s.", folder, error)
