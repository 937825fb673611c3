"""Backups of the data folder: a tar.gz of plain files under ``data/``, and back."""

import io
import json
import os
import stat
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

# While a restore is under way, what was there before lies here.
ROLLBACK_DIR = ".before-restore"
SNAPSHOT = "conversation_mappings.json"

_TRANSIENT_SUFFIXES = (".lock", ".tmp")
_ATTEMPTS = 50
_RETRY_SECONDS = 0.1  # seconds


class InvalidBackup(Exception):
    """Data or an archive that is not what it should be, as a sentence."""


def read_folder(folder: Path) -> dict[str, bytes]:
    """All plain files by their path within the folder, as they were at one moment.

    The snapshot is read after the journals, as the application does; where a file came or went
    meanwhile, all is read again. Links are left out: they could lead out of the folder.
    """
    files: dict[str, bytes] = {}
    for _ in range(_ATTEMPTS):
        files = {}
        for path in _listed(folder):
            content = _read(folder / path)
            if content is not None:
                files[path] = content
        if _listed(folder) == list(files):
            break
        time.sleep(_RETRY_SECONDS)
    _check_snapshot(files)
    return files


def _listed(folder: Path) -> list[str]:
    paths = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ROLLBACK_DIR]
        for name in names:
            path = Path(here, name)
            if not name.endswith(_TRANSIENT_SUFFIXES) and _is_plain(path):
                paths.append(str(path.relative_to(folder)))
    return sorted(paths, key=lambda path: (path == SNAPSHOT, path))


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _read(path: Path) -> bytes | None:
    """None where it has gone, or has become a link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        return file.read()


def _check_snapshot(files: Mapping[str, bytes]) -> None:
    try:
        json.loads(files.get(SNAPSHOT, b"").strip() or b"{}")
    except ValueError:
        raise InvalidBackup(f"{SNAPSHOT} is not valid JSON") from None


def write_archive(out: BinaryIO, files: Mapping[str, bytes], now: float) -> None:
    """A tar.gz of these files, by their names in it."""
    with tarfile.open(fileobj=out, mode="w|gz") as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(now)
            archive.addfile(entry, io.BytesIO(content))


def read_archive(source: BinaryIO) -> dict[str, bytes]:
    """The data files by their path within the data folder; a configuration beside them is left
    out. Raises BadBackup where anything else is in it: nothing is written before all was read."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=source, mode="r|gz") as archive:
            for member in archive:
                path = _path_within(member)
                content = archive.extractfile(member) if member.isreg() else None
                if path and content:
                    files[path] = content.read()
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise InvalidBackup(f"not a whole tar.gz ({type(exc).__name__})") from None
    _check_paths(files)
    _check_snapshot(files)
    return files


def _path_within(member: tarfile.TarInfo) -> str:
    """Its path in the data folder, or "" for what does not go there."""
    name = member.name.rstrip("/")
    first, *parts = name.split("/")
    if first not in ("data", "config") or {"", ".", "..", ROLLBACK_DIR} & set(parts):
        raise InvalidBackup(f"a name that does not belong there: {member.name!r}")
    if not name.isprintable() or "\\" in name:
        raise InvalidBackup(f"a name that does not belong there: {member.name!r}")
    if not (member.isreg() or member.isdir()):
        raise InvalidBackup(f"not a plain file: {member.name!r}")
    return "/".join(parts) if first == "data" else ""


def _check_paths(files: Mapping[str, bytes]) -> None:
    for path in files:
        above = path.rpartition("/")[0]
        while above:
            if above in files:
                raise InvalidBackup(f"both a file and a folder: {above!r}")
            above = above.rpartition("/")[0]
