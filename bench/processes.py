"""What processes cost, as Linux tells it."""

import os
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """The process and all its descendants."""
    found = [root]
    for pid in found:
        for task in _listed(Path(f"/proc/{pid}/task")):
            found += map(int, _read(task / "children").split())
    return found


def cpu_seconds(root: int) -> float:
    """CPU time of the tree so far, that of ended children included."""
    ticks = 0
    for pid in tree(root):
        fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15])) if fields else 0
    return ticks / TICK


def memory_bytes(root: int) -> int:
    """Proportional set size of the tree: what is shared counts once."""
    total = 0
    for pid in tree(root):
        for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
