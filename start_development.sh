#!/usr/bin/env bash
# Starts OpenDify for development: changed code is loaded by itself. Where no Dify is configured,
# in the environment or in .env, a demo Dify starts with it, and ends with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/venv.sh
source scripts/demo.sh
install_requirements requirements.txt

export ENVIRONMENT="${ENVIRONMENT:-development}" # by default: one worker, reload, debug log
address="$(.venv/bin/python -c 'import gunicorn_config as server
server.on_starting(None)
print(server.bind.replace("0.0.0.0", "127.0.0.1"))')"
stand_in_for_dify .venv/bin/python
.venv/bin/python -m opendify.config
.venv/bin/python scripts/welcome.py "$address" $$ &
exec .venv/bin/gunicorn --config gunicorn_config.py main:app
