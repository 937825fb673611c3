"""Puts the data of a backup in the place of what is there, and can take that back."""

import os
import pwd
import shutil
from collections.abc import Mapping
from pathlib import Path

from opendify.deploy.backup import ROLLBACK_DIR


def apply(folder: Path, files: Mapping[str, bytes], owner: str) -> None:
    """Sets aside what is in the folder and writes the files, which belong to ``owner`` (a user,
    or ``uid:gid``). Raises OSError; ``undo`` puts the old data back."""
    ids = find_owner(owner)
    commit(folder)  # of a restore that was cut short after its end
    aside = folder / ROLLBACK_DIR
    aside.mkdir(mode=0o700)
    _move(folder, aside)
    for path, content in files.items():
        _write(folder, path, content, ids)
    os.chown(folder, *ids)


def roll_back(folder: Path) -> None:
    """Puts back what ``put`` has set aside."""
    aside = folder / ROLLBACK_DIR
    if aside.is_symlink() or not aside.is_dir():
        return
    for path in folder.iterdir():
        if path != aside:
            _remove(path)
    _move(aside, folder)
    aside.rmdir()


def commit(folder: Path) -> None:
    """Forgets what ``put`` has set aside."""
    aside = folder / ROLLBACK_DIR
    if aside.is_symlink() or aside.exists():
        _remove(aside)


def find_owner(owner: str) -> tuple[int, int]:
    """User and group of what an image calls its user; "" is root."""
    user, _, group = owner.partition(":")
    if user.isdigit():
        return int(user), int(group) if group.isdigit() else int(user)
    entry = pwd.getpwnam(user or "root")
    return entry.pw_uid, int(group) if group.isdigit() else entry.pw_gid


def _move(source: Path, target: Path) -> None:
    """Renames: a link is moved and never followed."""
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
    for above in reversed(target.relative_to(folder).parents[:-1]):
        if not (folder / above).is_dir():
            (folder / above).mkdir(mode=0o700)
            os.chown(folder / above, *ids)
    with target.open("xb") as file:
        file.write(content)
    target.chmod(0o600)
    os.chown(target, *ids)
