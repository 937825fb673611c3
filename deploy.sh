#!/usr/bin/env bash
# deploy.sh - put OpenDify into service on one host that has Docker (or Podman), and look after it.
#
# Lines that begin with #zh and #en are the help that `deploy.sh help` prints.
#
#zh 用法: ./deploy.sh <命令> [选项]
#zh
#zh 命令:
#zh   setup      创建配置文件（交互式；也可 --api-base URL --model 名称 --key-file 名称=文件，
#zh              或 --models-file 文件.json，"-" 为标准输入；--port 写入 SERVER_PORT）
#zh   check      检查配置文件；--online 用每个密钥向 Dify 试问一次
#zh   deploy     部署：先试运行，再切换，失败自动回滚；--force 无变化也重新部署
#zh   update     加载 opendify.tar.gz（或 --from 文件）并部署
#zh   rollback   回到上一个版本；再执行一次则回来
#zh   status     状态；--all 所有环境，--json，--ask 向第一个模型提一个短问题
#zh   logs       日志；-f 持续，-n 行数（默认 200），--since 时间
#zh   stop | start | restart   停止、启动、重启（配置改动后请用 deploy）
#zh   backup     备份会话映射；--out 文件，--with-config 连同配置文件（含密钥）
#zh   restore 备份文件         恢复会话映射（先备份现有数据）
#zh   remove     删除容器；--volumes 连同数据
#zh   doctor     逐项检查并说明如何修复；--json
#zh   export     把镜像保存为 opendify.tar.gz（或 --out 文件）
#zh   help       本说明
#zh
#zh 通用选项:
#zh   --env-file 文件   配置文件，默认脚本旁的 .env.production；"-" 为标准输入
#zh   --name 名称       默认: .env.production 为 opendify，.env.staging 为 opendify-staging
#zh   --port 端口       主机端口，默认配置文件中的 SERVER_PORT，否则 5000
#zh   --bind 地址       监听地址；默认 PUBLISH_ADDRESS，否则有 OPENDIFY_API_KEYS 则 0.0.0.0，
#zh                     没有则 127.0.0.1
#zh   --image 镜像      默认 opendify:latest
#zh   --data 卷或目录   数据所在，默认卷 <名称>_data；目录须写作 /绝对路径
#zh   --memory 大小     内存上限，默认按进程数计算，至少 1g；--cpus 数量；--network 网络
#zh   --timeout 秒      等待健康的时间，默认 60
#zh   --engine docker|podman（podman 为实验性）   --dry-run 只显示命令
#zh   -y, --yes   -q, --quiet   --lang zh|en   --no-color   -h, --help   --version
#zh
#zh 没有另外给出时，沿用上次部署的 --bind --image --data --memory --cpus --network；
#zh update 还沿用 --port。
#zh
#zh 退出码: 0 完成  1 失败但什么都没变（或已回滚）  2 失败且服务已停  3 status: 不健康
#zh   64 用法  65 配置有误  69 没有 Docker  73 写不进文件  75 另一个部署正在进行
#zh   77 没有权限  78 镜像没有加载  124 等待健康超时（已回滚）  130 被中断（已恢复）
#en Usage: ./deploy.sh <verb> [options]
#en
#en Verbs:
#en   setup      write the configuration file (asks; or --api-base URL --model NAME
#en              --key-file NAME=FILE, or --models-file FILE.json, "-" is standard input;
#en              --port sets SERVER_PORT)
#en   check      check the configuration file; --online asks Dify once with each key
#en   deploy     trial run, swap, automatic rollback; --force even if nothing changed
#en   update     load opendify.tar.gz (or --from FILE) and deploy it
#en   rollback   back to the version before; once more goes forward again
#en   status     --all for every environment, --json, --ask puts a short question to the
#en              first model
#en   logs       -f to follow, -n LINES (default 200), --since TIME
#en   stop | start | restart   (after a change of configuration use deploy)
#en   backup     save the conversation mappings; --out FILE, --with-config adds the
#en              configuration file with its keys
#en   restore BACKUP           put mappings back (saves the present ones first)
#en   remove     remove the containers; --volumes the data as well
#en   doctor     check this host line by line and say how to mend it; --json
#en   export     save the image as opendify.tar.gz (or --out FILE)
#en   help       this text
#en
#en Common options:
#en   --env-file FILE   default .env.production beside this script; "-" is standard input
#en   --name NAME       default: .env.production is opendify, .env.staging opendify-staging
#en   --port N          port on the host; default SERVER_PORT of the file, else 5000
#en   --bind ADDRESS    default PUBLISH_ADDRESS of the file; else 0.0.0.0 where
#en                     OPENDIFY_API_KEYS is set, 127.0.0.1 where not
#en   --image REF       default opendify:latest
#en   --data VOLUME|DIR where data lives, default volume <name>_data; a DIR is absolute
#en   --memory SIZE     default by the number of workers, at least 1g; --cpus N; --network NET
#en   --timeout S       how long to wait for health, default 60
#en   --engine docker|podman (podman is experimental)   --dry-run prints the commands only
#en   -y, --yes   -q, --quiet   --lang zh|en   --no-color   -h, --help   --version
#en
#en Unless given, --bind --image --data --memory --cpus --network stay as at the last deploy;
#en for update, --port too.
#en
#en Exit codes: 0 done  1 failed, nothing changed (or rolled back)  2 failed and the service is
#en   down  3 status: not healthy  64 usage  65 bad configuration  69 no engine  73 cannot write
#en   75 another deploy is running  77 no permission  78 image not loaded
#en   124 not healthy in time (rolled back)  130 interrupted (restored)

# Plain sh first: this must be readable by dash and by the bash 3 of macOS.
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi
if [ "${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}" -lt 42 ]; then
  echo "deploy.sh: bash 4.2 or newer is needed, this is $BASH_VERSION" >&2
  exit 69
fi
set -euo pipefail

readonly SCRIPT_VERSION=0.1.0
readonly CONTAINER_PORT=5000
SCRIPT=${BASH_SOURCE[0]}
HERE=$(cd "$(dirname "$SCRIPT")" && pwd)

# ---------------------------------------------------------------- words

declare -A ZH=() EN=()
message() { ZH[$1]=$2 EN[$1]=$3; }

message ask_chmod '是否改为 600? (y/N): ' 'Change it to 600? (y/N): '
message ask_remove '确定删除 %s? (y/N): ' 'Really remove %s? (y/N): '
message ask_remove_data '确定删除 %s 和它的全部数据? (y/N): ' 'Really remove %s and all its data? (y/N): '
message setup_backup '旧文件保存在 %s' 'The old file is kept as %s'
message next_deploy '下一步: ./deploy.sh deploy' 'Next: ./deploy.sh deploy'
message needs_yes '没有终端，无法询问: 加上 --yes 表示同意' 'No terminal to ask on: add --yes to agree'
message is_symlink '%s 是符号链接，拒绝写入' '%s is a symbolic link: refused'
message cannot_write '无法写入 %s' 'Cannot write %s'
message cannot_read '无法读取 %s' 'Cannot read %s'
message no_env_file '配置文件 %s 不存在。请先执行: ./deploy.sh setup' 'Configuration file %s does not exist. First run: ./deploy.sh setup'
# shellcheck disable=SC2016  # the reader is to type it
message other_owner '%s 属于另一个用户，拒绝使用。请执行: sudo chown "$USER" %s' '%s belongs to another user: refused. Run: sudo chown "$USER" %s'
message wide_mode '%s 的权限是 %s，其他用户能读到密钥。请执行: chmod 600 %s' '%s has mode %s: others can read the keys. Run: chmod 600 %s'
message p_port '端口无效: %s（应为 1 到 65535）' 'Not a valid port: %s (1 to 65535)'
message check_unseen '镜像没有加载，由脚本旁边的源码代为检查' 'The image is not loaded: the source beside this script checks instead'
message needs_python '检查配置的程序在镜像 %s 里，而它用不了，旁边也没有源码: 什么都没有检查，也没有改动' 'What checks the configuration is in image %s, which cannot be used, and no source lies beside this script: nothing was checked or changed'
message python_failed '镜像 %s 没有完成检查（它比这个 deploy.sh 旧? 请使用同一版本的两者）' 'Image %s did not finish its part (older than this deploy.sh? Use both of one version)'
message logs_hidden '日志里的密钥无法遮盖，所以没有显示。查看: %s logs %s' 'Keys in the log could not be masked, so it is not shown. See: %s logs %s'
message no_lock_folder '没有可以放锁的安全目录。请设置 XDG_RUNTIME_DIR 为只属于当前用户的目录' 'There is no safe folder for the lock. Set XDG_RUNTIME_DIR to a folder that is yours alone'
message online_title '向 Dify 询问:' 'Asking Dify:'
message online_failed '有模型没有通过，见上' 'Some models did not pass, see above'
message no_engine '找不到 Docker。安装: https://docs.docker.com/engine/install/' 'Docker was not found. To install it: https://docs.docker.com/engine/install/'
message engine_silent '%s 没有响应: %s。请执行: sudo systemctl start docker' '%s does not answer: %s. Run: sudo systemctl start docker'
# shellcheck disable=SC2016  # the reader is to type it
message engine_denied '没有权限使用 %s。请执行: sudo usermod -aG docker "$USER"，然后重新登录；或者用 sudo' 'No permission to use %s. Run: sudo usermod -aG docker "$USER" and log in again; or use sudo'
message locked '另一个部署正在进行: %s（锁 %s）' 'Another deploy is running: %s (lock %s)'
message no_image '镜像 %s 没有加载。请先加载镜像: docker load < opendify.tar.gz' 'Image %s is not loaded. Load it first: docker load < opendify.tar.gz'
message loading '📦 加载镜像: %s' '📦 Loading the image: %s'
message load_failed '加载 %s 失败: %s' 'Loading %s failed: %s'
message load_other '%s 里的镜像是 %s，不是 %s。用 --image 指定它' '%s holds image %s, not %s. Name it with --image'
message bad_archive '%s 已损坏（gzip 校验失败），请重新上传' '%s is damaged (gzip check failed): upload it again'
message bad_sum '%s 与 %s 不符，请重新上传' '%s does not match %s: upload it again'
message no_sum '没有 %s，无法校验' 'There is no %s to check against'
message nothing_to_update '没有可更新的: 没有 opendify.tar.gz，镜像也没有变化' 'Nothing to update: no opendify.tar.gz, and the image is the same'
message up_to_date '✅ 已是最新，无需重新部署' '✅ Already up to date, nothing to deploy'
message foreign '容器 %s 不是由 deploy.sh 创建的（可能来自 Compose）。请先停止并删除它，或用 --name 另取名字' 'Container %s was not made by deploy.sh (by Compose, perhaps). Stop and remove it first, or choose another --name'
message reserved '名称 %s 不能用: 小写字母、数字、_ . -，并且不能以 -next -new -prev -old 结尾' 'Name %s cannot be used: lower-case letters, digits, _ . - and not ending in -next -new -prev -old'
message port_used '端口 %s 已被占用（%s）。查看: ss -tlnp | grep %s；或用 --port 换一个' 'Port %s is in use (%s). Look: ss -tlnp | grep %s; or choose another --port'
message port_program '某个程序' 'some program'
message kept_options '沿用上次的选项:%s' 'Options kept from the last deploy:%s'
message healed '上一次部署没有完成，已恢复到它之前的状态' 'The last deploy was cut short: restored what was before it'
message deploying '🚀 部署 %s（镜像 %s）' '🚀 Deploying %s (image %s)'
message canary '🔍 试运行新版本（不影响现有服务）...' '🔍 Trial run of the new version (the service goes on)...'
message canary_failed '新版本试运行没有通过，什么都没有改变。它最后的日志:' 'The new version failed its trial run; nothing was changed. Its last log lines:'
message nothing_changed '部署失败，现有服务没有受影响' 'The deploy failed; the present service was not touched'
message swapping '🔄 切换...' '🔄 Swapping...'
message start_failed '新容器没有健康起来。它最后的日志:' 'The new container did not become healthy. Its last log lines:'
message rolled_back '部署失败，已回滚到上一个版本，服务正常' 'The deploy failed; rolled back to the version before, which is healthy'
message rolled_stopped '失败，已恢复原状（此前服务没有在运行）' 'Failed; all is as before (the service was not running)'
message down '失败，而且服务现在是停的！请查看: ./deploy.sh logs' 'Failed, and the service is down! See: ./deploy.sh logs'
message deployed '✅ 部署完成!' '✅ Deployed!'
message no_previous '没有可以回到的版本' 'There is no version to go back to'
message rolling '⏪ 回到 %s' '⏪ Going back to %s'
message rollback_done '✅ 已回到上一个版本。注意: %s 仍指向另一个镜像，下一次 deploy 会用它' '✅ Back at the version before. Note: %s still names the other image; the next deploy uses that'
message rollback_failed '没有健康起来，已回到原来的版本' 'It did not become healthy; the version from before is back'
message interrupted '被中断' 'Interrupted'
message restored_state '已恢复原状' 'All is as before'
message absent '%s 没有部署。请执行: ./deploy.sh deploy' '%s is not deployed. Run: ./deploy.sh deploy'
message stop_absent '%s 没有部署，无需停止' '%s is not deployed: nothing to stop'
message stop_already '%s 已经是停止的' '%s is stopped already'
message stopping '⏹️  停止 %s（正在回答的请求最多等 %s 秒）...' '⏹️  Stopping %s (running answers get up to %s s)...'
message stopped '✅ 已停止，容器和数据都保留着' '✅ Stopped; container and data are kept'
message started '✅ %s 已启动，健康' '✅ %s is up and healthy'
message start_timeout '%s 已启动，但在 %s 秒内没有健康起来。请查看: ./deploy.sh logs' '%s was started but is not healthy after %s s. See: ./deploy.sh logs'
message engine_failed '%s 失败: %s' '%s failed: %s'
message remove_absent '%s 没有部署，无需删除' '%s is not deployed: nothing to remove'
message removed '✅ 已删除 %s' '✅ Removed %s'
message data_kept '数据保留在 %s' 'The data is kept in %s'
message data_dir_kept '数据目录 %s 没有删除' 'The data folder %s was not removed'
message no_data '没有数据: %s 不存在' 'No data: %s does not exist'
message backup_done '✅ 备份完成: %s（%s 个文件）' '✅ Backup written: %s (%s files)'
message backup_failed '备份失败: %s' 'The backup failed: %s'
message backup_keys '备份含有密钥，请妥善保管' 'The backup holds keys: guard it'
message restore_usage '用法: ./deploy.sh restore 备份文件' 'Usage: ./deploy.sh restore BACKUP'
message restore_bad '%s 不能用: %s' '%s cannot be used: %s'
message restore_undone '恢复失败，已放回原来的数据' 'The restore failed; the old data is back in place'
message restore_done '✅ 已恢复 %s（%s 个文件）' '✅ Restored %s (%s files)'
message export_done '✅ 镜像已保存: %s（%s）' '✅ Image saved: %s (%s)'
message export_failed '保存镜像失败: %s' 'Saving the image failed: %s'
message export_next '上传: scp %s deploy.sh user@server:/path/to/deploy/' 'Upload: scp %s deploy.sh user@server:/path/to/deploy/'
message build_image '镜像 %s 不存在。请先构建: docker build -t %s .' 'There is no image %s. Build it first: docker build -t %s .'
message unknown_option '未知选项: %s（./deploy.sh help 查看用法）' 'Unknown option: %s (see ./deploy.sh help)'
message unknown_verb '未知命令: %s（./deploy.sh help 查看用法）' 'Unknown verb: %s (see ./deploy.sh help)'
message wrong_option '%s 不适用于 %s' '%s does not go with %s'
message needs_value '%s 需要一个值' '%s needs a value'
message no_value '%s 不带值' '%s takes no value'
message bad_value '%s 的值无效: %s' 'Not a valid value for %s: %s'
message extra_word '多余的参数: %s' 'Unexpected argument: %s'
message stdin_setup 'setup 不能写到标准输入: --env-file 需要一个文件名' 'setup cannot write to standard input: --env-file needs a file name'
message doctor_title '🩺 检查 %s' '🩺 Checking %s'
message d_bash 'bash %s' 'bash %s'
message d_engine '%s %s' '%s %s'
message d_cgroup 'cgroup v%s，rootless: %s' 'cgroup v%s, rootless: %s'
message d_compose 'Compose: %s' 'Compose: %s'
message d_no_compose '没有 Compose（deploy.sh 不需要它）' 'No Compose (deploy.sh does not need it)'
message d_disk '磁盘剩余 %s MB（%s）' 'Disk free: %s MB (%s)'
message d_disk_low '磁盘只剩 %s MB（%s），至少要 1024 MB。清理: docker image prune' 'Only %s MB of disk left (%s), 1024 MB are needed. Clean up: docker image prune'
message d_image '镜像 %s' 'Image %s'
message d_platform '镜像的架构是 %s，这台机器是 %s。重新构建: docker build --platform linux/%s' 'The image is for %s, this host is %s. Build it anew: docker build --platform linux/%s'
message d_unseen '没有检查 %s 的内容: 镜像没有加载' 'The content of %s was not checked: the image is not loaded'
message d_port '端口 %s 空闲' 'Port %s is free'
message d_port_ours '端口 %s 由 %s 使用' 'Port %s is held by %s'
message d_port_used '端口 %s 被占用（%s）。查看: ss -tlnp | grep %s' 'Port %s is in use (%s). Look: ss -tlnp | grep %s'
message d_clock '时钟 %s' 'Clock %s'
message d_clock_bad '时钟没有与网络同步: %s。修复: sudo timedatectl set-ntp true' 'The clock is not synchronised: %s. Mend: sudo timedatectl set-ntp true'
message d_git '%s 被 git 跟踪，密钥会进入历史。执行: git rm --cached %s' 'git tracks %s: keys get into its history. Run: git rm --cached %s'
message d_git_ok 'git 没有跟踪 .env 文件' 'git tracks no .env files'
message d_ignore '.dockerignore 没有排除 .env.*: 密钥会进入镜像' '.dockerignore does not exclude .env.*: keys get into images'
message d_locale '终端编码不是 UTF-8 (%s)，中文可能显示不正常。执行: export LANG=C.UTF-8，或加 --lang en' 'The locale is not UTF-8 (%s): Chinese may not show. Run: export LANG=C.UTF-8, or add --lang en'
message d_locale_ok '终端编码 UTF-8' 'Locale is UTF-8'

# ---------------------------------------------------------------- saying things

choose_language() {
  local locale=${LC_ALL:-${LC_MESSAGES:-${LANG:-}}}
  case ${OPT[lang]:-} in
    zh | en) LANGUAGE_CHOICE=${OPT[lang]} && return ;;
  esac
  case $locale in
    '' | C | C.* | POSIX | zh*) LANGUAGE_CHOICE=zh ;;
    *) LANGUAGE_CHOICE=en ;;
  esac
}

# words KEY [ARGUMENT...] -> REPLY
words() {
  local form=${ZH[$1]}
  [[ $LANGUAGE_CHOICE == zh ]] || form=${EN[$1]}
  shift
  # shellcheck disable=SC2059  # the forms are the table above, never input
  printf -v REPLY "$form" "$@"
}

# Nobody may be listening any more: that is no reason to stop half-way.
tell() { words "$@" && { printf '%s\n' "$REPLY" 2>/dev/null || true; }; }
say() { [[ -n ${OPT[quiet]:-} ]] || tell "$@"; }

paint() { # paint COLOUR TEXT, on stderr
  if [[ -n ${OPT[no-color]:-} || -n ${NO_COLOR:-} || ${TERM:-dumb} == dumb || ! -t 2 ]]; then
    printf '%s\n' "$2" >&2 || true
  else
    printf '\033[%sm%s\033[0m\n' "$1" "$2" >&2 || true
  fi
}

warn() { words "$@" && paint 33 "⚠️  $REPLY"; }
complain() { words "$@" && paint 31 "❌ $REPLY"; }

# die CODE KEY [ARGUMENT...]
die() {
  local code=$1
  shift
  complain "$@"
  exit "$code"
}

# confirm FLAG KEY [ARGUMENT...]: yes on the terminal, or --yes; with neither, exit with the FLAG's code.
confirm() {
  local refusal=$1 answer=''
  shift
  [[ -z ${OPT[yes]:-} ]] || return 0
  [[ -t 0 ]] || die "$refusal" needs_yes
  words "$@" && printf '%s' "$REPLY"
  IFS= read -r answer || true
  [[ $answer == [yY] || $answer == [yY][eE][sS] ]]
}

now() { date -u +%Y-%m-%dT%H:%M:%SZ; }

show_help() { sed -n "s/^#$LANGUAGE_CHOICE \{0,1\}//p" "$SCRIPT"; }

# json_quote TEXT -> REPLY: a JSON string; control characters become blanks
json_quote() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  REPLY="\"${text//[[:cntrl:]]/ }\""
}

# ---------------------------------------------------------------- leaving

declare -a UNDO=()
TEMPORARY='' LOCK_FOLDER='' TERMINAL_STATE='' WAS_RUNNING=''

# undo COMMAND WORD...: what to run, last one first, if we do not come to the end
undo() {
  local IFS=$'\x1f'
  UNDO+=("$*")
}

roll_back() {
  local index command
  for ((index = ${#UNDO[@]} - 1; index >= 0; index--)); do
    IFS=$'\x1f' read -r -d '' -a command < <(printf '%s\x1f\0' "${UNDO[index]}")
    "${command[@]}" >/dev/null 2>&1 || true
  done
  UNDO=() KNOWN=''
}

on_signal() {
  trap '' INT TERM HUP
  exit 130
}

# After an interruption all is as before only when the service answers again; else `code` says so.
await_restored() {
  if [[ -z $WAS_RUNNING ]] || wait_healthy "$NAME"; then
    complain restored_state
  else
    complain down
    code=2
  fi
}

on_exit() {
  local code=$?
  trap - EXIT
  trap '' INT TERM HUP
  set +e
  [[ -z $TERMINAL_STATE ]] || stty "$TERMINAL_STATE" 2>/dev/null
  ((code != 130)) || { echo >&2 && complain interrupted; }
  if ((${#UNDO[@]})); then
    roll_back
    ((code != 130)) || await_restored
  fi
  [[ -z $TEMPORARY ]] || rm -rf "$TEMPORARY"
  [[ -z $LOCK_FOLDER ]] || rm -rf "$LOCK_FOLDER"
  case $code in
    0 | 1 | 2 | 3 | 64 | 65 | 69 | 73 | 75 | 77 | 78 | 124 | 130) exit "$code" ;;
    *) exit 1 ;;
  esac
}

# sweep FOLDER: what deploys that were killed could not remove holds keys
sweep() {
  local left owner
  for left in "$1"/opendify.*.????????; do
    owner=${left##*/opendify.}
    owner=${owner%.*}
    [[ -d $left && ! -L $left && -O $left && $owner =~ ^[0-9]+$ ]] || continue
    kill -0 "$owner" 2>/dev/null || rm -rf "$left"
  done
}

# A folder of ours alone, in memory where there is such a place.
need_temporary() {
  local parent
  [[ -z $TEMPORARY ]] || return 0
  umask 077
  for parent in "${XDG_RUNTIME_DIR:-}" /dev/shm "${TMPDIR:-/tmp}" "$HERE"; do
    # Docker from a snap sees nothing outside the home folders.
    [[ $(command -v "${ENGINE:-docker}") != /snap/* || $parent == "$HERE" ]] || continue
    [[ -n $parent && -d $parent && -w $parent ]] || continue
    sweep "$parent"
    TEMPORARY=$(mktemp -d "$parent/opendify.$$.XXXXXXXX" 2>/dev/null) && return 0
  done
  die 73 cannot_write "${TMPDIR:-/tmp}"
}

# ---------------------------------------------------------------- the command line

declare -A OPT=()
declare -a WORDS=() SETUP_OPTIONS=()
LANGUAGE_CHOICE=zh

# option:verbs it belongs to, or * for all
readonly VALUE_OPTIONS=' env-file:* name:* port:* bind:* image:* engine:* timeout:* data:* lang:*
  memory:* cpus:* network:* tail:logs since:logs from:update out:backup,export
  api-base:setup model:setup key-file:setup models-file:setup '
readonly FLAG_OPTIONS=' yes:* quiet:* dry-run:* no-color:* help:* version:* json:status,doctor
  force:deploy,update all:status follow:logs volumes:remove with-config:backup online:check ask:status '
readonly VERBS=' setup check deploy update rollback status logs stop start restart backup restore
  remove doctor export help '

# option_verbs TABLE NAME -> REPLY: the verbs it goes with
option_verbs() {
  local entry
  for entry in $1; do
    [[ ${entry%%:*} == "$2" ]] && REPLY=${entry#*:} && return 0
  done
  return 1
}

readonly -A LONG_FORM=(['-y']=--yes ['-q']=--quiet ['-f']=--follow ['-h']=--help ['-n']=--tail)

# parse_arguments WORD... -> OPT, WORDS, SETUP_OPTIONS
parse_arguments() {
  local typed name
  while (($#)); do
    typed=${1%%=*} name=${LONG_FORM[${1:-_}]:-${1%%=*}}
    name=${name#--}
    if [[ $1 == -- ]]; then
      WORDS+=("${@:2}")
      return
    elif [[ $1 != -?* ]]; then
      WORDS+=("$1")
    elif option_verbs "$FLAG_OPTIONS" "$name"; then
      [[ $1 != *=* ]] || die 64 no_value "$typed"
      OPT[$name]=1
    elif ! option_verbs "$VALUE_OPTIONS" "$name"; then
      die 64 unknown_option "$typed"
    elif [[ $1 == *=* ]]; then
      set_option "$name" "$typed" "${1#*=}"
    else
      [[ ${2:-} != --?* ]] || die 64 needs_value "$typed"
      set_option "$name" "$typed" "${2:-}"
      shift
    fi
    shift
  done
}

# set_option NAME AS_TYPED VALUE
set_option() {
  [[ -n $3 ]] || die 64 needs_value "$2"
  OPT[$1]=$3
  case $1 in
    api-base | model | key-file | models-file | port) SETUP_OPTIONS+=("--$1=$3") ;;
  esac
}

# Every option given must belong to the verb.
check_options() {
  local verb=$1 name shown
  for name in ${OPT[@]+"${!OPT[@]}"}; do
    option_verbs "$VALUE_OPTIONS $FLAG_OPTIONS" "$name"
    shown=--$name
    [[ $name != tail ]] || shown=-n
    [[ $REPLY == '*' || ,$REPLY, == *,"$verb",* ]] || die 64 wrong_option "$shown" "$verb"
  done
}

check_values() {
  is_port "${OPT[port]:-1}" || die 64 p_port "${OPT[port]}"
  demand timeout '^[1-9][0-9]{0,4}$'
  demand tail '^(all|[0-9]{1,9})$'
  demand since '^[0-9A-Za-z:.+-]{1,40}$'
  demand bind "$ADDRESS"
  demand image '^[A-Za-z0-9][A-Za-z0-9._/:@-]*$'
  demand data '^/[^[:space:]:,]*$|^[A-Za-z0-9][A-Za-z0-9_.-]+$'
  demand memory '^[1-9][0-9]*[bkmgBKMG]?$'
  demand cpus '^[0-9]{1,4}(\.[0-9]{1,3})?$'
  demand network '^[A-Za-z0-9][A-Za-z0-9_.-]*$'
  demand lang '^(zh|en)$'
  demand engine '^(docker|podman)$'
}

readonly ADDRESS='^[0-9A-Fa-f:.]{2,45}$|^\[[0-9A-Fa-f:.]+\]$'

# demand OPTION PATTERN: if it is given, it has this form
demand() {
  [[ -z ${OPT[$1]:-} || ${OPT[$1]} =~ $2 ]] || die 64 bad_value "--$1" "${OPT[$1]}"
}

# ENV_FILE, ENV_SHOWN, NAME and what follows from them
settle_names() {
  ENV_FILE=${OPT[env-file]:-$HERE/.env.production}
  ENV_SHOWN=${OPT[env-file]:-$ENV_FILE}
  [[ $ENV_SHOWN != "$PWD/.env.production" ]] || ENV_SHOWN=.env.production
  NAME=${OPT[name]:-}
  [[ -n $NAME ]] || derive_name "$ENV_FILE"
  [[ $NAME =~ ^[a-z0-9][a-z0-9_.-]{1,60}$ && ! $NAME =~ -(next|new|prev|old)$ ]] ||
    die 64 reserved "$NAME"
}

derive_name() {
  local LC_ALL=C base=${1##*/} slug
  case $base in
    - | .env | .env.production) NAME=opendify && return ;;
  esac
  slug=${base#.env.}
  slug=${slug,,}
  slug=${slug//[^a-z0-9]/-}
  while [[ $slug == -* ]]; do slug=${slug#-}; done
  while [[ $slug == *- ]]; do slug=${slug%-}; done
  [[ -n $slug ]] || die 64 reserved "$base"
  NAME=opendify-$slug
}

# ---------------------------------------------------------------- Python

# What is no call of the engine, and can wait for the image, is done by opendify/deploy in it.
readonly SEALED=(--rm -i --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges)
readonly DEPLOY=(python -m opendify.deploy)
declare -a PYTHON=()
declare -A FACT=()

# find_python -> PYTHON: the image that would run, or that runs; where none is loaded, a checkout
# beside this script. One without its packages is none.
find_python() {
  local candidate
  if [[ -n $ENGINE ]] && find_loaded_image; then
    PYTHON=("$ENGINE" run --network none "${SEALED[@]}" "$IMAGE_ID" "${DEPLOY[@]}")
    return
  fi
  [[ -f $HERE/opendify/deploy/__main__.py ]] || return 1
  for candidate in "$HERE/.venv/bin/python" python3; do
    PYTHON=(env "PYTHONPATH=$HERE" PYTHONDONTWRITEBYTECODE=1 "$candidate" -m opendify.deploy)
    ! "${PYTHON[@]}" --help >/dev/null 2>&1 || return 0
  done
  PYTHON=()
  return 1
}

# For verbs that begin without an image: one beside this script is loaded. Else says why nothing
# can be checked, and leaves.
need_python() {
  ! reach_engine || settle_options
  if find_python; then
    [[ -n $IMAGE_ID ]] || warn check_unseen
    return 0
  fi
  if [[ -n $ENGINE && -f $HERE/opendify.tar.gz ]]; then
    find_image
    ! find_python || return 0
  fi
  complain needs_python "$IMAGE"
  [[ -n $ENGINE ]] || refuse_engine
  refuse_image
}

# find_loaded_image -> IMAGE_ID: what the next deploy would take, else what the container has. One
# that was deployed long ago may lack the package.
find_loaded_image() {
  IMAGE_ID=$(image_fact '{{.Id}}' "$IMAGE") || IMAGE_ID=${CONTAINER[image]:-}
  [[ -n $IMAGE_ID ]]
}

# converse VERB [OPTION...]: serves what Python asks for, line by line, and returns its exit code.
# The lines are described in opendify/deploy/operator.py.
converse() {
  local line pid to from CODE=''
  coproc TALK { exec "${PYTHON[@]}" --lang "$LANGUAGE_CHOICE" "$@"; }
  pid=$TALK_PID
  [[ -n ${TALK[1]:-} ]] || { complain python_failed "$IMAGE" && return 1; }
  exec {from}<&"${TALK[0]}" {to}>&"${TALK[1]}"
  eval "exec ${TALK[0]}<&- ${TALK[1]}>&-"
  while IFS= read -r -u "$from" line; do respond "${line%% *}" "${line#* }"; done
  exec {from}<&- {to}>&-
  wait "$pid" 2>/dev/null || true
  [[ $CODE =~ ^[0-9]{1,3}$ ]] || { complain python_failed "$IMAGE" && return 1; }
  return "$CODE"
}

# respond WORD TEXT
respond() {
  case $1 in
    say) [[ -n ${OPT[quiet]:-} ]] || printf '%s\n' "$2" ;;
    tell) printf '%s\n' "$2" ;;
    warn) paint 33 "⚠️  $2" ;;
    error) paint 31 "❌ $2" ;;
    detail) printf '  - %s\n' "$2" >&2 ;;
    ask | hide)
      printf '%s' "$2"
      if "read_$1"; then printf '=%s\n' "$REPLY" >&"$to"; else echo . >&"$to"; fi
      ;;
    file) send_file "$2" >&"$to" ;;
    survey)
      REPLY=$(survey "$2") || exit "$?"
      hexadecimal <<<"$REPLY" >&"$to"
      ;;
    line) printf '%s\n' "$2" >>"$PUT" || die 73 cannot_write "$ENV_SHOWN" ;;
    put) "$PLACE" && echo '=' >&"$to" ;;
    set) FACT[${2%% *}]=${2#* } ;;
    finding) add_finding "${2%% *}" "${2#* }" ;;
    exit) CODE=$2 ;;
  esac
}

read_ask() { IFS= read -r REPLY || [[ -n $REPLY ]]; }

read_hide() {
  local status=0
  [[ -t 0 ]] || { read_ask && return; }
  TERMINAL_STATE=$(stty -g)
  stty -echo
  IFS= read -r REPLY || status=1
  stty "$TERMINAL_STATE" && TERMINAL_STATE=''
  echo
  return "$status"
}

# send_file PATH: a file of this host in hexadecimal, for a process that cannot see it
send_file() {
  if [[ $1 == - && $ENV_FILE == - ]]; then
    INPUT=$(cat)
    printf '%s\n' "$INPUT" | hexadecimal
  elif [[ $1 == - && ${OPT[models-file]:-} == - ]]; then
    hexadecimal
  elif [[ ! -e $1 ]]; then
    echo .
  elif [[ -d $1 || ! -r $1 ]] || ! is_named "$1"; then
    echo '!'
  else
    hexadecimal <"$1"
  fi
}

# is_named PATH: on the command line, or in the configuration file. An image gets no other file.
is_named() {
  local entry text=${INPUT:-} relative=${1#"$(dirname "$ENV_FILE")"/}
  [[ $1 != "$ENV_FILE" && $1 != "${OPT[models-file]:-}" ]] || return 0
  for entry in ${SETUP_OPTIONS[@]+"${SETUP_OPTIONS[@]}"}; do
    [[ $entry != --key-file=* || ${entry##*=} != "$1" ]] || return 0
  done
  [[ ! -r $ENV_FILE ]] || text=$(<"$ENV_FILE")
  [[ $text == *_FILE*"$relative"* ]]
}

hexadecimal() { printf '=%s\n' "$(od -An -v -tx1 | tr -d ' \n')"; }

# ---------------------------------------------------------------- the configuration file

require_env_file() {
  [[ $ENV_FILE != - ]] || return 0
  [[ -e $ENV_FILE ]] || die 65 no_env_file "$ENV_SHOWN"
  [[ -r $ENV_FILE && -f $ENV_FILE ]] || die 77 cannot_read "$ENV_SHOWN"
  is_ours || die 77 other_owner "$ENV_SHOWN" "$ENV_SHOWN"
  check_mode
}

# load_configuration VERB [OPTION...] -> FACT, and RAW: the file that the engine reads, without quotes,
# since `--env-file` of `docker run` keeps them. Exits with 65 where the configuration is wrong.
load_configuration() {
  need_temporary
  RAW=$TEMPORARY/environment PUT=$TEMPORARY/environment PLACE=:
  converse "$1" --env-file="$ENV_FILE" --shown-as="$ENV_SHOWN" "${@:2}" || exit "$?"
}

# file_fact FORMAT_GNU FORMAT_BSD FILE
file_fact() { stat -L -c "$1" "$3" 2>/dev/null || stat -L -f "$2" "$3"; }

is_ours() {
  local owner
  owner=$(file_fact %u %u "$ENV_FILE")
  [[ $owner == "$EUID" || $owner == "${SUDO_UID:-$EUID}" ]]
}

is_private() { (((8#$(file_fact %a %Lp "$1") & 8#077) == 0)); }

check_mode() {
  ! is_private "$ENV_FILE" || return 0
  warn wide_mode "$ENV_SHOWN" "$(file_fact %a %Lp "$ENV_FILE")" "$ENV_SHOWN"
  [[ -t 0 || -n ${OPT[yes]:-} ]] || return 0
  ! confirm 64 ask_chmod || chmod 600 "$ENV_FILE"
}

is_port() { [[ $1 =~ ^[0-9]{1,5}$ ]] && ((10#$1 >= 1 && 10#$1 <= 65535)); }

# ---------------------------------------------------------------- setup

cmd_setup() {
  local arguments=()
  [[ $ENV_FILE != - ]] || die 64 stdin_setup
  [[ ! -L $ENV_FILE ]] || die 73 is_symlink "$ENV_SHOWN"
  need_python
  new_beside_env_file
  [[ ! -t 0 ]] || arguments+=(--terminal)
  [[ -z ${OPT[yes]:-} ]] || arguments+=(--yes)
  converse setup --env-file="$ENV_FILE" --shown-as="$ENV_SHOWN" ${arguments[@]+"${arguments[@]}"} \
    ${SETUP_OPTIONS[@]+"${SETUP_OPTIONS[@]}"} || exit "$?"
  [[ ! -e $ENV_FILE.bak ]] || say setup_backup "$ENV_SHOWN.bak"
  say next_deploy
}

# new_beside_env_file -> PUT: where the new file is written, to be renamed when it is whole
new_beside_env_file() {
  umask 077
  PUT=$(mktemp "$(dirname "$ENV_FILE")/.env.XXXXXXXX" 2>/dev/null) || die 73 cannot_write "$ENV_SHOWN"
  undo rm -f "$PUT"
  PLACE=place_env_file
}

place_env_file() {
  chmod 600 "$PUT"
  if [[ -e $ENV_FILE ]]; then
    [[ -f $ENV_FILE && ! -L $ENV_FILE.bak ]] || die 73 cannot_write "$ENV_SHOWN"
    cp -p "$ENV_FILE" "$ENV_FILE.bak" || die 73 cannot_write "$ENV_SHOWN.bak"
    chmod 600 "$ENV_FILE.bak"
  fi
  mv -f "$PUT" "$ENV_FILE" || die 73 cannot_write "$ENV_SHOWN"
  UNDO=()
}

# ---------------------------------------------------------------- the engine

ENGINE='' KNOWN='' IMAGE_ID=''
declare -A OURS=() CONTAINER=() SETTING=()

# bounded SECONDS COMMAND...: where the host has no `timeout`, without a bound
bounded() {
  if command -v timeout >/dev/null; then timeout "$@"; else "${@:2}"; fi
}

# reach_engine -> ENGINE: the first engine that answers; else REFUSED and FAILURE say why none does
reach_engine() {
  local candidate wanted=${OPT[engine]:-${CONTAINER_ENGINE:-}} failure=''
  REFUSED='' FAILURE=''
  [[ -z $wanted || $wanted == docker || $wanted == podman ]] || die 64 bad_value CONTAINER_ENGINE "$wanted"
  for candidate in ${wanted:-docker podman}; do
    command -v "$candidate" >/dev/null || continue
    failure=$(bounded 30 "$candidate" ps -q 2>&1 >/dev/null) && ENGINE=$candidate && break
    REFUSED=${REFUSED:-$candidate}
    FAILURE=${FAILURE:-${failure%%$'\n'*}}
  done
  [[ -n $ENGINE ]]
}

find_engine() { reach_engine || refuse_engine; }

refuse_engine() {
  [[ -n $REFUSED ]] || die 69 no_engine
  [[ ${FAILURE,,} != *'permission denied'* ]] || die 77 engine_denied "$REFUSED"
  die 69 engine_silent "$REFUSED" "$FAILURE"
}

# Everything that changes something goes through here, so that --dry-run can show it instead.
change() {
  KNOWN=''
  if [[ -n ${OPT[dry-run]:-} ]]; then
    printf '+ %s' "$ENGINE" >&2
    printf ' %q' "$@" >&2
    printf '\n' >&2
  else
    "$ENGINE" "$@" >/dev/null
  fi
}

inspect() { "$ENGINE" inspect --type container -f "$1" "$2" 2>/dev/null; }

# find_container NAME -> FOUND: its id, if it is there and ours. By label and whole name.
find_container() {
  local name id list
  if [[ -z $KNOWN ]]; then
    list=$("$ENGINE" ps -a --no-trunc --filter label=opendify.managed=1 --format '{{.Names}} {{.ID}}') ||
      die 69 engine_silent "$ENGINE" 'ps'
    OURS=() KNOWN=1
    while read -r name id; do
      [[ -z $name ]] || OURS[$name]=$id
    done <<<"$list"
  fi
  FOUND=${OURS[$1]:-}
  [[ -n $FOUND ]]
}

# begin_change: what every verb that changes a container does first
begin_change() {
  take_lock
  find_engine
  settle_options
  refuse_foreign
}

refuse_foreign() {
  find_container "$NAME" && return
  [[ -z $(inspect '{{.Id}}' "$NAME") ]] || die 1 foreign "$NAME"
}

readonly FACTS='state {{.State.Status}}
health {{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}
restarts {{.RestartCount}}
image {{.Image}}
ref {{.Config.Image}}
started {{.State.StartedAt}}
stop {{.Config.StopTimeout}}
version {{index .Config.Labels "opendify.version"}}
digest {{index .Config.Labels "opendify.config-sha256"}}
options {{index .Config.Labels "opendify.options"}}
address {{index .Config.Labels "opendify.address"}}
data {{range .Mounts}}{{if eq .Destination "/app/data"}}{{if .Name}}{{.Name}}{{else}}{{.Source}}{{end}}{{end}}{{end}}'

no_facts() {
  CONTAINER=([state]=absent [health]=none [restarts]=0 [image]='' [ref]='' [started]='' [stop]=40
    [version]='' [digest]='' [options]='' [address]='' [data]='')
}

# describe ID -> CONTAINER: what the engine knows of it
describe() {
  local facts name value
  no_facts
  facts=$(inspect "$FACTS" "$1") || return 1
  while read -r name value; do CONTAINER[$name]=$value; done <<<"$facts"
  [[ ${CONTAINER[stop]} =~ ^[0-9]+$ ]] || CONTAINER[stop]=40
}

# describe_named NAME: as describe, of ours alone; its state is absent where there is none
describe_named() {
  find_container "$1" || { no_facts && return; }
  describe "$FOUND" || true
}

image_fact() { "$ENGINE" image inspect -f "$1" "$2" 2>/dev/null; }

# Without systemd, podman runs no health checks by itself.
podman_is_healthy() { [[ $ENGINE == podman ]] && podman healthcheck run "$1" >/dev/null 2>&1; }

# wait_healthy CONTAINER: 0 healthy, 1 it ended or the engine calls it unhealthy, 124 no longer waiting
wait_healthy() {
  local deadline=$((SECONDS + ${OPT[timeout]:-60})) first=''
  [[ -z ${OPT[dry-run]:-} ]] || return 0
  while :; do
    describe "$1" || return 1
    first=${first:-${CONTAINER[restarts]}}
    ((CONTAINER[restarts] == first)) || return 1
    ! podman_is_healthy "$1" || CONTAINER[health]=healthy
    case ${CONTAINER[state]}/${CONTAINER[health]} in
      running/healthy) return 0 ;;
      running/none) ask_service "$1" >/dev/null && return 0 ;;
      running/unhealthy | exited/* | dead/* | restarting/*) return 1 ;;
    esac
    ((SECONDS < deadline)) || return 124
    sleep 1
  done
}

# ask_service CONTAINER [--ask]: what the service answers, asked from inside
ask_service() { "$ENGINE" exec "$1" "${DEPLOY[@]}" probe "${@:2}" 2>&1; }

# last_lines CONTAINER COUNT: of its log, its own secrets masked by its own image
last_lines() {
  local image
  need_temporary
  image=$(inspect '{{.Image}}' "$1") || return 0
  inspect '{{range .Config.Env}}{{println .}}{{end}}' "$1" >"$TEMPORARY/masked"
  "$ENGINE" logs --tail "$2" "$1" 2>&1 |
    "$ENGINE" run --network none "${SEALED[@]}" --env-file "$TEMPORARY/masked" "$image" \
      "${DEPLOY[@]}" mask >&2 || complain logs_hidden "$ENGINE" "$1"
}

# ---------------------------------------------------------------- one deploy at a time

# lock_folder -> REPLY: one that nobody else can write to, so that nobody else can hold the lock
lock_folder() {
  local folder
  for folder in "${XDG_RUNTIME_DIR:-/run/user/$EUID}" /run "${HOME:-}" "$HERE"; do
    [[ -d $folder && -O $folder && -w $folder ]] || continue
    (((8#$(file_fact %a %Lp "$folder") & 8#022) == 0)) && REPLY=$folder && return
  done
  die 73 no_lock_folder
}

take_lock() {
  local base holder
  lock_folder
  base=$REPLY/opendify-$EUID-$NAME.lock
  if command -v flock >/dev/null; then
    [[ ! -L $base ]] || die 73 is_symlink "$base"
    (umask 077 && : >>"$base") 2>/dev/null || die 73 cannot_write "$base"
    exec 9<>"$base"
    if ! flock -n 9; then
      holder=$(head -n 1 "$base")
      die 75 locked "${holder:-?}" "$base"
    fi
  else
    take_folder_lock "$base.d"
    exec 9>"$base.d/holder"
  fi
  printf 'pid %s, %s          \n' "$$" "$(now)" >&9
}

take_folder_lock() {
  local holder=''
  if ! mkdir "$1" 2>/dev/null; then
    holder=$(head -n 1 "$1/holder" 2>/dev/null) || true
    [[ $holder =~ ^pid\ ([0-9]+) ]] || die 75 locked "${holder:-?}" "$1"
    ! kill -0 "${BASH_REMATCH[1]}" 2>/dev/null || die 75 locked "$holder" "$1"
    rm -rf "$1"
    mkdir "$1" 2>/dev/null || die 75 locked "?" "$1"
  fi
  LOCK_FOLDER=$1
}

# ---------------------------------------------------------------- images

# full_reference REF -> REPLY: with its tag, without what podman and Docker put before it
full_reference() {
  REPLY=${1#localhost/}
  REPLY=${REPLY#docker.io/}
  REPLY=${REPLY#library/}
  [[ ${REPLY##*/} == *[:@]* ]] || REPLY+=:latest
}

# IMAGE without tag and digest; a registry may have a port
repository() {
  local name=${IMAGE%@*}
  [[ ${name##*/} != *:* ]] || name=${name%:*}
  printf '%s\n' "$name"
}

# In a clone it is built, elsewhere it is loaded.
refuse_image() {
  [[ ! -f $HERE/Dockerfile ]] || die 78 build_image "$IMAGE" "$IMAGE"
  die 78 no_image "$IMAGE"
}

# IMAGE_ID of IMAGE; loads opendify.tar.gz beside this script where there is none
find_image() {
  IMAGE_ID=$(image_fact '{{.Id}}' "$IMAGE") && return
  [[ -f $HERE/opendify.tar.gz ]] || refuse_image
  check_archive "$HERE/opendify.tar.gz"
  load_archive "$HERE/opendify.tar.gz"
}

sum_of() {
  if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1
}

# check_archive FILE: whole, and as its .sha256 says
check_archive() {
  local stated
  [[ -r $1 ]] || die 65 cannot_read "$1"
  if [[ -r $1.sha256 ]]; then
    stated=$(cut -c 1-64 <"$1.sha256")
    [[ $(sum_of <"$1") == "$stated" ]] || die 65 bad_sum "$1" "$1.sha256"
  fi
  gzip -t "$1" 2>/dev/null || die 65 bad_archive "$1"
}

load_archive() {
  local output loaded wanted
  say loading "$1"
  [[ -z ${OPT[dry-run]:-} ]] || { change load -i "$1" && IMAGE_ID=$IMAGE && return; }
  output=$("$ENGINE" load <"$1" 2>&1) || die 1 load_failed "$1" "${output##*$'\n'}"
  loaded=$(sed -n 's/^Loaded image\((s)\)\{0,1\}: *//p' <<<"$output")
  full_reference "$IMAGE"
  wanted=$REPLY
  for REPLY in $loaded; do
    full_reference "$REPLY"
    [[ $REPLY != "$wanted" ]] || { IMAGE_ID=$(image_fact '{{.Id}}' "$IMAGE") && return; }
  done
  die 78 load_other "$1" "${loaded:-?}" "$IMAGE"
}

# ---------------------------------------------------------------- what the container shall be

# remember OPTION -> REPLY: as it was given for the last deploy
remember() {
  local entry
  for entry in ${CONTAINER[options]}; do
    [[ $entry != "$1="* ]] || REPLY=${entry#*=}
  done
  [[ -z $REPLY ]] || KEPT+=" --$1 $REPLY"
}

# settle_options [deploy] -> SETTING, IMAGE, DATA: from the options, else from the last deploy
settle_options() {
  local option
  KEPT='' OPTIONS=''
  describe_named "$NAME"
  for option in bind image data memory cpus network port; do
    REPLY=${OPT[$option]:-}
    # A deploy takes the port from the configuration file again.
    [[ -n $REPLY || $option/${1:-} == port/deploy ]] || remember "$option"
    SETTING[$option]=$REPLY
    OPTIONS+=${REPLY:+${OPTIONS:+ }$option=$REPLY}
  done
  IMAGE=${SETTING[image]:-opendify:latest}
  DATA=${SETTING[data]:-${NAME}_data}
}

# plan -> FACT: address, port and limits of the container, known before anything is touched
plan() {
  local option cores arguments=()
  cores=$("$ENGINE" info -f '{{.NCPU}}' 2>/dev/null) ||
    cores=$("$ENGINE" info -f '{{.Host.CPUs}}' 2>/dev/null) || cores=''
  for option in bind port memory cpus network; do
    arguments+=("--$option=${SETTING[$option]}")
  done
  load_configuration plan --name="$NAME" --data="$DATA" --cores="$cores" "${arguments[@]}"
  VERSION=$(image_fact '{{index .Config.Labels "org.opencontainers.image.version"}}' "$IMAGE_ID") || VERSION=''
}

# SETTINGS: the part of `run` that trial and service share
common_settings() {
  SETTINGS=(
    --init --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges
    --memory "${FACT[memory]}" --pids-limit "${FACT[pids]}" --stop-timeout "${FACT[stop]}"
    --env-file "$RAW"
    --label opendify.managed=1 --label "opendify.env=$NAME" --label "opendify.version=$VERSION"
  )
  # Named, because another default of the daemon may refuse these options.
  [[ $ENGINE == podman ]] ||
    SETTINGS+=(--log-driver json-file --log-opt max-size=10m --log-opt max-file=3)
  [[ -z ${SETTING[cpus]} ]] || SETTINGS+=(--cpus "${SETTING[cpus]}")
}

# The trial has no port and no data: two processes must not write the same files.
trial_settings() {
  common_settings
  SETTINGS+=(--name "$NAME-next" --tmpfs /app/data --tmpfs /app/logs)
  [[ ${SETTING[network]:-host} == host ]] || SETTINGS+=(--network "${SETTING[network]}")
}

service_settings() {
  local address=${FACT[bind]}:${FACT[port]} network=${SETTING[network]}
  common_settings
  SETTINGS+=(
    --name "$NAME-new" --restart unless-stopped
    --volume "$DATA:/app/data" --volume "${NAME}_logs:/app/logs"
    --label "opendify.config-sha256=${FACT[digest]}" --label "opendify.options=$OPTIONS"
    --label "opendify.address=$address"
    --label "opendify.deployed-at=$(now)"
  )
  [[ $network == host ]] || SETTINGS+=(--publish "$address:$CONTAINER_PORT")
  [[ -z $network ]] || SETTINGS+=(--network "$network")
}

# port_holder PORT -> HOLDER: the container that publishes it, if one does
port_holder() {
  HOLDER=$("$ENGINE" ps --filter "publish=$1" --format '{{.Names}}' 2>/dev/null | head -n 1) || HOLDER=''
}

# Does something on this host answer at the port? Nothing can be said of an engine elsewhere.
port_answers() {
  local address=${FACT[bind]:-${SETTING[bind]}}
  address=${address//[][]/}
  case ${DOCKER_HOST:-unix:} in
    unix:*) ;;
    *) return 1 ;;
  esac
  case $address in
    '' | 0.0.0.0 | ::) address=127.0.0.1 ;;
  esac
  # shellcheck disable=SC2016  # the inner shell expands them
  bounded 2 bash -c 'exec 3<>"/dev/tcp/$1/$2"' _ "$address" "$1" 2>/dev/null
}

# our_port_is PORT: our running service holds it
our_port_is() {
  describe_named "$NAME"
  [[ ${CONTAINER[state]} == running && ${CONTAINER[address]##*:} == "$1" ]]
}

require_free_port() {
  local port=${FACT[port]}
  our_port_is "$port" && return
  port_answers "$port" || return 0
  port_holder "$port"
  words port_program
  die 1 port_used "$port" "${HOLDER:-$REPLY}" "$port"
}

# ---------------------------------------------------------------- check and deploy

cmd_check() {
  require_env_file
  need_python
  load_configuration check
  [[ -z ${OPT[online]:-} ]] || check_online
}

# One line a model; the exit status is the worst of them: 65 refused, 1 unreachable.
check_online() {
  local status=0
  [[ -n $IMAGE_ID ]] || { find_engine && refuse_image; }
  tell online_title
  "$ENGINE" run "${SEALED[@]}" ${SETTING[network]:+--network "${SETTING[network]}"} \
    --env-file "$RAW" "$IMAGE_ID" "${DEPLOY[@]}" --lang "$LANGUAGE_CHOICE" online || status=$?
  ((status == 0)) && return
  ((status == 65)) || status=1
  die "$status" online_failed
}

cmd_deploy() {
  take_lock
  find_engine
  settle_options deploy
  find_image
  check_and_deploy
}

# The common end of deploy and update: the image is there, and checks the configuration.
check_and_deploy() {
  local image_id=$IMAGE_ID
  require_env_file
  find_python || refuse_image # only with --dry-run, which does not load it
  IMAGE_ID=$image_id
  plan
  refuse_foreign
  heal
  [[ -z $KEPT ]] || say kept_options "$KEPT"
  if is_current && [[ -z ${OPT[force]:-} ]]; then
    UNDO=()
    say up_to_date
    return
  fi
  say deploying "$NAME" "$IMAGE"
  require_free_port
  run_trial
  swap
  prune
  say deployed
  [[ -n ${OPT[dry-run]:-}${OPT[quiet]:-} ]] || (show_status words "$NAME") || true
}

is_current() {
  describe_named "$NAME"
  [[ ${CONTAINER[image]} == "$IMAGE_ID" && ${CONTAINER[digest]} == "${FACT[digest]}" && ${CONTAINER[state]}/${CONTAINER[health]} == running/healthy ]]
}

# What a deploy that was killed left behind. The service of before is put back and started.
heal() {
  local broken='' suffix
  is_whole && return
  ! find_container "$NAME-new" || broken=1
  for suffix in next new; do
    ! find_container "$NAME-$suffix" || change rm -f "$FOUND" || true
  done
  if ! find_container "$NAME" && find_container "$NAME-prev"; then
    change rename "$FOUND" "$NAME" && broken=1
  fi
  if find_container "$NAME-old"; then
    change rename "$FOUND" "$NAME-prev" 2>/dev/null || change rm "$FOUND" || true
  fi
  describe_named "$NAME"
  [[ -n $broken && ${CONTAINER[state]} != absent ]] || return 0
  [[ ${CONTAINER[state]} == running ]] || change start "$FOUND" || true
  warn healed
}

# Nothing of this name but the service and the one before it
is_whole() {
  ! find_container "$NAME-next" && ! find_container "$NAME-new" && ! find_container "$NAME-old" &&
    { find_container "$NAME" || ! find_container "$NAME-prev"; }
}

run_trial() {
  say canary
  trial_settings
  undo "$ENGINE" rm -f "$NAME-next"
  change run -d "${SETTINGS[@]}" "$IMAGE" || die 1 nothing_changed
  if ! wait_healthy "$NAME-next"; then
    complain canary_failed
    last_lines "$NAME-next" 30
    exit 1
  fi
  change rm -f "$NAME-next" || true
  unset 'UNDO[${#UNDO[@]}-1]'
}

# Sets the new container in the place of the old. From the first stop on, any way out puts it back.
swap() {
  WAS_RUNNING=''
  say swapping
  service_settings
  undo "$ENGINE" rm -f "$NAME-new"
  change create "${SETTINGS[@]}" "$IMAGE" || die 1 nothing_changed
  set_aside
  find_container "$NAME-new" || FOUND=$NAME-new
  put_in_place "$FOUND"
  ! find_container "$NAME-old" || change rm "$FOUND" || true
  UNDO=()
}

# set_aside: the old service is stopped and becomes -prev; the older -prev waits as -old.
set_aside() {
  local old
  find_container "$NAME" || return 0
  old=$FOUND
  describe "$old"
  if find_container "$NAME-prev"; then
    undo "$ENGINE" rename "$FOUND" "$NAME-prev"
    change rename "$FOUND" "$NAME-old" || die 1 nothing_changed
  fi
  set_down "$old" || die 1 nothing_changed
  undo "$ENGINE" rename "$old" "$NAME"
  change rename "$old" "$NAME-prev" || die 1 nothing_changed
}

# set_down ID: stops what was just described, if it runs; any way out but the good one starts it again
set_down() {
  [[ ${CONTAINER[state]} == @(running|restarting|paused) ]] || return 0
  WAS_RUNNING=$1
  undo bring_back "$1"
  say stopping "$NAME" "${CONTAINER[stop]}"
  change stop -t "${CONTAINER[stop]}" "$1"
}

# A stop that was under way must be over before a start means anything.
bring_back() {
  "$ENGINE" stop -t "${CONTAINER[stop]}" "$1"
  "$ENGINE" start "$1"
}

# put_in_place ID: it gets the name only when it is healthy, so that `heal` knows what it may trust
put_in_place() {
  undo "$ENGINE" rm -f "$1"
  change start "$1" || swap_failed "$1"
  wait_healthy "$1" || swap_failed "$1"
  change rename "$1" "$NAME" || swap_failed "$1"
}

swap_failed() {
  complain start_failed
  settle_back rolled_back "$1"
}

# settle_back KEY [CONTAINER]: shows what that one logged, undoes all, and leaves with the code that
# tells whether the service is up again
settle_back() {
  (($# < 2)) || last_lines "$2" 30
  roll_back
  [[ -n $WAS_RUNNING ]] || die 1 rolled_stopped
  wait_healthy "$NAME" || die 2 down
  die 124 "$1"
}

# Names of images that nothing of ours uses any more. The engine refuses where something else does.
prune() {
  local used='' reference
  [[ -z ${OPT[dry-run]:-} ]] || return 0
  ! find_container "$NAME-prev" || used=$(inspect '{{.Image}}' "$FOUND")
  used=${used#sha256:}
  for reference in $("$ENGINE" images --format '{{.Repository}}:{{.Tag}}' "$(repository)" 2>/dev/null); do
    [[ $reference == *:prev-* && $reference != *":prev-${used:0:12}" ]] || continue
    "$ENGINE" rmi "$reference" >/dev/null 2>&1 || true
  done
}

# ---------------------------------------------------------------- update and rollback

cmd_update() {
  local archive=${OPT[from]:-}
  take_lock
  find_engine
  settle_options
  if [[ -z $archive && -f $HERE/opendify.tar.gz ]]; then
    archive=$HERE/opendify.tar.gz
  fi
  if [[ -n $archive ]]; then
    check_archive "$archive"
    [[ -r $archive.sha256 ]] || warn no_sum "$archive.sha256"
    keep_running_image
    load_archive "$archive"
  else
    find_image
    [[ ${CONTAINER[image]} != "$IMAGE_ID" ]] || { say nothing_to_update && return; }
  fi
  check_and_deploy
}

# Loading takes the name away from the running image: it gets one of its own, and the name back
# if the new image turns out to be bad.
keep_running_image() {
  local running=${CONTAINER[image]} named
  named=$(image_fact '{{.Id}}' "$IMAGE") || named=''
  if [[ -n $running ]]; then
    REPLY=${running#sha256:}
    change tag "$running" "$(repository):prev-${REPLY:0:12}"
  fi
  [[ -z $named ]] || undo "$ENGINE" tag "$named" "$IMAGE"
}

cmd_rollback() {
  local previous current=''
  begin_change
  heal
  find_container "$NAME-prev" || die 1 no_previous
  previous=$FOUND
  describe "$previous"
  say rolling "${CONTAINER[ref]} ${CONTAINER[version]:+(${CONTAINER[version]})}"
  WAS_RUNNING=''
  ! find_container "$NAME" || current=$FOUND
  [[ -z $current ]] || exchange_out "$current"
  undo "$ENGINE" rename "$previous" "$NAME-prev"
  undo "$ENGINE" stop "$previous"
  change rename "$previous" "$NAME" || settle_back rollback_failed
  change start "$previous" || settle_back rollback_failed
  wait_healthy "$previous" || settle_back rollback_failed "$previous"
  [[ -z $current ]] || change rename "$current" "$NAME-prev"
  UNDO=()
  say rollback_done "$IMAGE"
}

exchange_out() {
  describe "$1"
  set_down "$1" || settle_back rollback_failed
  undo "$ENGINE" rename "$1" "$NAME"
  change rename "$1" "$NAME-old" || settle_back rollback_failed
}

# ---------------------------------------------------------------- looking

# survey NAME: a line for each thing that is known of a container and its service. The lines are read
# by opendify/deploy/status.py.
survey() {
  local fact
  describe_named "$1"
  printf 'name %s\n' "$1"
  for fact in "${!CONTAINER[@]}"; do printf '%s %s\n' "$fact" "${CONTAINER[$fact]}"; done
  [[ ${CONTAINER[state]} != absent ]] || return 0
  inspect "$FAILED_CHECKS" "$FOUND"
  [[ ${CONTAINER[state]} != running ]] || ask_service "$FOUND" ${OPT[ask]:+--ask} || true
}

readonly FAILED_CHECKS='{{if .State.Health}}{{range .State.Health.Log}}{{if .ExitCode}}check {{.ExitCode}} {{json .Output}}
{{end}}{{end}}{{end}}'

# show_status FORM NAME...: the answer is whether all of them are healthy, 3 where not
show_status() {
  find_python || die 3 absent "$NAME"
  converse status --form="$1" "${@:2}"
}

# Of every service; the names of trials and of versions before end otherwise.
all_names() {
  find_container "$NAME" || true
  printf '%s\n' "${!OURS[@]}" | sed -E '/-(next|new|prev|old)$/d' | sort
}

cmd_status() {
  local form=words names=$NAME
  find_engine
  settle_options
  [[ -z ${OPT[all]:-} ]] || { form=table && names=$(all_names); }
  [[ -z ${OPT[json]:-} ]] || form=json
  # shellcheck disable=SC2086  # one word a name
  show_status "$form" $names || exit "$?"
}

cmd_logs() {
  local follow=()
  find_engine
  refuse_foreign
  find_container "$NAME" || die 1 absent "$NAME"
  [[ -z ${OPT[follow]:-} && ! -t 1 ]] || follow=(-f)
  trap 'exit 0' INT
  "$ENGINE" logs ${follow[@]+"${follow[@]}"} --tail "${OPT[tail]:-200}" \
    ${OPT[since]:+--since "${OPT[since]}"} "$FOUND" 2>&1 || true
}

# ---------------------------------------------------------------- stop, start, restart, remove

cmd_stop() {
  begin_change
  case ${CONTAINER[state]} in
    running | restarting | paused) ;;
    absent) say stop_absent "$NAME" && return ;;
    *) say stop_already "$NAME" && return ;;
  esac
  say stopping "$NAME" "${CONTAINER[stop]}"
  change stop -t "${CONTAINER[stop]}" "$FOUND" || die 1 engine_failed stop "$NAME"
  say stopped
}

cmd_start() { bring_up start; }
cmd_restart() { bring_up restart; }

bring_up() {
  local status=0 arguments=()
  begin_change
  heal
  describe_named "$NAME"
  [[ ${CONTAINER[state]} != absent ]] || die 1 absent "$NAME"
  [[ $1 == start ]] || arguments=(-t "${CONTAINER[stop]}")
  change "$1" ${arguments[@]+"${arguments[@]}"} "$FOUND" || die 2 engine_failed "$1" "$NAME"
  wait_healthy "$FOUND" || status=$?
  ((status != 1)) || { last_lines "$FOUND" 30 && die 2 down; }
  ((status == 0)) || die 124 start_timeout "$NAME" "${OPT[timeout]:-60}"
  say started "$NAME"
}

cmd_remove() {
  local suffix question=ask_remove data
  begin_change
  data=${CONTAINER[data]:-$DATA}
  if [[ ${CONTAINER[state]} == absent && -z ${OPT[volumes]:-} ]]; then
    say remove_absent "$NAME" && return
  fi
  [[ -z ${OPT[volumes]:-} ]] || question=ask_remove_data
  confirm 64 "$question" "$NAME" || exit 1
  for suffix in '' -next -new -prev -old; do
    find_container "$NAME$suffix" || continue
    [[ -n $suffix ]] || change stop -t "${CONTAINER[stop]}" "$FOUND" || true
    change rm -f "$FOUND" || die 1 engine_failed rm "$NAME$suffix"
  done
  say removed "$NAME"
  remove_data "$data"
}

remove_data() {
  if [[ -z ${OPT[volumes]:-} ]]; then
    say data_kept "$1"
    return
  fi
  change volume rm -f "${NAME}_logs" || true
  if [[ $1 == /* ]]; then
    warn data_dir_kept "$1"
  else
    change volume rm -f "$1" || die 1 engine_failed 'volume rm' "$1"
  fi
}

# ---------------------------------------------------------------- backup and restore

# begin_data: as begin_change; DATA as the container has it, and an image to read it with
begin_data() {
  begin_change
  DATA=${CONTAINER[data]:-$DATA}
  [[ ${CONTAINER[state]} != absent || $DATA == /* ]] ||
    "$ENGINE" volume inspect "$DATA" >/dev/null 2>&1 || die 1 no_data "$DATA"
  find_loaded_image || find_image
}

# in_image MODE VERB [ARGUMENT...]: Python in the image, with the data at /backup
in_image() {
  "$ENGINE" run --network none --user 0 "${SEALED[@]}" \
    --cap-add DAC_OVERRIDE --cap-add CHOWN --cap-add FOWNER \
    --volume "$DATA:/backup:$1" "$IMAGE_ID" "${DEPLOY[@]}" "${@:2}"
}

cmd_backup() {
  begin_data
  write_backup "${OPT[out]:-$(backup_name).tar.gz}"
}

backup_name() { printf '%s/backup-%s-%s' "$PWD" "$NAME" "$(date -u +%Y%m%dT%H%M%SZ)"; }

# write_backup FILE
write_backup() {
  local file=$1 source=/dev/null name=()
  if [[ -n ${OPT[dry-run]:-} ]]; then
    printf '+ %s run --rm --volume %s:/backup:ro %s > %s\n' "$ENGINE" "$DATA" "$IMAGE_ID" "$file" >&2
    return
  fi
  if [[ -n ${OPT[with-config]:-} ]]; then
    [[ $ENV_FILE != - && -r $ENV_FILE ]] || die 65 no_env_file "$ENV_SHOWN"
    source=$ENV_FILE name=("--config=${ENV_FILE##*/}")
  fi
  need_temporary
  umask 077
  write_archive "$file" read_data "$source" ${name[@]+"${name[@]}"} ||
    die 1 backup_failed "$(tail -n 1 "$TEMPORARY/said")"
  say backup_done "$file" "$(tail -n 1 "$TEMPORARY/said")"
  [[ -z ${OPT[with-config]:-} ]] || warn backup_keys
}

# read_data SOURCE [OPTION...]: an archive of the data; its last words are the number of files
read_data() { in_image ro backup /backup "${@:2}" <"$1" 2>"$TEMPORARY/said"; }

# write_archive FILE COMMAND...: what the command prints and its sum beside it, whole or not at all
write_archive() {
  local part=$1.part
  { : >"$part"; } 2>/dev/null || die 73 cannot_write "$1"
  undo rm -f "$part"
  "${@:2}" >"$part" && gzip -t "$part" || return 1
  printf '%s  %s\n' "$(sum_of <"$part")" "${1##*/}" >"$1.sha256" || die 73 cannot_write "$1.sha256"
  mv -f "$part" "$1" || die 73 cannot_write "$1"
  UNDO=()
}

# restore_task look|put|undo|keep [FILE] -> SAID
restore_task() {
  local owner
  owner=$(image_fact '{{.Config.User}}' "$IMAGE_ID") || owner=''
  SAID=$(in_image rw restore "$1" /backup --owner="${owner:-0}" <"${2:-/dev/null}" 2>&1) && return
  SAID=${SAID##*$'\n'}
  return 1
}

cmd_restore() {
  local file=${WORDS[1]:-} count
  [[ -n $file ]] || die 64 restore_usage
  check_archive "$file"
  [[ -r $file.sha256 ]] || warn no_sum "$file.sha256"
  begin_data
  restore_task look "$file" || die 65 restore_bad "$file" "$SAID"
  count=$SAID
  write_backup "$(backup_name)-before-restore.tar.gz"
  [[ -z ${OPT[dry-run]:-} ]] || return 0
  put_data "$file"
  say restore_done "$file" "$count"
}

# put_data FILE: with the service stopped, if it ran
put_data() {
  WAS_RUNNING=''
  describe_named "$NAME"
  set_down "$FOUND" || die 1 engine_failed stop "$NAME"
  undo restore_task undo
  if [[ -n $WAS_RUNNING ]]; then
    undo "$ENGINE" stop -t "${CONTAINER[stop]}" "$WAS_RUNNING"
  fi
  restore_task put "$1" || { complain restore_bad "$1" "$SAID" && settle_back restore_undone; }
  if [[ -n $WAS_RUNNING ]]; then
    change start "$WAS_RUNNING" || settle_back restore_undone
    wait_healthy "$WAS_RUNNING" || settle_back restore_undone "$WAS_RUNNING"
  fi
  UNDO=()
  restore_task keep || true
}

# ---------------------------------------------------------------- export

cmd_export() {
  local file=${OPT[out]:-$PWD/opendify.tar.gz}
  find_engine
  settle_options
  image_fact '{{.Id}}' "$IMAGE" >/dev/null || die 78 build_image "$IMAGE" "$IMAGE"
  if [[ -n ${OPT[dry-run]:-} ]]; then
    printf '+ %s save %s | gzip -n > %s\n' "$ENGINE" "$IMAGE" "$file" >&2
    return
  fi
  write_archive "$file" save_image || die 1 export_failed "$IMAGE"
  say export_done "$file" "$(du -h "$file" | cut -f 1)"
  say export_next "${file##*/}"
}

save_image() { "$ENGINE" save "$IMAGE" | gzip -n; }

# ---------------------------------------------------------------- doctor

FAULTS=0

# finding good|warn|bad KEY [ARGUMENT...]
finding() {
  words "${@:2}"
  add_finding "$1" "$2 $REPLY"
}

# add_finding LEVEL "KEY TEXT"
add_finding() {
  local sign=❌
  case $1 in
    good) sign='✅' ;;
    warn) sign='⚠️ ' ;;
    *) FAULTS=$((FAULTS + 1)) ;;
  esac
  if [[ -n ${OPT[json]:-} ]]; then
    json_quote "${2#* }"
    FINDINGS+=${FINDINGS:+,}"{\"check\":\"${2%% *}\",\"level\":\"$1\",\"message\":$REPLY}"
  else
    printf '%s %s\n' "$sign" "${2#* }"
  fi
}

cmd_doctor() {
  FINDINGS=''
  [[ -n ${OPT[json]:-} ]] || tell doctor_title "$NAME"
  ! reach_engine || settle_options
  doctor_host
  doctor_env_file
  doctor_files
  if [[ -n $ENGINE ]]; then
    doctor_engine
    doctor_image
    doctor_port
    doctor_container
  else
    add_finding bad "engine_silent $(refuse_engine 2>&1 | sed 's/^❌ //')"
  fi
  [[ -z ${OPT[json]:-} ]] || printf '[%s]\n' "$FINDINGS"
  ((FAULTS == 0)) || exit 1
}

doctor_host() {
  local locale=${LC_ALL:-${LC_CTYPE:-${LANG:-}}} synchronised
  finding good d_bash "$BASH_VERSION"
  if [[ ${locale,,} == *utf-8* || ${locale,,} == *utf8* ]]; then
    finding good d_locale_ok
  else
    finding warn d_locale "${locale:-C}"
  fi
  synchronised=$(timedatectl show -p NTPSynchronized --value 2>/dev/null) || synchronised=''
  if [[ $synchronised == no || $(date +%Y) -lt 2025 ]]; then
    finding warn d_clock_bad "$(now)"
  else
    finding good d_clock "$(now)"
  fi
}

doctor_env_file() {
  [[ $ENV_FILE != - ]] || return 0
  if [[ ! -f $ENV_FILE ]]; then
    words no_env_file "$ENV_SHOWN"
    add_finding bad "d_env $REPLY"
    return
  fi
  is_ours || finding bad other_owner "$ENV_SHOWN" "$ENV_SHOWN"
  is_private "$ENV_FILE" ||
    finding warn wide_mode "$ENV_SHOWN" "$(file_fact %a %Lp "$ENV_FILE")" "$ENV_SHOWN"
  if find_python; then
    converse doctor --env-file="$ENV_FILE" --shown-as="$ENV_SHOWN" || FAULTS=$((FAULTS + 1))
  else
    finding warn d_unseen "$ENV_SHOWN"
  fi
}

doctor_files() {
  local tracked
  if git -C "$HERE" rev-parse --git-dir >/dev/null 2>&1; then
    tracked=$(git -C "$HERE" ls-files -- '.env' '.env.*' | grep -vx '.env.example' | head -n 1) || true
    if [[ -n $tracked ]]; then
      finding bad d_git "$tracked" "$tracked"
    else
      finding good d_git_ok
    fi
  fi
  [[ ! -f $HERE/.dockerignore ]] || grep -qxE '\.env\.?\*|\*' "$HERE/.dockerignore" || finding warn d_ignore
}

doctor_engine() {
  local version free root cgroup rootless=no
  version=$("$ENGINE" version --format '{{.Server.Version}}' 2>/dev/null) || version='?'
  finding good d_engine "$ENGINE" "$version"
  cgroup=$("$ENGINE" info -f '{{.CgroupVersion}}' 2>/dev/null) || cgroup='?'
  ! "$ENGINE" info -f '{{.SecurityOptions}}' 2>/dev/null | grep -q rootless || rootless=yes
  finding good d_cgroup "$cgroup" "$rootless"
  if version=$("$ENGINE" compose version --short 2>/dev/null || docker-compose version --short 2>/dev/null); then
    finding good d_compose "$version"
  else
    finding good d_no_compose
  fi
  root=$("$ENGINE" info -f '{{.DockerRootDir}}' 2>/dev/null) || root=''
  [[ -d $root ]] || root=$HERE
  free=$(df -Pm "$root" | awk 'NR == 2 { print $4 }')
  if ((free < 1024)); then
    finding bad d_disk_low "$free" "$root"
  else
    finding good d_disk "$free" "$root"
  fi
}

doctor_image() {
  local theirs ours
  if ! theirs=$(image_fact '{{.Architecture}}' "$IMAGE"); then
    finding bad no_image "$IMAGE"
    return
  fi
  ours=$("$ENGINE" info -f '{{.Architecture}}' 2>/dev/null) || ours=''
  case $ours in
    x86_64) ours=amd64 ;;
    aarch64) ours=arm64 ;;
  esac
  if [[ -n $ours && $ours != "$theirs" ]]; then
    finding bad d_platform "$theirs" "$ours" "$ours"
  else
    finding good d_image "$IMAGE"
  fi
}

doctor_port() {
  local port=${SETTING[port]:-${FACT[port]:-}}
  is_port "$port" || port=$CONTAINER_PORT
  port_holder "$port"
  if our_port_is "$port"; then
    finding good d_port_ours "$port" "$NAME"
  elif port_answers "$port"; then
    words port_program
    finding bad d_port_used "$port" "${HOLDER:-$REPLY}" "$port"
  else
    finding good d_port "$port"
  fi
}

doctor_container() {
  describe_named "$NAME"
  if [[ ${CONTAINER[state]} == absent ]]; then
    finding warn absent "$NAME"
  elif find_python; then
    converse doctor-container "$NAME" || FAULTS=$((FAULTS + 1))
  fi
}

# ---------------------------------------------------------------- the way in

main() {
  local verb
  choose_language
  parse_arguments "$@"
  choose_language
  [[ -z ${OPT[help]:-} ]] || { show_help && exit 0; }
  [[ -z ${OPT[version]:-} ]] || { echo "deploy.sh $SCRIPT_VERSION" && exit 0; }
  verb=${WORDS[0]:-}
  [[ -n $verb ]] || { show_help >&2 && exit 64; }
  [[ $verb != help ]] || { show_help && exit 0; }
  [[ $verb =~ ^[a-z]+$ && $VERBS == *[[:space:]]"$verb"[[:space:]]* ]] || die 64 unknown_verb "$verb"
  ((${#WORDS[@]} <= 1)) || [[ $verb == restore && ${#WORDS[@]} -eq 2 ]] || die 64 extra_word "${WORDS[${#WORDS[@]} - 1]}"
  check_options "$verb"
  check_values
  settle_names
  IMAGE=${OPT[image]:-opendify:latest}
  trap on_signal INT TERM HUP
  trap on_exit EXIT
  trap '' PIPE
  "cmd_$verb"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
