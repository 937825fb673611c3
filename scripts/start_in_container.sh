#!/usr/bin/env bash
# What Dockerfile.dev starts: the mounted source, reloaded when it changes. Where no Dify is
# configured, a demo Dify runs beside it in the same container.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/demo.sh
stand_in_for_dify python
exec gunicorn --config gunicorn_config.py main:app
