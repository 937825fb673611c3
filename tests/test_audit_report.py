import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import ROOT

SOUND = {"name": "flask", "version": "3.1.3", "vulns": []}
HOLED = {"name": "old", "version": "1", "vulns": [{"id": "GHSA-1", "fix_versions": ["2"]}]}
UNKNOWN = {"name": "ours", "skip_reason": "not found"}


def audited(folder: Path, report: str | None, log: str = "") -> tuple[int, str]:
    if report is not None:
        (folder / "report").write_text(report)
    (folder / "log").write_text(log)
    words = [
        sys.executable,
        ROOT / "scripts" / "audit_report.py",
        folder / "report",
        folder / "log",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SOUND], 0, "1 of 1 dependencies were audited"),
        ([SOUND, UNKNOWN], 0, "1 of 2 dependencies were audited"),
        ([SOUND, HOLED], 1, "old 1: GHSA-1, fixed in 2"),
    ],
)
def test_what_was_found_decides(
    tmp_path: Path, packages: list[dict[str, object]], code: int, said: str
) -> None:
    found, told = audited(tmp_path, json.dumps({"dependencies": packages}))
    assert (found, said in told) == (code, True)


@pytest.mark.parametrize("report", [None, ""])
def test_without_the_network_it_reports_that_and_fails_nothing(
    tmp_path: Path, report: str | None
) -> None:
    code, told = audited(tmp_path, report, "could not connect")
    assert (code, "not audited" in told, "could not connect" in told) == (0, True, True)
