#!/usr/bin/env bash
# Looks for what is dangerous: in our code (bandit), and in what we depend on (pip-audit, for which
# the network is needed; without it that is said, and is no failure).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
install_requirements requirements-dev.txt
PATH="$PWD/.venv/bin:$PATH"

bandit --quiet --configfile pyproject.toml --recursive main.py gunicorn_config.py opendify demo

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# It ends with 1 both when it finds something and when it could not look: its report tells.
timeout 300 pip-audit --requirement requirements.txt --progress-spinner off \
  --format json --output "$work/report.json" 2>"$work/log" || :
python scripts/audit_report.py "$work/report.json" "$work/log"
