"""Replaces the data directory with the data of a backup; can be rolled back."""

import os
import pwd
import shutil
from collections.abc import Mapping
from pathlib import Path

from opendify.deploy.backup import ROLLBACK_DIR


def apply(folder: Path, files: Mapping[str, bytes], owner: str) -> None:
    """Moves the current data aside and writes the files, owned by ``owner`` (a user, or
    ``uid:gid``). Raises OSError; ``roll_back`` restores the previous data."""
    ids = find_owner(owner)
    commit(folder)  # in case an earlier restore was interrupted before its commit
    rollback = folder / ROLLBACK_DIR
    rollback.mkdir(mode=0o700)
    _move(folder, rollback)
    for path, content in files.items():
        _write(folder, path, content, ids)
    os.chown(folder, *ids)


def roll_back(folder: Path) -> None:
    """Restores the data that ``apply`` moved aside."""
    rollback = folder / ROLLBACK_DIR
    if rollback.is_symlink() or not rollback.is_dir():
        return
    for path in folder.iterdir():
        if path != rollback:
            _remove(path)
    _move(rollback, folder)
    rollback.rmdir()


def commit(folder: Path) -> None:
    """Deletes the data that ``apply`` moved aside."""
    rollback = folder / ROLLBACK_DIR
    if rollback.is_symlink() or rollback.exists():
        _remove(rollback)


def find_owner(owner: str) -> tuple[int, int]:
    """Uid and gid of the user of an image; "" is root."""
    user, _, group = owner.partition(":")
    if user.isdigit():
        return int(user), int(group) if group.isdigit() else int(user)
    entry = pwd.getpwnam(user or "root")
    return entry.pw_uid, int(group) if group.isdigit() else entry.pw_gid


def _move(source: Path, target: Path) -> None:
    """Renames, so that links are moved and never followed."""
    for path in list(source.iterdir()):
        if path.name != ROLLBACK_DIR:
            path.rename(target / path.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write(folder: Path, path: str, content: bytes, ids: tuple[int, int]) -> None:
    target = folder / path
    for parent in reversed(target.relative_to(folder).parents[:-1]):
        if not (folder / parent).is_dir():
            (folder / parent).mkdir(mode=0o700)
            os.chown(folder / parent, *ids)
    with target.open("xb") as file:
        file.write(content)
    target.chmod(0o600)
    os.chown(target, *ids)
