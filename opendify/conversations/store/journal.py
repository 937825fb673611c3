"""The journals: what changed since the snapshot was written, one patch per line.

The one with the highest number is appended to; creating the next one closes it for good. A line is
valid once its newline is written, and written bytes never change, so reading needs no lock. Number
0 means that there is no journal yet: an empty folder, or one with only the JSON file.
"""

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from opendify.conversations.store.records import Patch, parse_patch, to_line
from opendify.storage.data_dir import fsync_folder

log = logging.getLogger(__name__)

_NAME = "conversation_mappings.{:08d}.jsonl"
_NUMBER = re.compile(r"conversation_mappings\.(\d{8,})\.jsonl")


class JournalCompacted(Exception):
    """What would have to be read next is only in the snapshot by now."""


def numbers(folder: Path) -> list[int]:
    """The numbers of the journals in a folder, in order."""
    return sorted(
        int(match[1]) for name in os.listdir(folder) if (match := _NUMBER.fullmatch(name))
    )


def delete_journals(folder: Path, below: int) -> None:
    """Delete the journals that the snapshot replaces, oldest first."""
    for number in numbers(folder):
        if number < below:
            (folder / _NAME.format(number)).unlink(missing_ok=True)


class Journal:
    """The position of one process in the journals.

    To append or rotate, hold the lock and read all new patches first.
    """

    def __init__(self, folder: Path, *, sync: bool) -> None:
        """Start at the oldest journal; raises OSError and JournalCompacted.

        With `sync`, the names of new journals are durable against a power failure.
        """
        self._folder = folder
        self._sync = sync
        self._descriptor = -1
        self._open(_oldest_contiguous(numbers(folder)))

    @property
    def position(self) -> tuple[int, int]:
        """The number of the journal being read, and how many bytes of it were read."""
        return self._number, self._offset

    def has_grown(self) -> bool:
        """Whether there may be new patches, at the cost of one system call; raises OSError.

        It only misses what others wrote after one was killed in the middle of `rotate`.
        """
        return self._number == 0 or os.fstat(self._descriptor).st_size != self._offset

    def read_new(self) -> Iterator[Patch]:
        """What was appended since the last call; raises OSError and JournalCompacted."""
        if self._number == 0:
            if numbers(self._folder):
                raise JournalCompacted
            return
        closed = True
        while closed:
            # Checked before the size: a journal that is already closed never grows again.
            closed = os.access(self._successor, os.F_OK)
            self._known_size = size = self._size()
            if size > self._offset:
                yield from self._read_lines(size)
            elif size < self._offset:
                raise JournalCompacted
            if closed:
                self._open(self._number + 1)

    def append(self, patch: Patch) -> None:
        """Write one line; raises OSError."""
        if self._number == 0:
            self.rotate()
        line = to_line(patch)
        torn = self._known_size > self._offset  # not a write in progress: the lock is held
        if torn:
            # A process was killed in the middle of a line. It is terminated here and will be
            # skipped: truncating it could mislead a process that is reading it now.
            line = b"\n" + line
        if os.write(self._descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._known_size += len(line)
        if not torn:
            self._offset += len(line)

    def rotate(self) -> None:
        """Close this journal by creating the next one, where writing continues; raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(self._successor, flags, 0o600))
        if self._sync:
            fsync_folder(self._folder)
        if self._number == 0:
            self._open(1)
        else:
            with suppress(OSError):  # others notice at once instead of within a second
                os.write(self._descriptor, b"\n")

    def has_entries(self) -> bool:
        """Whether there is anything that the snapshot may lack; raises OSError."""
        return self._offset > 0 or any(older < self._number for older in numbers(self._folder))

    def duplicate(self) -> int:
        """A descriptor of the journal, for the caller to close."""
        return os.dup(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, number: int) -> None:
        path, successor = (str(self._folder / _NAME.format(n)) for n in (number, number + 1))
        if number:
            descriptor = _open_file(path)
            self.close()
            self._descriptor = descriptor
        self._number, self._path, self._successor = number, path, successor
        self._offset = self._known_size = 0  # bytes read, and the size of the file at that time

    def _size(self) -> int:
        try:
            return os.stat(self._path).st_size
        except FileNotFoundError:
            raise JournalCompacted from None

    def _read_lines(self, size: int) -> Iterator[Patch]:
        for line in BytesIO(os.pread(self._descriptor, size - self._offset, self._offset)):
            if not line.endswith(b"\n"):
                return
            self._offset += len(line)
            if line == b"\n":
                continue
            try:
                yield parse_patch(line)
            except (ValueError, RecursionError):
                log.warning("%s: skipping an incomplete line.", self._path)


def _oldest_contiguous(present: list[int]) -> int:
    """The oldest journal that all its successors follow, or 0 if there is none.

    One before a gap is left over from a clean-up that a crash interrupted.
    """
    first = present[-1] if present else 0
    while first - 1 in present:
        first -= 1
    return first


def _open_file(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        raise JournalCompacted from None
    except OSError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a read-only folder can still be read
