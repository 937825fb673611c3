# shellcheck shell=bash
# Installs what tests/programs.txt lists. Sourced by scripts that stand in the project's folder.

# Prints the lines "program package" of the programs that are not on PATH.
missing_programs() {
  local program package
  while read -r program package; do
    [ -n "$package" ] && [ "$program" != "#" ] || continue
    PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null || echo "$program $package"
  done <tests/programs.txt
}

# Packages are installed by root with apt-get. Where systemd runs, those of nginx, Redis and
# Prometheus would start services, so there the command is only named, except in CI.
may_install_programs() {
  [ "$EUID" -eq 0 ] && command -v apt-get >/dev/null &&
    { [ "${CI:-}" = true ] || [ ! -d /run/systemd/system ]; }
}

# Installs what is missing. What cannot be installed fails in CI; elsewhere its tests are skipped.
install_programs() {
  local missing packages=() program package
  missing="$(missing_programs)"
  [ -n "$missing" ] || return 0
  while read -r program package; do
    packages+=("$package")
  done <<<"$missing"
  if may_install_programs; then
    echo "Installing the programs that the tests need: ${packages[*]}." >&2
    # One after another: a package that this release does not have keeps no other away.
    apt-get update --quiet >&2 || true
    for package in "${packages[@]}"; do
      DEBIAN_FRONTEND=noninteractive \
        apt-get install --quiet --yes --no-install-recommends "$package" >&2 || true
    done
    missing="$(missing_programs)"
    [ -n "$missing" ] || return 0
  fi
  packages=()
  while read -r program package; do
    packages+=("$package")
  done <<<"$missing"
  if [ "${CI:-}" = true ]; then
    echo "These packages are needed and could not be installed: ${packages[*]}" >&2
    return 69
  fi
  echo "Tests that need one of these packages are skipped; to run them, install:" \
    "${packages[*]}" >&2
}
