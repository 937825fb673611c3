#!/usr/bin/env bash
# Writes requirements.lock and requirements-dev.lock: the exact versions, with hashes, that the
# image and continuous integration install. Arguments go to uv, for example --upgrade.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
install_requirements requirements-dev.txt

for name in requirements requirements-dev; do
  .venv/bin/uv pip compile "$name.txt" --output-file "$name.lock" --generate-hashes --universal \
    --python-version 3.11 --no-header --no-annotate --no-emit-index-url --quiet "$@"
done
