"""Deliberate defects, and the case that catches each: whether the fault suite proves what it says.

    python -m tests.faults.mutations                   all of them; prints a table
    python -m tests.faults.mutations retry shutdown    those whose name or promise has such a word

Each defect is made in a copy of the project. A case that goes on passing with it, and one that
fails without it, is an error. Takes some minutes; nothing of it is part of the ordinary tests.
"""

import argparse
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.changes import Stale, changed, file_of
from tests.faults.defects import DEFECTS, Defect

ROOT = Path(__file__).resolve().parents[2]
CASE_SECONDS = 240


@dataclass(frozen=True)
class Result:
    defect: Defect
    verdict: str
    detail: str = ""

    @property
    def is_caught(self) -> bool:
        return self.verdict == "caught"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only defects with one of these words")
    parser.add_argument("--at-once", type=int, default=2, help="how many copies (default 2)")
    parser.add_argument(
        "--sound", action="store_true", help="the cases are known to pass without any defect"
    )
    options = parser.parse_args()
    chosen = [defect for defect in DEFECTS if _is_chosen(defect, options.words)]
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        results = _try_all(chosen, Path(folder), max(1, options.at_once), options.sound)
    _print(results)
    return 0 if all(result.is_caught for result in results) else 1


def _is_chosen(defect: Defect, words: list[str]) -> bool:
    text = f"{defect.promise} {defect.what} {defect.case}".lower()
    return not words or any(word.lower() in text for word in words)


def _try_all(defects: list[Defect], folder: Path, at_once: int, are_sound: bool) -> list[Result]:
    copies: queue.Queue[Path] = queue.Queue()
    sound = {defect.case: ("passed", "") for defect in defects} if are_sound else {}
    for number in range(at_once):
        copies.put(_copied(folder / str(number)))

    def attempt(defect: Defect) -> Result:
        copy = copies.get()
        try:
            if defect.case not in sound:
                sound[defect.case] = _run(defect.case, copy)
            result = _try(defect, copy, *sound[defect.case])
        finally:
            copies.put(copy)
        print(f"{result.verdict}: {defect.what}", file=sys.stderr, flush=True)  # noqa: T201
        return result

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(attempt, defects))


def _copied(copy: Path) -> Path:
    """What git knows of the project, as it is on the disk."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        source = ROOT / name
        if source.is_file() and not name.startswith("tests/data/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name)
    (copy / "tests/data").symlink_to(ROOT / "tests/data")
    return copy


def _try(defect: Defect, copy: Path, without: str, output: str) -> Result:
    if without != "passed":
        return Result(defect, "fails without it", output)
    try:
        with _made(defect, copy):
            verdict, output = _run(defect.case, copy)
    except (Stale, OSError) as exc:
        return Result(defect, "stale", str(exc))
    if verdict == "failed":
        return Result(defect, "caught")
    return Result(defect, "not caught" if verdict == "passed" else verdict, output)


@contextmanager
def _made(defect: Defect, copy: Path) -> Iterator[None]:
    path = file_of(defect.where, copy)
    text = path.read_text()
    _write(path, changed(text, defect.where, defect.change))
    try:
        yield
    finally:
        _write(path, text)


def _write(path: Path, text: str) -> None:
    """What was compiled of the file goes too: it would be taken for that of a file of the same
    size and second."""
    path.write_text(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def _run(case: str, copy: Path) -> tuple[str, str]:
    """How the case ends: "passed", "failed", or what else came of it."""
    node, _, words = case.partition(" -k ")
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-m", "faults or not faults", node, *(["-k", words] if words else [])]
    try:
        done = subprocess.run(
            command, cwd=copy, capture_output=True, text=True, timeout=CASE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "took too long", ""
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == 0 and " passed" in last:
        return "passed", ""
    if done.returncode == 1 and " failed" in last:
        return "failed", ""
    return "could not be run", done.stdout[-1500:]


def _print(results: list[Result]) -> None:
    lines = ["| promise | defect | case that catches it | caught |", "|---|---|---|---|"]
    for result in results:
        defect = result.defect
        case = defect.case.removeprefix("tests/faults/").replace("|", "\\|")
        verdict = "yes" if result.is_caught else f"**{result.verdict}**"
        lines.append(f"| {defect.promise} | {defect.what} | `{case}` | {verdict} |")
    caught = sum(result.is_caught for result in results)
    lines.append(f"\n{caught} of {len(results)} caught.")
    print("\n".join(lines))  # noqa: T201
    for result in results:
        if result.detail:
            print(f"\n{result.defect.what}: {result.detail}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
