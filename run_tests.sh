#!/usr/bin/env bash
# Checks everything: style, types, shell scripts, tests. Makes what it needs: .venv, and programs
# where it may install them. What is skipped is listed at the end. Arguments go to pytest:
# ./run_tests.sh -k conversations
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ "${CI:-}" = true ]; then
  export NO_COLOR=1 PIP_NO_INPUT=1
  exec </dev/null
fi
source scripts/venv.sh
source tests/programs.sh
install_requirements requirements-dev.txt
install_programs
PATH="$PWD/.venv/bin:$PATH"

ruff check .
ruff format --check .
mypy
shellcheck --external-sources ./*.sh scripts/*.sh tests/*.sh .ci/run bench/run
# Each of the processes would compile all tests anew.
unset PYTHONDONTWRITEBYTECODE
python -m pytest --numprocesses auto --dist worksteal "$@"
