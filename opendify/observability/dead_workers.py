"""The counts of processes that have ended are kept, in one file for all of them."""

import logging
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead

from opendify.observability.multiprocess_dir import (
    MIN_FILE_BYTES,
    allocate,
    current_dir,
    exclusive_lock,
)

log = logging.getLogger(__name__)

# What ended processes have counted counts on; of what they had open, nothing is open any more.
_MERGED_KINDS = ("counter", "histogram")
_ENTRY_OVERHEAD_BYTES = 32
_PID_SUFFIX = re.compile(r"_(\d+)\.db$")


def merge_dead_workers() -> None:
    """Adds up the files of this instance whose processes have ended, and removes them.

    Left for the next time while somebody reads. Nothing is raised for trouble with the files.
    """
    folder = current_dir()
    if folder is None:
        return
    try:
        with exclusive_lock(folder):
            dead = [pid for pid in _find_pids(folder) if not _is_alive(pid)]
            for kind in _MERGED_KINDS:
                _merge(folder, kind, dead)
            for pid in dead:
                mark_process_dead(pid, str(folder))
    except BlockingIOError:
        return
    except OSError as exc:
        log.warning("the metrics of ended processes stay as they are: %s", exc)


def _find_pids(folder: Path) -> set[int]:
    names = (_PID_SUFFIX.search(path.name) for path in folder.glob("*.db"))
    return {int(name[1]) for name in names if name}


def _merge(folder: Path, kind: str, dead: Iterable[int]) -> None:
    """One rename replaces the sum, so that it is whole whenever this process ends."""
    theirs = [path for pid in dead if (path := folder / f"{kind}_{pid}.db").exists()]
    if not theirs:
        return
    total, new = folder / f"{kind}_folded.db", folder / f"{kind}.new"
    new.unlink(missing_ok=True)
    values: dict[str, float] = {}
    for path in [*([total] if total.exists() else []), *theirs]:
        _add(values, path)
    allocate(new, MIN_FILE_BYTES + sum(len(key.encode()) + _ENTRY_OVERHEAD_BYTES for key in values))
    file = MmapedDict(str(new))
    for key, value in values.items():
        file.write_value(key, value, 0.0)
    file.close()
    new.replace(total)
    for path in theirs:
        path.unlink()


def _add(values: dict[str, float], path: Path) -> None:
    try:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
            values[key] = values.get(key, 0.0) + value
    except (RuntimeError, ValueError) as exc:  # ended in the middle of a new name
        log.warning("%s is cut off; what is before counts: %s", path.name, exc)


def _is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
