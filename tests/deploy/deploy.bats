#!/usr/bin/env bats
# deploy.sh as a person types it, on a host that has what Debian's base has and a docker: no Python,
# curl, jq, git or ss for it. The docker is tests/deploy/fake_docker.py, which runs elsewhere.
bats_require_minimum_version 1.5.0

PROGRAMS='awk bash cat chmod cp cut date df dirname du env flock grep gzip head ls mkdir mktemp mv od
  rm sed sha256sum sleep sort stat stty tail timeout tr'
KEY=app-secret-key-1234
PORT=$((20000 + RANDOM % 10000))
ANSWERS="https://dify.example.com/v1
gpt-4
$KEY
done"

setup() {
  export FAKE_DOCKER="$BATS_TEST_TMPDIR/engine" XDG_RUNTIME_DIR="$BATS_TEST_TMPDIR/run"
  export LC_ALL=C.UTF-8 HOME="$BATS_TEST_TMPDIR" TERM=xterm
  mkdir -p "$FAKE_DOCKER" "$XDG_RUNTIME_DIR" "$BATS_TEST_TMPDIR/bin" "$BATS_TEST_TMPDIR/server"
  coproc ENGINE { exec python3 "$BATS_TEST_DIRNAME/fake_docker.py" "$FAKE_DOCKER" 3>&-; }
  tell_engine '{}' # once it answers, it listens
  local program
  for program in $PROGRAMS; do
    ln -s "$(type -P "$program")" "$BATS_TEST_TMPDIR/bin"
  done
  cp "$BATS_TEST_DIRNAME/../../deploy.sh" "$BATS_TEST_TMPDIR/server"
  cd "$BATS_TEST_TMPDIR/server" || return
  USUAL_PATH=$PATH
  PATH="$FAKE_DOCKER:$BATS_TEST_TMPDIR/bin"
}

teardown() {
  PATH=$USUAL_PATH
  tell_engine '{}'
  [[ $CALLS != *"$KEY"* ]] # no key in an argument, where `ps` shows it
  [ -z "$(find "$XDG_RUNTIME_DIR" -name 'opendify.*' -print)" ]
}

# tell_engine JSON -> CALLS: changes how it behaves
tell_engine() {
  printf '%s\n' "$1" >&"${ENGINE[1]}"
  IFS= read -r CALLS <&"${ENGINE[0]}"
}

# upload REFERENCE IMAGE: opendify.tar.gz as the fake reads it
upload() { printf '{"reference": "%s", "id": "sha256:%s"}' "$1" "$2" | gzip >opendify.tar.gz; }

deployed() {
  ./deploy.sh setup --port "$PORT" <<<"$ANSWERS"
  ./deploy.sh deploy
}

says() { [[ $output == *"$1"* ]] || { echo "'$1' is not in: $output" && false; }; }

@test "the guide's commands: setup, deploy, status, logs, update, stop" {
  upload opendify:latest newer2.0
  docker load <opendify.tar.gz
  run -0 ./deploy.sh setup --port "$PORT" <<<"$ANSWERS"
  says '🔧 创建环境配置文件'
  says '✅ 配置文件已创建: .env.production'
  says '下一步: ./deploy.sh deploy'
  [[ $output != *"$KEY"* && $(stat -c %a .env.production) == 600 ]]
  run -0 ./deploy.sh deploy
  says '✅ 部署完成!'
  run -0 ./deploy.sh status
  says '容器状态: 运行中'
  says '健康状态: 健康'
  says '  - gpt-4'
  run -0 ./deploy.sh logs
  says 'log of opendify'
  run -0 ./deploy.sh update
  says '已是最新'
  run -0 ./deploy.sh stop
  run -3 ./deploy.sh status
  says '容器状态: 已停止'
}

@test "every other verb does its work" {
  deployed
  run -0 ./deploy.sh check
  run -0 ./deploy.sh restart
  run -0 ./deploy.sh backup --out b.tar.gz
  run -0 ./deploy.sh restore b.tar.gz
  run -0 ./deploy.sh export --out e.tar.gz
  run -0 ./deploy.sh doctor
  upload opendify:latest newer2.0
  run -0 ./deploy.sh update
  says 2.0
  run -0 ./deploy.sh rollback
  run -0 ./deploy.sh stop
  run -0 ./deploy.sh start
  run -0 ./deploy.sh status --json
  says '"healthy":true'
  run -0 ./deploy.sh remove --volumes --yes
  run -3 ./deploy.sh status
}

@test "English by --lang and by the locale" {
  run -0 ./deploy.sh help --lang en
  says 'Usage:'
  LC_ALL=en_US.UTF-8 run -3 ./deploy.sh status
  says 'Container: not deployed'
}

@test "a wrong command line is 64 and changes nothing" {
  deployed
  local words
  for words in '' 'nonsense' 'deploy --port 0' 'deploy --env-file' 'status --force' 'stop now' 'setup --key app-x'; do
    # shellcheck disable=SC2086  # several words
    run -64 ./deploy.sh $words
    [ -n "$output" ]
  done
  run -0 ./deploy.sh status
}

@test "each refusal has its exit code and its remedy" {
  run -65 ./deploy.sh deploy
  says './deploy.sh setup'
  run -65 ./deploy.sh setup <<<'nonsense'
  [ ! -e .env.production ]
  run -73 ./deploy.sh setup --env-file nowhere/.env.x <<<"$ANSWERS"
  ./deploy.sh setup <<<"$ANSWERS"
  run -1 ./deploy.sh setup <<<"$ANSWERS"
  says '--yes'
  run -78 ./deploy.sh deploy --image other:1
  says 'docker load < opendify.tar.gz'
  run -1 ./deploy.sh rollback
  run -1 ./deploy.sh backup
  exec 8>"$XDG_RUNTIME_DIR/opendify-$EUID-opendify.lock"
  flock 8
  run -75 ./deploy.sh deploy 8>&-
  exec 8>&-
  echo 'dial unix docker.sock: permission denied' >"$FAKE_DOCKER/down"
  run -77 ./deploy.sh deploy
  says 'usermod -aG docker'
  echo 'Cannot connect to the Docker daemon' >"$FAKE_DOCKER/down"
  run -69 ./deploy.sh deploy
  says 'systemctl start docker'
  rm "$FAKE_DOCKER/docker"
  run -69 ./deploy.sh deploy
}

@test "a bad image is tried beside the service, which goes on" {
  deployed
  upload opendify:latest bad2.0
  tell_engine '{"behaviour": {"sha256:bad2.0": {"trial": "unhealthy"}}}'
  run -1 ./deploy.sh update
  says '什么都没有改变'
  run -0 ./deploy.sh status
  says 1.0
}

@test "one that fails as a service is rolled back; where that fails too, it is said" {
  deployed
  upload opendify:latest bad2.0
  tell_engine '{"behaviour": {"sha256:bad2.0": {"service": "crash"}}}'
  run -124 ./deploy.sh update
  says '已回滚'
  run -0 ./deploy.sh status
  says 1.0
  local old
  old="$(docker inspect -f '{{.Image}}' opendify)"
  tell_engine "{\"behaviour\": {\"sha256:bad2.0\": {\"service\": \"crash\"}, \"$old\": {\"service\": \"loop\"}}}"
  run -2 ./deploy.sh update
  says '服务现在是停的'
}

@test "an interrupted deploy restores the service" {
  deployed
  upload opendify:latest slow2.0
  tell_engine '{"behaviour": {"sha256:slow2.0": {"service": "starting"}}}'
  # bats ignores SIGINT in what it starts behind; SIGTERM is taken as the same
  ./deploy.sh update >said 2>&1 3>&- &
  until grep -q '停止 opendify' said; do
    kill -0 "$!"
    sleep 0.1
  done
  kill -TERM "$!"
  local status=0
  wait "$!" || status=$?
  [ "$status" -eq 130 ]
  grep -q '已恢复原状' said
  run -0 ./deploy.sh status
  says 1.0
}

@test "a decrypted file on standard input is written nowhere" {
  ./deploy.sh setup --port "$PORT" <<<"$ANSWERS"
  cat .env.production >"$BATS_TEST_TMPDIR/plain"
  rm .env.production
  run -0 ./deploy.sh deploy --env-file - <"$BATS_TEST_TMPDIR/plain"
  [ "$(ls -A)" = deploy.sh ]
}

@test "two environments side by side" {
  deployed
  run -0 ./deploy.sh setup --env-file .env.staging --port "$((PORT + 1))" <<<"$ANSWERS"
  run -0 ./deploy.sh deploy --env-file .env.staging
  run -0 ./deploy.sh stop --env-file .env.staging
  run -3 ./deploy.sh status --all
  says opendify-staging
  run -0 ./deploy.sh status
}
