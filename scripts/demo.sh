# shellcheck shell=bash
# Lets the demo Dify stand in. Sourced by scripts that stand in the project's folder and then
# become the proxy.

# stand_in_for_dify PYTHON: where no Dify is configured, in the environment or in .env, starts the
# demo and makes it the Dify of this process, with which it ends. DEMO_RELEASE=1.13 makes it an
# older one.
stand_in_for_dify() {
  local base
  base="$("$1" -c 'import os, gunicorn_config; print(os.environ.get("DIFY_API_BASE", ""))')"
  if [ -n "$base" ] || "$1" -m opendify.config 2>/dev/null; then
    return
  fi
  exec 3< <(exec "$1" -m demo --release "${DEMO_RELEASE:-1.16}" --parent $$ </dev/null)
  read -r DIFY_API_BASE <&3
  exec 3<&-
  export MODEL_CONFIG='{"demo-chat":"app-demo-chat","demo-agent":"app-demo-agent",
    "demo-new-agent":"app-demo-new-agent","demo-chatflow":"app-demo-chatflow",
    "demo-completion":"app-demo-completion","demo-workflow":"app-demo-workflow"}'
  no_proxy="127.0.0.1,${no_proxy:-${NO_PROXY:-}}"
  export DIFY_API_BASE MODEL_CONFIG_FILE="" no_proxy
  echo "DIFY_API_BASE is not set: a demo Dify stands in for yours, at $DIFY_API_BASE." >&2
}
