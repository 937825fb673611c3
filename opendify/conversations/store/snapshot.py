"""The snapshot: every mapping in one indented JSON object, for people and scripts to read."""

import json
import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from opendify.conversations.store.records import Entries, parse_record, to_text
from opendify.storage.data_dir import fsync_folder

log = logging.getLogger(__name__)

_ENTRIES_PER_WRITE = 500


class CorruptSnapshot(Exception):
    """The file exists but is not a JSON object; `inode` identifies it."""

    def __init__(self, inode: int) -> None:
        super().__init__(inode)
        self.inode = inode


def read_snapshot(path: Path) -> Entries:
    """Read the file; a missing or empty one has no entries.

    Entries that are not mappings are skipped with one warning. Raises CorruptSnapshot, and OSError
    if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            inode, content = os.fstat(file.fileno()).st_ino, file.read()
    except FileNotFoundError:
        return {}
    if not content.strip():
        return {}
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError):
        raise CorruptSnapshot(inode) from None
    if not isinstance(raw, dict):
        raise CorruptSnapshot(inode)
    return _parse_entries(path, raw)


def set_aside(path: Path, inode: int, suffix: str) -> None:
    """Rename a corrupt file, unless it was replaced since it was read."""
    try:
        if path.stat().st_ino != inode:
            return
        renamed = path.with_name(f"{path.name}.{suffix}")
        path.rename(renamed)
    except FileNotFoundError:
        return
    log.error("%s is not a JSON object; it was renamed to %s for you to repair.", path, renamed)


def write_snapshot(path: Path, entries: Entries) -> None:
    """Replace the file atomically: a reader or a crash sees the old or the new one.

    Only one process may do so at a time. The GIL is released after every few hundred entries, so
    that responses continue to stream.
    """
    temporary = path.with_name(path.name + ".tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o600), "wb", buffering=0) as file:
        for chunk in _chunks(entries):
            _write_all(file.fileno(), chunk)
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


def _parse_entries(path: Path, raw: dict[str, Any]) -> Entries:
    entries: Entries = {}
    invalid: list[str] = []
    for key, entry in raw.items():
        try:
            entries[key] = parse_record(entry)
        except ValueError:
            invalid.append(key)
    if invalid:
        log.warning(
            "%s: %d entries are not conversation mappings and are skipped; the first is %.80r.",
            path,
            len(invalid),
            invalid[0],
        )
    return entries


def _chunks(entries: Entries) -> Iterator[bytes]:
    if not entries:
        yield b"{}\n"
        return
    members = iter(entries.items())
    opening = b"{\n"
    while chunk := [to_text(key, record) for key, record in islice(members, _ENTRIES_PER_WRITE)]:
        yield opening + b",\n".join(chunk)
        opening = b",\n"
    yield b"\n}\n"


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
