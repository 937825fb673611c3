#!/usr/bin/env bash
# Starts OpenDify for development: changed code is loaded by itself. Where no Dify is configured,
# in the environment or in .env, a demo Dify starts with it, and ends with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/venv.sh
install_requirements requirements.txt

export ENVIRONMENT="${ENVIRONMENT:-development}" # by default: one worker, reload, debug log
# gunicorn_config.py knows the address, and adds to the environment what only .env sets.
read -r address base < <(.venv/bin/python -c 'import os, gunicorn_config as server
server.on_starting(None)
print(server.bind.replace("0.0.0.0", "127.0.0.1"), os.environ.get("DIFY_API_BASE", ""))')

if [ -z "$base" ] && ! .venv/bin/python -m opendify.config 2>/dev/null; then
  exec 3< <(exec .venv/bin/python -m demo --parent $$ </dev/null)
  read -r DIFY_API_BASE <&3
  exec 3<&-
  export MODEL_CONFIG='{"demo-chat":"app-demo-chat","demo-agent":"app-demo-agent",
    "demo-chatflow":"app-demo-chatflow","demo-completion":"app-demo-completion",
    "demo-workflow":"app-demo-workflow"}'
  no_proxy="127.0.0.1,${no_proxy:-${NO_PROXY:-}}"
  export DIFY_API_BASE no_proxy
  echo "DIFY_API_BASE is not set: a demo Dify stands in for yours, at $DIFY_API_BASE." >&2
fi
.venv/bin/python -m opendify.config
.venv/bin/python scripts/welcome.py "$address" $$ &
exec .venv/bin/gunicorn --config gunicorn_config.py main:app
