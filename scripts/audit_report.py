"""Tells what pip-audit found, from its report and its log; ends with 1 where that is something.

A report that is not there, or in which nothing could be looked up, means that there was no network.
"""

import json
import sys
from pathlib import Path


def main(report: Path, log: Path) -> int:
    if not report.exists() or not report.read_text().strip():
        sys.stderr.write(f"The dependencies were not audited:\n{log.read_text()[-1000:]}\n")
        return 0
    packages = json.loads(report.read_text())["dependencies"]
    looked_up = [package for package in packages if "vulns" in package]
    found = [package for package in looked_up if package["vulns"]]
    for package in found:
        for one in package["vulns"]:
            fixed = ", ".join(one["fix_versions"]) or "none yet"
            sys.stderr.write(
                f"{package['name']} {package['version']}: {one['id']}, fixed in {fixed}\n"
            )
    sys.stderr.write(f"{len(looked_up)} of {len(packages)} dependencies were audited.\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
