"""The journals: what was changed since the snapshot was written, one patch a line.

The one with the highest number is written to; making the next one closes it for good. A line
counts from its newline on, and bytes once written are never changed, so that reading needs no
lock. Number 0 means that there is none yet: a folder with nothing, or a plain JSON file.
"""

import errno
import logging
import os
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from opendify.conversations.mapping import Patch, parse_patch, to_line

log = logging.getLogger(__name__)

_NAME = "conversation_mappings.{:08d}.jsonl"
_NUMBER = re.compile(r"conversation_mappings\.(\d{8,})\.jsonl")


class FoldedAway(Exception):
    """What this process would have to read next is only in the snapshot by now."""


def numbers(folder: Path) -> list[int]:
    """The numbers of the journals in a folder, in order."""
    return sorted(
        int(match[1]) for name in os.listdir(folder) if (match := _NUMBER.fullmatch(name))
    )


def drop_journals(folder: Path, below: int) -> None:
    """Delete the journals that the snapshot has made superfluous, the oldest first."""
    for number in numbers(folder):
        if number < below:
            (folder / _NAME.format(number)).unlink(missing_ok=True)


class Journal:
    """One process's place in the journals. Whoever appends or rotates holds the lock."""

    def __init__(self, folder: Path) -> None:
        """Open the oldest journal that the snapshot may not hold; raises OSError, FoldedAway.

        The snapshot must be read after this and before `news`: then nothing falls between.
        """
        self._folder = folder
        self._descriptor = -1
        self._open(_first_of_the_last_row(numbers(folder)))

    @property
    def place(self) -> tuple[int, int]:
        """The number of the journal that is being read, and how many bytes of it were."""
        return self.number, self._offset

    def news(self) -> Iterator[Patch]:
        """What was appended since the last time. Raises FoldedAway, OSError."""
        if self.number == 0:
            if numbers(self._folder):
                raise FoldedAway
            return
        while True:
            # Asked before the size: a journal that is closed by then will never grow again.
            closed = os.access(self._following, os.F_OK)
            status = os.fstat(self._descriptor)
            if status.st_size > self._offset:
                yield from self._lines_until(status.st_size)
            if closed:
                self._open(self.number + 1)
            elif status.st_nlink == 0:
                raise FoldedAway
            else:
                return

    def append(self, patch: Patch) -> None:
        """Write one line; raises OSError. All news must have been read."""
        if self.number == 0:
            self.rotate()
        line = to_line(patch)
        torn = os.fstat(self._descriptor).st_size > self._offset
        if torn:
            # Somebody was killed in the middle of a line. It is ended here and will be skipped;
            # cutting it off could mislead a process that is reading it at this moment.
            line = b"\n" + line
        if os.write(self._descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not torn:
            self._offset += len(line)

    def rotate(self) -> None:
        """Close this journal and go on in the next; raises OSError. All news must be read."""
        following = self._folder / _NAME.format(self.number + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(following, flags, 0o600))
        self._open(self.number + 1)

    def holds_anything(self) -> bool:
        """Whether there is anything, here or in an older journal, that the snapshot may lack."""
        return self._offset > 0 or numbers(self._folder)[:1] < [self.number]

    def duplicate(self) -> int:
        """A descriptor of the open journal for the caller to close."""
        return os.dup(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, number: int) -> None:
        if number:
            descriptor = _open_file(self._folder / _NAME.format(number))
            self.close()
            self._descriptor = descriptor
        self.number = number
        self._offset = 0
        self._following = str(self._folder / _NAME.format(number + 1))

    def _lines_until(self, size: int) -> Iterator[Patch]:
        for line in BytesIO(os.pread(self._descriptor, size - self._offset, self._offset)):
            if not line.endswith(b"\n"):
                return
            self._offset += len(line)
            try:
                yield parse_patch(line)
            except (ValueError, RecursionError):
                log.warning("A line of journal %d is not whole and is skipped.", self.number)


def _first_of_the_last_row(present: list[int]) -> int:
    """The oldest journal that is followed by all its successors, or 0 when there is none.

    An older one before a gap is left from a clean-up that a crash cut short.
    """
    first = present[-1] if present else 0
    while first - 1 in present:
        first -= 1
    return first


def _open_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FoldedAway from None
    except OSError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a read-only folder can still be read
