"""Programs that tests drive: those of requirements-dev.txt, and those of tests/programs.txt."""

import os
import shutil
import sys
from pathlib import Path

import pytest

LIST = Path(__file__).parents[1] / "programs.txt"


def packages() -> dict[str, str]:
    """Program to its Debian package."""
    lines = [line.split() for line in LIST.read_text().splitlines() if not line.startswith("#")]
    return {program: package for program, package in lines}


def require_program(name: str) -> str:
    """The path of a program. Where it is missing, the test is skipped; with CI=true it fails."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name, path=search_path())
    if found:
        return found
    package = packages().get(name)
    missing = f"{name} is not installed" + (f" (apt-get install {package})" if package else "")
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


def search_path() -> str:
    """PATH, and where Debian has programs of administrators."""
    return os.pathsep.join([os.environ.get("PATH", ""), os.defpath, "/usr/sbin"])
