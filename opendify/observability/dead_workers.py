"""Preserves the counts of processes that have exited, merged in one file."""

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

# Totals of exited processes still count; their gauges (open streams) do not.
_MERGED_KINDS = ("counter", "histogram")
_ENTRY_OVERHEAD_BYTES = 32
_PID_SUFFIX = re.compile(r"_(\d+)\.db$")


def merge_dead_workers() -> None:
    """Merges the files of exited processes of this instance, and removes them.

    Postponed to the next call while another process reads. File errors are logged, not raised.
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
        log.warning("the metrics of exited processes could not be merged: %s", exc)


def _find_pids(folder: Path) -> set[int]:
    names = (_PID_SUFFIX.search(path.name) for path in folder.glob("*.db"))
    return {int(name[1]) for name in names if name}


def _merge(folder: Path, kind: str, dead: Iterable[int]) -> None:
    """Replaces the merged file with a single rename, so that it stays intact if this process
    dies."""
    paths = [path for pid in dead if (path := folder / f"{kind}_{pid}.db").exists()]
    if not paths:
        return
    total, new = folder / f"{kind}_folded.db", folder / f"{kind}.new"
    new.unlink(missing_ok=True)
    values: dict[str, float] = {}
    for path in [*([total] if total.exists() else []), *paths]:
        _add(values, path)
    allocate(new, MIN_FILE_BYTES + sum(len(key.encode()) + _ENTRY_OVERHEAD_BYTES for key in values))
    file = MmapedDict(str(new))
    for key, value in values.items():
        file.write_value(key, value, 0.0)
    file.close()
    new.replace(total)
    for path in paths:
        path.unlink()


def _add(values: dict[str, float], path: Path) -> None:
    try:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
            values[key] = values.get(key, 0.0) + value
    except (RuntimeError, ValueError) as exc:  # the process died while adding a name
        log.warning("%s is truncated; the values before that are counted: %s", path.name, exc)


def _is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
