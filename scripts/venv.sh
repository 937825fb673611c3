# shellcheck shell=bash
# Makes .venv and installs into it. Sourced by scripts that stand in the project's folder.

# Prints the first Python on PATH that is new enough and can make environments; else says why not.
find_python() {
  local candidate lacking=""
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      echo "$candidate"
      return
    fi
    lacking="${lacking:-$candidate}"
  done
  if [ -n "$lacking" ]; then
    echo "$lacking has no venv module. On Debian and Ubuntu: sudo apt install $lacking-venv" >&2
  else
    echo "OpenDify needs Python 3.11 or newer, and none was found on PATH. On Debian and Ubuntu:" \
      "sudo apt install python3 python3-venv; on macOS: brew install python" >&2
  fi
  return 69
}

# True when .venv is one of this folder (a copied or moved one is not) with a good Python.
venv_is_sound() {
  .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
    .venv/bin/pip --version 2>/dev/null | grep -qF " from $(pwd -P)/.venv/"
}

# What stamps .venv: where it is, and what the lists of requirements hold.
describe_requirements() {
  echo "$(pwd -P) ${CI:-} $(cat requirements* | cksum)"
}

# install_requirements FILE: what FILE lists is in .venv afterwards; in continuous integration in
# exactly the versions of its lock file. Quick when it already is.
install_requirements() {
  local python stamp=".venv/.installed-$1" wanted list=(-r "$1")
  [ "${CI:-}" != true ] || list=(--require-hashes -r "${1%.txt}.lock")
  wanted="$(describe_requirements)"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
    return
  fi
  if ! venv_is_sound; then
    python="$(find_python)" || return
    echo "Making .venv with $("$python" --version)." >&2
    # Behind a link it is another folder's, in which --clear would leave nothing.
    [ ! -L .venv ] || rm .venv || return
    "$python" -m venv --clear .venv || return
  fi
  echo "Installing $1 into .venv; this can take a minute." >&2
  if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check "${list[@]}"; then
    echo "pip could not install $1 (its reason is above). Where the package index is slow or out" \
      "of reach, set PIP_INDEX_URL to a mirror near you, or HTTPS_PROXY." >&2
    return 69
  fi
  echo "$wanted" >"$stamp"
}
