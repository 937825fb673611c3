"""A file cache in a directory that processes and instances share."""

import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from opendify.storage.data_dir import DataDir, replaced_file

log = logging.getLogger(__name__)

_PARTIAL_SUFFIX = ".part"
_ABANDONED_SECONDS = 3600


class FileTooLarge(Exception):
    """The file is larger than the cache accepts."""


class FileCache:
    """File contents by key: at most ``max_bytes`` in total, each for ``max_age`` seconds; the
    oldest are evicted first. Keys must be safe file names. ``now`` returns epoch seconds."""

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

    def touch(self, key: str) -> bool:
        """Resets the age of an entry; returns whether it exists."""
        try:
            os.utime(self._folder.path / key, (self._now(), self._now()))
        except OSError:
            return False
        return True

    def open(self, key: str) -> FileIO | None:
        """The content, which stays readable if the entry is evicted meanwhile. None if there is
        none.

        Unbuffered: Gunicorn sends a file through its descriptor, from its current position.
        """
        try:
            return (self._folder.path / key).open("rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, key: str, chunks: Iterable[bytes], max_bytes: int) -> None:
        """Stores a content of at most ``max_bytes`` bytes. Raises FileTooLarge and OSError."""
        self._parent.prepare()
        self._folder.prepare()
        path = self._folder.path / key
        with replaced_file(path, prefix=".", suffix=_PARTIAL_SUFFIX) as file:
            _write(file, chunks, min(max_bytes, self._max_bytes))
            file.flush()  # a later write would set the time again
            os.utime(file.fileno(), (self._now(), self._now()))
        self._evict(keep=key)

    def _evict(self, keep: str) -> None:
        """Removes expired entries, then the oldest until the rest fits."""
        now, free_bytes = self._now(), self._max_bytes
        for name, status in sorted(self._scan(), key=lambda item: -item[1].st_mtime_ns):
            age = now - status.st_mtime
            if name.endswith(_PARTIAL_SUFFIX):
                is_evicted = age > _ABANDONED_SECONDS
            else:
                is_evicted = name != keep and (age > self._max_age or status.st_size > free_bytes)
                free_bytes -= 0 if is_evicted else status.st_size
            if is_evicted:
                with suppress(OSError):
                    (self._folder.path / name).unlink()

    def _scan(self) -> list[tuple[str, os.stat_result]]:
        found = []
        with os.scandir(self._folder.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed by another process
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
        return found


def _write(file: BinaryIO, chunks: Iterable[bytes], max_bytes: int) -> None:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise FileTooLarge
        file.write(chunk)
    file.flush()
    os.fsync(file.fileno())
