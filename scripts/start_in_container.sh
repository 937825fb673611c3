#!/usr/bin/env bash
# What Dockerfile.dev starts: the mounted source, reloaded when it changes. Where no Dify is
# configured, in the environment or in .env, a demo Dify runs beside it in the same container.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base="$(python -c 'import os, gunicorn_config; print(os.environ.get("DIFY_API_BASE", ""))')"
if [ -z "$base" ]; then
  exec 3< <(exec python -m demo --parent $$ </dev/null)
  read -r DIFY_API_BASE <&3
  exec 3<&-
  export MODEL_CONFIG='{"demo-chat":"app-demo-chat","demo-agent":"app-demo-agent",
    "demo-chatflow":"app-demo-chatflow","demo-completion":"app-demo-completion",
    "demo-workflow":"app-demo-workflow"}'
  no_proxy="127.0.0.1,${no_proxy:-${NO_PROXY:-}}"
  export DIFY_API_BASE no_proxy
  echo "DIFY_API_BASE is not set: a demo Dify stands in for yours." >&2
fi
exec gunicorn --config gunicorn_config.py main:app
