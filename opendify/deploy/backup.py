"""Backups of the data directory: tar.gz archives of regular files under ``data/``."""

import io
import json
import os
import stat
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

# During a restore, the previous data is moved here.
ROLLBACK_DIR = ".before-restore"
SNAPSHOT = "conversation_mappings.json"

_TRANSIENT_SUFFIXES = (".lock", ".tmp")
_ATTEMPTS = 50
_RETRY_SECONDS = 0.1  # seconds


class InvalidBackup(Exception):
    """Data or an archive is invalid; the message says why."""


def read_folder(folder: Path) -> dict[str, bytes]:
    """All regular files by their path in the directory, as a consistent snapshot.

    The snapshot file is read after the journals, as the application does; everything is read again
    if files were added or removed meanwhile. Symbolic links are skipped: they could lead out of the
    directory.
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
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ROLLBACK_DIR]
        for name in names:
            path = Path(parent, name)
            if not name.endswith(_TRANSIENT_SUFFIXES) and _is_plain(path):
                paths.append(str(path.relative_to(folder)))
    return sorted(paths, key=lambda path: (path == SNAPSHOT, path))


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _read(path: Path) -> bytes | None:
    """None if the file has been removed or replaced with a link."""
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
    """Writes a tar.gz of these files, by name."""
    with tarfile.open(fileobj=out, mode="w|gz") as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(now)
            archive.addfile(entry, io.BytesIO(content))


def read_archive(source: BinaryIO) -> dict[str, bytes]:
    """The data files by their path in the data directory; configuration files are skipped. Raises
    InvalidBackup if the archive contains anything else. Everything is read before anything is
    written."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=source, mode="r|gz") as archive:
            for member in archive:
                path = _path_within(member)
                content = archive.extractfile(member) if member.isreg() else None
                if path and content:
                    files[path] = content.read()
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise InvalidBackup(f"not a complete tar.gz ({type(exc).__name__})") from None
    _check_paths(files)
    _check_snapshot(files)
    return files


def _path_within(member: tarfile.TarInfo) -> str:
    """The path in the data directory, or "" for entries that are not restored."""
    name = member.name.rstrip("/")
    first, *parts = name.split("/")
    if first not in ("data", "config") or {"", ".", "..", ROLLBACK_DIR} & set(parts):
        raise InvalidBackup(f"an unexpected name: {member.name!r}")
    if not name.isprintable() or "\\" in name:
        raise InvalidBackup(f"an unexpected name: {member.name!r}")
    if not (member.isreg() or member.isdir()):
        raise InvalidBackup(f"not a plain file: {member.name!r}")
    return "/".join(parts) if first == "data" else ""


def _check_paths(files: Mapping[str, bytes]) -> None:
    for path in files:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in files:
                raise InvalidBackup(f"both a file and a directory: {parent!r}")
            parent = parent.rpartition("/")[0]
