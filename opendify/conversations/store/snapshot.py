"""The file that people and scripts read: every mapping, as one indented JSON object."""

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

_ENTRIES_A_WRITE = 500


class CorruptSnapshot(Exception):
    """The file is there but is not a JSON object; `inode` says which file that was."""

    def __init__(self, inode: int) -> None:
        super().__init__(inode)
        self.inode = inode


def read_snapshot(path: Path) -> Entries:
    """Read the file; none, or one without content, is no entries.

    Entries that are not mappings are left out with one warning. Raises CorruptSnapshot, and
    OSError when the file cannot be read.
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
    return _mappings(path, raw)


def set_aside(path: Path, inode: int, suffix: str) -> None:
    """Keep a corrupt file under another name, unless it has been replaced since it was read."""
    try:
        if path.stat().st_ino != inode:
            return
        kept = path.with_name(f"{path.name}.{suffix}")
        path.rename(kept)
    except FileNotFoundError:
        return
    log.error("%s is not a JSON object; it is kept as %s for you to repair.", path, kept)


def write_snapshot(path: Path, entries: Entries) -> None:
    """Replace the file, so that a reader or a crash finds the old one or the new one whole.

    Only one process may do so at a time. The Python interpreter is let go after each few
    hundred entries, so that answers go on streaming meanwhile.
    """
    unfinished = path.with_name(path.name + ".tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with open(os.open(unfinished, flags, 0o600), "wb", buffering=0) as file:
        for piece in _pieces(entries):
            _write_all(file.fileno(), piece)
        os.fsync(file.fileno())
    unfinished.replace(path)
    fsync_folder(path.parent)


def _mappings(path: Path, raw: dict[str, Any]) -> Entries:
    entries: Entries = {}
    wrong: list[str] = []
    for key, entry in raw.items():
        try:
            entries[key] = parse_record(entry)
        except ValueError:
            wrong.append(key)
    if wrong:
        log.warning(
            "%s: %d entries are not conversation mappings and are left out, the first is %.80r.",
            path,
            len(wrong),
            wrong[0],
        )
    return entries


def _pieces(entries: Entries) -> Iterator[bytes]:
    if not entries:
        yield b"{}\n"
        return
    members = iter(entries.items())
    opening = b"{\n"
    while piece := [to_text(key, mapping) for key, mapping in islice(members, _ENTRIES_A_WRITE)]:
        yield opening + b",\n".join(piece)
        opening = b",\n"
    yield b"\n}\n"


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
