"""Files kept for a while, in a folder that processes and instances share."""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from opendify.storage.data_dir import DataDir

log = logging.getLogger(__name__)

_PARTIAL_SUFFIX = ".part"
_ABANDONED_SECONDS = 3600


class DoesNotFit(Exception):
    """A file is larger than the shelf takes."""


class FileCache:
    """Contents by key: at most ``max_bytes`` together, each for ``max_age`` seconds; the oldest go
    first. A key is a name that is safe in a folder. ``now`` gives epoch seconds."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        max_age: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = DataDir(folder)
        self._parent = DataDir(folder.parent)
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._now = now

    def renew(self, key: str) -> bool:
        """Whether there is such a file; it counts as new then."""
        try:
            os.utime(self._folder.path / key, (self._now(), self._now()))
        except OSError:
            return False
        return True

    def open(self, key: str) -> FileIO | None:
        """The content, which stays readable when it goes from the shelf meanwhile.

        Unbuffered: Gunicorn sends a file by its descriptor, from where that stands.
        """
        try:
            return (self._folder.path / key).open("rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, key: str, pieces: Iterable[bytes], most: int) -> None:
        """Keeps a content of at most ``most`` bytes. Raises DoesNotFit and OSError."""
        self._parent.prepare()
        self._folder.prepare()
        descriptor, temporary = tempfile.mkstemp(
            dir=self._folder.path, prefix=".", suffix=_PARTIAL_SUFFIX
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                _write(file, pieces, min(most, self._max_bytes))
            os.utime(temporary, (self._now(), self._now()))
            os.replace(temporary, self._folder.path / key)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._evict(but=key)

    def _evict(self, but: str) -> None:
        """Removes what is too old, then the oldest until the rest fits."""
        now, room = self._now(), self._max_bytes
        for name, status in sorted(self._scan(), key=lambda item: -item[1].st_mtime_ns):
            age = now - status.st_mtime
            if name.endswith(_PARTIAL_SUFFIX):
                unwanted = age > _ABANDONED_SECONDS
            else:
                unwanted = name != but and (age > self._max_age or status.st_size > room)
                room -= 0 if unwanted else status.st_size
            if unwanted:
                with suppress(OSError):
                    (self._folder.path / name).unlink()

    def _scan(self) -> list[tuple[str, os.stat_result]]:
        found = []
        with os.scandir(self._folder.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process tidies too
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
        return found


def _write(file: BinaryIO, pieces: Iterable[bytes], most: int) -> None:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > most:
            raise DoesNotFit
        file.write(piece)
    file.flush()
    os.fsync(file.fileno())
