#!/usr/bin/env bash
# Starts OpenDify for production. Settings come from the environment and from .env;
# gunicorn_config.py turns them into those of the server.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

export ENVIRONMENT="${ENVIRONMENT:-production}"

if [ -x .venv/bin/gunicorn ]; then
  PATH="$PWD/.venv/bin:$PATH"
elif ! command -v gunicorn >/dev/null; then
  {
    echo "Gunicorn is not installed. Install it beside OpenDify with these two lines:"
    echo "  python3 -m venv .venv"
    echo "  .venv/bin/pip install -r requirements.txt"
  } >&2
  exit 69
fi

# The Python that Gunicorn runs in says whether the settings are complete.
python="$(dirname "$(command -v gunicorn)")/python3"
[ -x "$python" ] || python=python3
"$python" -m opendify.config

exec gunicorn --config gunicorn_config.py main:app
