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
#zh   status     状态；--all 所有环境，--json
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
#zh   --bind 地址       监听地址，默认 0.0.0.0；在反向代理后面请用 127.0.0.1
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
#en   status     --all for every environment, --json
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
#en   --bind ADDRESS    default 0.0.0.0; behind a reverse proxy use 127.0.0.1
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

message setup_title '🔧 创建环境配置文件' '🔧 Create the configuration file'
message setup_intro '请输入配置信息:' 'Please enter the configuration:'
message ask_base 'DIFY API 地址 (例: https://api.dify.ai/v1): ' 'Dify API address (e.g. https://api.dify.ai/v1): '
message setup_models "配置模型 (输入 'done' 完成):" "Models (enter 'done' to finish):"
message ask_model "模型名称 (或 'done'): " "Model name (or 'done'): "
message ask_key 'API Key (app-xxxxx): ' 'API key (app-xxxxx): '
message ask_overwrite '是否覆盖? (y/N): ' 'Overwrite it? (y/N): '
message ask_replace '模型 %s 已经有了，是否替换? (y/N): ' 'Model %s is there already. Replace it? (y/N): '
message ask_chmod '是否改为 600? (y/N): ' 'Change it to 600? (y/N): '
message ask_remove '确定删除 %s? (y/N): ' 'Really remove %s? (y/N): '
message ask_remove_data '确定删除 %s 和它的全部数据? (y/N): ' 'Really remove %s and all its data? (y/N): '
message exists '文件 %s 已存在' '%s exists already'
message setup_done '✅ 配置文件已创建: %s' '✅ Configuration file created: %s'
message setup_backup '旧文件保存在 %s' 'The old file is kept as %s'
message setup_carried '旧文件中的其他变量保留了:%s' 'Other variables of the old file were kept:%s'
message next_deploy '下一步: ./deploy.sh deploy' 'Next: ./deploy.sh deploy'
message visible_input '标准输入不是终端: 输入的密钥会显示出来。请用 ssh -t，或用 --key-file' 'Standard input is no terminal: keys you type will be visible. Use ssh -t, or --key-file'
message needs_yes '没有终端，无法询问: 加上 --yes 表示同意' 'No terminal to ask on: add --yes to agree'
message bad_base '地址无效: 应为 http:// 或 https:// 开头，例如 https://api.dify.ai/v1，不含用户名、? 和 #' 'Not a valid address: it should begin with http:// or https://, e.g. https://api.dify.ai/v1, without user name, ? or #'
message base_http '地址用的是 http，密钥会以明文传送到 %s' 'The address is http: keys travel in the clear to %s'
message base_no_v1 'Dify 的 API 地址通常以 /v1 结尾' 'Addresses of the Dify API usually end in /v1'
message bad_model '模型名称无效: 不能为空，最多 128 个字符，不能有控制字符，必须是 UTF-8' 'Not a valid model name: not empty, at most 128 characters, no control characters, UTF-8'
message bad_key 'API Key 无效: 不能为空，不能有空格或非 ASCII 字符' 'Not a valid API key: not empty, no blanks, ASCII only'
message key_prefix 'Dify 的应用密钥通常以 app- 开头' 'Keys of Dify apps usually begin with app-'
message no_models '至少需要一个模型' 'At least one model is needed'
message no_key_file '没有给出模型 %s 的密钥: --key-file %s=文件' 'No key for model %s: --key-file %s=FILE'
message key_file_form '--key-file 的写法是 名称=文件' '--key-file is written NAME=FILE'
message duplicate_model '模型 %s 给了两次' 'Model %s is given twice'
message input_ended '输入在完成之前结束了，没有写入任何文件' 'The input ended before it was complete; nothing was written'
message is_symlink '%s 是符号链接，拒绝写入' '%s is a symbolic link: refused'
message cannot_write '无法写入 %s' 'Cannot write %s'
message cannot_read '无法读取 %s' 'Cannot read %s'
message no_env_file '配置文件 %s 不存在。请先执行: ./deploy.sh setup' 'Configuration file %s does not exist. First run: ./deploy.sh setup'
# shellcheck disable=SC2016  # the reader is to type it
message other_owner '%s 属于另一个用户，拒绝使用。请执行: sudo chown "$USER" %s' '%s belongs to another user: refused. Run: sudo chown "$USER" %s'
message wide_mode '%s 的权限是 %s，其他用户能读到密钥。请执行: chmod 600 %s' '%s has mode %s: others can read the keys. Run: chmod 600 %s'
message bad_line '%s 第 %s 行无法理解（应为 名称=值，引号成对，只占一行）' '%s line %s cannot be understood (NAME=value, quotes in pairs, on one line)'
# shellcheck disable=SC2016  # the reader is to type it
message dollar_brace '%s 里的 ${...} 各种工具读法不同，请避免' 'Tools differ in how they read the ${...} in %s: avoid it'
message problems '配置有误 (%s):' 'The configuration is wrong (%s):'
message p_base_missing 'DIFY_API_BASE 没有设置，例如 DIFY_API_BASE="https://api.dify.ai/v1"' 'DIFY_API_BASE is not set, e.g. DIFY_API_BASE="https://api.dify.ai/v1"'
message p_base_bad 'DIFY_API_BASE 不是有效的 http(s) 地址' 'DIFY_API_BASE is not a valid http(s) address'
message p_models_missing "MODEL_CONFIG 没有设置，例如 MODEL_CONFIG='{\"model\":\"app-key\"}'" "MODEL_CONFIG is not set, e.g. MODEL_CONFIG='{\"model\":\"app-key\"}'"
message p_models_json 'MODEL_CONFIG 不是有效的 JSON 对象' 'MODEL_CONFIG is not a valid JSON object'
message p_models_empty 'MODEL_CONFIG 里没有模型' 'MODEL_CONFIG holds no model'
message p_models_value 'MODEL_CONFIG 里模型 %s 没有密钥' 'MODEL_CONFIG gives no key for model %s'
message p_models_twice 'MODEL_CONFIG 里模型 %s 出现两次' 'MODEL_CONFIG names model %s twice'
message p_both '%s 和 %s 同时设置了，只能有一个' '%s and %s are both set: only one may be'
message p_file '%s 指向的文件 %s 读不到' '%s names the file %s, which cannot be read'
message p_port '端口无效: %s（应为 1 到 65535）' 'Not a valid port: %s (1 to 65535)'
message p_file_empty '%s 指向的文件 %s 是空的' '%s names the file %s, which is empty'
message p_newline '%s 的值含有换行' 'The value of %s holds a line break'
message check_ok '✅ 配置正确: %s（%s 个模型）' '✅ The configuration is good: %s (%s models)'
message check_unseen '镜像没有加载，只检查了文件本身' 'The image is not loaded: only the file itself was checked'
message online_title '向 Dify 询问:' 'Asking Dify:'
message online_failed '有模型没有通过，见上' 'Some models did not pass, see above'
message no_engine '找不到 Docker。安装: https://docs.docker.com/engine/install/' 'Docker was not found. To install it: https://docs.docker.com/engine/install/'
message engine_silent '%s 没有响应: %s。请执行: sudo systemctl start docker' '%s does not answer: %s. Run: sudo systemctl start docker'
# shellcheck disable=SC2016  # the reader is to type it
message engine_denied '没有权限使用 %s。请执行: sudo usermod -aG docker "$USER"，然后重新登录；或者用 sudo' 'No permission to use %s. Run: sudo usermod -aG docker "$USER" and log in again; or use sudo'
message bad_engine '--engine 只能是 docker 或 podman' '--engine is docker or podman'
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
message status_title '📊 检查服务状态' '📊 Service status'
message s_container '容器状态: %s' 'Container: %s'
message s_health '健康状态: %s' 'Health: %s'
message s_api 'API 状态: %s' 'API: %s'
message s_image '镜像: %s（版本 %s）' 'Image: %s (version %s)'
message s_address '地址: %s' 'Address: %s'
message s_since '运行自: %s，重启 %s 次' 'Up since: %s, restarts: %s'
message s_models '可用模型:' 'Models:'
message w_running '运行中' 'running'
message w_stopped '已停止' 'stopped'
message w_absent '未部署' 'not deployed'
message w_loop '重启循环 (%s 次)' 'restart loop (%s times)'
message w_healthy '健康' 'healthy'
message w_unhealthy '不健康' 'unhealthy'
message w_starting '启动中' 'starting'
message w_none '未知' 'unknown'
message w_ok '正常' 'good'
message w_key '正常（需要密钥）' 'good (needs a key)'
message w_bad '异常' 'failing'
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
message export_build '镜像 %s 不存在。请先构建: docker build -t %s .' 'There is no image %s. Build it first: docker build -t %s .'
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
message d_env '配置文件 %s' 'Configuration file %s'
message d_crlf '%s 是 Windows 换行 (CRLF)。修复: sed -i "s/\\r$//" %s' '%s has Windows line ends (CRLF). Mend: sed -i "s/\\r$//" %s'
message d_bom '%s 开头有 BOM。修复: sed -i "1s/^\\xEF\\xBB\\xBF//" %s' '%s begins with a BOM. Mend: sed -i "1s/^\\xEF\\xBB\\xBF//" %s'
message d_quotes '%s 含引号: deploy.sh 和 Compose 没有问题，docker run --env-file 会把引号也传进去' '%s has quotes: fine for deploy.sh and Compose, but docker run --env-file passes them on'
message d_port '端口 %s 空闲' 'Port %s is free'
message d_port_ours '端口 %s 由 %s 使用' 'Port %s is held by %s'
message d_port_used '端口 %s 被占用（%s）。查看: ss -tlnp | grep %s' 'Port %s is in use (%s). Look: ss -tlnp | grep %s'
message d_container '容器 %s: %s，%s' 'Container %s: %s, %s'
message d_probe '健康检查输出: %s' 'Health check said: %s'
message d_restarts '容器重启过 %s 次。查看: ./deploy.sh logs' 'The container was restarted %s times. See: ./deploy.sh logs'
message d_volume '数据 %s 可写' 'Data %s is writable'
message d_volume_bad '数据 %s 容器写不进去。目录须属于 uid 1000: sudo chown -R 1000:1000 <目录>' 'The container cannot write data %s. A folder must belong to uid 1000: sudo chown -R 1000:1000 <folder>'
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

show_help() { sed -n "s/^#$LANGUAGE_CHOICE \{0,1\}//p" "$SCRIPT"; }

# app-...ab12: never more than the last four characters, nothing of a short key.
mask_key() {
  local key=$1 head=''
  [[ $key != app-* ]] || head=app-
  REPLY=$head…
  ((${#key} < 12)) || REPLY=$head…${key: -4}
}

# Copies standard input to standard output with every known key masked.
mask_stream() {
  local line key
  while IFS= read -r line || [[ -n $line ]]; do
    for key in ${SECRETS[@]+"${SECRETS[@]}"}; do
      mask_key "$key"
      line=${line//"$key"/"$REPLY"}
    done
    printf '%s\n' "$line" || true
  done
}

# ---------------------------------------------------------------- leaving

declare -a UNDO=() SECRETS=()
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
declare -a WORDS=() MODELS_GIVEN=() KEY_FILES=()
LANGUAGE_CHOICE=zh

# option:verbs it belongs to, or * for all
readonly VALUE_OPTIONS=' env-file:* name:* port:* bind:* image:* engine:* timeout:* data:* lang:*
  memory:* cpus:* network:* tail:logs since:logs from:update out:backup,export
  api-base:setup model:setup key-file:setup models-file:setup '
readonly FLAG_OPTIONS=' yes:* quiet:* dry-run:* no-color:* help:* version:* json:status,doctor
  force:deploy,update all:status follow:logs volumes:remove with-config:backup online:check '
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

parse_arguments() {
  local word
  while (($#)); do
    word=$1
    shift
    case $word in
      --) WORDS+=("$@") && return ;;
      -y) set_flag yes ;;
      -q) set_flag quiet ;;
      -f) set_flag follow ;;
      -h) set_flag help ;;
      -n) set_option tail -n "$@" && shift ;;
      --*=*) set_option_joined "$word" ;;
      --*) set_option_apart "${word#--}" "$@" && shift "$CONSUMED" ;;
      -?*) die 64 unknown_option "$word" ;;
      *) WORDS+=("$word") ;;
    esac
  done
}

set_flag() { OPT[$1]=1; }

# set_option NAME AS_TYPED [VALUE...]
set_option() {
  (($# >= 3)) && [[ -n $3 ]] || die 64 needs_value "$2"
  OPT[$1]=$3
  case $1 in
    model) MODELS_GIVEN+=("$3") ;;
    key-file) KEY_FILES+=("$3") ;;
  esac
}

set_option_joined() {
  local name=${1%%=*}
  name=${name#--}
  if option_verbs "$VALUE_OPTIONS" "$name"; then
    set_option "$name" "--$name" "${1#*=}"
  elif option_verbs "$FLAG_OPTIONS" "$name"; then
    die 64 no_value "--$name"
  else
    die 64 unknown_option "--$name"
  fi
}

# set_option_apart NAME [REST...] -> CONSUMED
set_option_apart() {
  CONSUMED=0
  if option_verbs "$FLAG_OPTIONS" "$1"; then
    set_flag "$1"
  elif option_verbs "$VALUE_OPTIONS" "$1"; then
    (($# >= 2)) || die 64 needs_value "--$1"
    [[ $2 != --?* ]] || die 64 needs_value "--$1"
    set_option "$1" "--$1" "$2"
    CONSUMED=1
  else
    die 64 unknown_option "--$1"
  fi
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
  demand bind '^[0-9A-Fa-f:.]{2,45}$|^\[[0-9A-Fa-f:.]+\]$'
  demand image '^[A-Za-z0-9][A-Za-z0-9._/:@-]*$'
  demand data '^/[^[:space:]:,]*$|^[A-Za-z0-9][A-Za-z0-9_.-]+$'
  demand memory '^[1-9][0-9]*[bkmgBKMG]?$'
  demand cpus '^[0-9]{1,4}(\.[0-9]{1,3})?$'
  demand network '^[A-Za-z0-9][A-Za-z0-9_.-]*$'
  demand lang '^(zh|en)$'
  demand engine '^(docker|podman)$'
}

# demand OPTION PATTERN: if it is given, it has this form
demand() {
  [[ -z ${OPT[$1]:-} || ${OPT[$1]} =~ $2 ]] || die 64 bad_value "--$1" "${OPT[$1]}"
}

is_port() { [[ $1 =~ ^[0-9]{1,5}$ ]] && ((10#$1 >= 1 && 10#$1 <= 65535)); }

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

# ---------------------------------------------------------------- text and JSON

# utf8_of CODE -> CHARACTER: the bytes of one code point. The locale may know nothing of UTF-8.
utf8_of() {
  local code=$1 octets
  if ((code < 0x80)); then
    printf -v octets '\\x%02x' "$code"
  elif ((code < 0x800)); then
    printf -v octets '\\x%02x\\x%02x' $((0xC0 | code >> 6)) $((0x80 | code & 63))
  elif ((code < 0x10000)); then
    printf -v octets '\\x%02x\\x%02x\\x%02x' $((0xE0 | code >> 12)) \
      $((0x80 | code >> 6 & 63)) $((0x80 | code & 63))
  else
    printf -v octets '\\x%02x\\x%02x\\x%02x\\x%02x' $((0xF0 | code >> 18)) \
      $((0x80 | code >> 12 & 63)) $((0x80 | code >> 6 & 63)) $((0x80 | code & 63))
  fi
  printf -v CHARACTER '%b' "$octets"
}

# code_points TEXT -> CODES; fails where TEXT is not UTF-8
code_points() {
  local octets octet code=0 left=0 least=0
  CODES=()
  octets=$(printf '%s' "$1" | od -An -v -tu1)
  for octet in $octets; do
    if ((left)); then
      ((octet >> 6 == 2)) || return 1
      code=$((code << 6 | octet & 63)) left=$((left - 1))
      ((left)) && continue
      ((code >= least && code <= 0x10FFFF && code >> 11 != 27)) || return 1
    elif ((octet < 0x80)); then
      code=$octet
    elif ((octet >= 0xC2 && octet < 0xE0)); then
      code=$((octet & 31)) left=1 least=0x80 && continue
    elif ((octet >= 0xE0 && octet < 0xF0)); then
      code=$((octet & 15)) left=2 least=0x800 && continue
    elif ((octet >= 0xF0 && octet < 0xF5)); then
      code=$((octet & 7)) left=3 least=0x10000 && continue
    else
      return 1
    fi
    CODES+=("$code")
  done
  ((left == 0))
}

# json_string TEXT -> REPLY: a JSON string that docker, Compose, python-dotenv and bash all read
# alike inside single quotes: ASCII, and ' " \ $ ` # as \u00XX.
json_string() {
  local code piece out=''
  code_points "$1" || return 1
  for code in ${CODES[@]+"${CODES[@]}"}; do
    case $code in
      34 | 35 | 36 | 39 | 92 | 96) printf -v piece '\\u%04x' "$code" ;;
      *)
        if ((code >= 0x10000)); then
          printf -v piece '\\u%04x\\u%04x' $((0xD800 + (code - 0x10000 >> 10))) \
            $((0xDC00 + (code & 0x3FF)))
        elif ((code < 32 || code > 126)); then
          printf -v piece '\\u%04x' "$code"
        else
          utf8_of "$code" && piece=$CHARACTER
        fi
        ;;
    esac
    out+=$piece
  done
  REPLY=\"$out\"
}

# json_text LITERAL -> REPLY: what a JSON string literal (with its quotes) says
json_text() {
  local rest=${1:1:${#1}-2} out='' code low
  while [[ $rest == *\\* ]]; do
    out+=${rest%%\\*} rest=${rest#*\\}
    case ${rest:0:1} in
      u)
        code=$((16#${rest:1:4})) rest=${rest:5}
        if ((code >> 10 == 0x36)) && [[ $rest =~ ^\\u([dD][c-fC-F][0-9a-fA-F]{2}) ]]; then
          low=$((16#${BASH_REMATCH[1]})) rest=${rest:6}
          code=$((0x10000 + ((code & 0x3FF) << 10) + (low & 0x3FF)))
        fi
        ((code > 0 && code >> 11 != 27)) || return 1
        utf8_of "$code" && out+=$CHARACTER
        ;;
      b) out+=$'\b' rest=${rest:1} ;;
      f) out+=$'\f' rest=${rest:1} ;;
      n) out+=$'\n' rest=${rest:1} ;;
      r) out+=$'\r' rest=${rest:1} ;;
      t) out+=$'\t' rest=${rest:1} ;;
      *) out+=${rest:0:1} rest=${rest:1} ;;
    esac
  done
  REPLY=$out$rest
}

readonly JSON_STRING='^"([^"\\[:cntrl:]]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
readonly JSON_WORD='^(-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null)'
JSON_REST='' JSON_OUT=''

# json_models TEXT -> JSON_OUT (on one line, safely escaped), MODEL_NAMES, MODEL_VALUES, SECRETS.
# Fails where TEXT is not one JSON object.
json_models() {
  local LC_ALL=C
  JSON_REST=$1 JSON_OUT='' MODEL_NAMES=() MODEL_VALUES=()
  json_blank
  [[ $JSON_REST == '{'* ]] || return 1
  json_members 1 || return 1
  json_blank
  [[ -z $JSON_REST ]]
}

json_blank() { [[ ! $JSON_REST =~ ^[[:space:]]+ ]] || JSON_REST=${JSON_REST:${#BASH_REMATCH[0]}}; }

# json_eat LITERAL: the next thing is this character
json_eat() {
  json_blank
  [[ ${JSON_REST:0:1} == "$1" ]] || return 1
  JSON_REST=${JSON_REST:1} JSON_OUT+=$1
}

# json_members DEPTH: an object
json_members() {
  local depth=$1 name start
  json_eat '{'
  json_eat '}' && return 0
  while :; do
    json_blank
    json_literal || return 1
    name=$REPLY
    json_eat : || return 1
    start=${#JSON_OUT}
    json_value "$depth" || return 1
    json_remember "$depth" "$name" "${JSON_OUT:start}"
    json_eat , && continue
    json_eat '}'
    return
  done
}

# json_value DEPTH
json_value() {
  (($1 < 20)) || return 1
  json_blank
  case ${JSON_REST:0:1} in
    '{') json_members $(($1 + 1)) ;;
    '[') json_list $(($1 + 1)) ;;
    '"') json_literal ;;
    *)
      [[ $JSON_REST =~ $JSON_WORD ]] || return 1
      JSON_REST=${JSON_REST:${#BASH_REMATCH[0]}} JSON_OUT+=${BASH_REMATCH[0]}
      ;;
  esac
}

json_list() {
  json_eat '['
  json_eat ']' && return 0
  while :; do
    json_value "$1" || return 1
    json_eat , && continue
    json_eat ']'
    return
  done
}

# A string: its text in REPLY, its safe form on JSON_OUT
json_literal() {
  local literal text
  [[ $JSON_REST =~ $JSON_STRING ]] || return 1
  literal=${BASH_REMATCH[0]}
  JSON_REST=${JSON_REST:${#literal}}
  json_text "$literal" || return 1
  text=$REPLY
  json_string "$text" || return 1
  JSON_OUT+=$REPLY
  REPLY=$text
}

# json_remember DEPTH NAME VALUE: the models, and what must never be shown
json_remember() {
  if (($1 == 1)); then
    MODEL_NAMES+=("$2") MODEL_VALUES+=("$3")
  fi
  if [[ $1 == 1 || $2 == key || $2 == keys ]]; then
    keep_strings "$3"
  fi
}

# keep_strings JSON: a string, or those of a list
keep_strings() {
  local rest=$1
  [[ $rest == [[\"]* ]] || return 0
  while [[ $rest =~ (\"[^\"]*\") ]]; do
    rest=${rest#*"${BASH_REMATCH[1]}"}
    json_text "${BASH_REMATCH[1]}" && keep_secret "$REPLY"
  done
}

keep_secret() { ((${#1} < 4)) || SECRETS+=("$1"); }

# ---------------------------------------------------------------- the configuration file

declare -A ENV=()
declare -a ENV_ORDER=() PROBLEMS=() MODEL_NAMES=() MODEL_VALUES=() CODES=()

# Reads ENV_FILE into ENV. Never sourced: a value is text, whatever it looks like.
read_environment() {
  local line number=0 LC_ALL=C
  ENV=() ENV_ORDER=()
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    ((number > 1)) || line=${line#$'\xef\xbb\xbf'}
    line=${line%$'\r'}
    [[ ! $line =~ ^[[:space:]]*(#.*)?$ ]] || continue
    parse_assignment "$line" || die 65 bad_line "$ENV_SHOWN" "$number"
  done
}

readonly ASSIGNMENT='^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)[[:space:]]*=[[:space:]]*(.*)$'
readonly SINGLE_QUOTED="^'(([^'\\\\]|\\\\.)*)'[[:space:]]*(#.*)?\$"
readonly DOUBLE_QUOTED='^"(([^"\\]|\\.)*)"[[:space:]]*(#.*)?$'

# One line, understood as python-dotenv understands it, since the application reads .env with that.
parse_assignment() {
  local name value
  [[ $1 =~ $ASSIGNMENT ]] || return 1
  name=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
  case $value in
    \'*)
      [[ $value =~ $SINGLE_QUOTED ]] || return 1
      unescape "\\'" "${BASH_REMATCH[1]}"
      ;;
    \"*)
      [[ $value =~ $DOUBLE_QUOTED ]] || return 1
      unescape "\\'\"abfnrtv" "${BASH_REMATCH[1]}"
      ;;
    *)
      value=${value%%[[:space:]]#*}
      REPLY=${value%"${value##*[![:space:]]}"}
      ;;
  esac
  [[ -n ${ENV[$name]+set} ]] || ENV_ORDER+=("$name")
  ENV[$name]=$REPLY
}

# unescape LETTERS TEXT -> REPLY: a backslash before one of LETTERS is an escape, others stay.
unescape() {
  local rest=$2 out='' letter
  while [[ $rest == *\\* ]]; do
    out+=${rest%%\\*} rest=${rest#*\\} letter=${rest:0:1} rest=${rest:1}
    if [[ -z $letter || $1 != *"$letter"* ]]; then
      out+=\\$letter
    elif [[ $letter == [a-z] ]]; then
      printf -v letter '%b' "\\$letter" && out+=$letter
    else
      out+=$letter
    fi
  done
  REPLY=$out$rest
}

# Opens the file, whoever's it is, and leaves ENV checked. Exits with 65 or 77 where it cannot.
load_configuration() {
  if [[ $ENV_FILE == - ]]; then
    read_environment
  else
    [[ -e $ENV_FILE ]] || die 65 no_env_file "$ENV_SHOWN"
    [[ -r $ENV_FILE && -f $ENV_FILE ]] || die 77 cannot_read "$ENV_SHOWN"
    check_owner
    read_environment <"$ENV_FILE"
  fi
  check_configuration
}

# file_fact FORMAT_GNU FORMAT_BSD FILE
file_fact() { stat -L -c "$1" "$3" 2>/dev/null || stat -L -f "$2" "$3"; }

check_owner() {
  local owner mode
  owner=$(file_fact %u %u "$ENV_FILE")
  [[ $owner == "$EUID" || $owner == "${SUDO_UID:-$EUID}" ]] ||
    die 77 other_owner "$ENV_SHOWN" "$ENV_SHOWN"
  mode=$(file_fact %a %Lp "$ENV_FILE")
  (((8#$mode & 8#077) == 0)) && return
  warn wide_mode "$ENV_SHOWN" "$mode" "$ENV_SHOWN"
  [[ -t 0 || -n ${OPT[yes]:-} ]] || return 0
  ! confirm 64 ask_chmod || chmod 600 "$ENV_FILE"
}

problem() { words "$@" && PROBLEMS+=("$REPLY"); }

check_configuration() {
  local entry value
  PROBLEMS=()
  take_file MODEL_CONFIG MODEL_CONFIG_FILE
  take_file OPENDIFY_API_KEYS OPENDIFY_API_KEYS_FILE
  take_file OPENDIFY_ADMIN_KEYS OPENDIFY_ADMIN_KEYS_FILE
  keep_other_secrets
  check_models
  check_base
  check_port
  for entry in ${ENV_ORDER[@]+"${ENV_ORDER[@]}"}; do
    value=${ENV[$entry]:-}
    [[ $value != *$'\n'* && $value != *$'\r'* ]] || problem p_newline "$entry"
    # shellcheck disable=SC2016  # the two characters are meant
    [[ $value != *'${'* ]] || warn dollar_brace "$entry"
  done
  ((${#PROBLEMS[@]})) || return 0
  complain problems "$ENV_SHOWN"
  printf '  - %s\n' "${PROBLEMS[@]}" >&2
  exit 65
}

# What else is not for the screen: keys of callers (a list, or JSON), secrets, passwords in addresses.
keep_other_secrets() {
  local name key keys
  for name in OPENDIFY_API_KEYS OPENDIFY_ADMIN_KEYS OPENWEBUI_JWT_SECRET OPENDIFY_SECRET; do
    json_models "${ENV[$name]:-}" && continue
    IFS=', ' read -ra keys <<<"${ENV[$name]:-}"
    for key in ${keys[@]+"${keys[@]}"}; do keep_secret "$key"; done
  done
  for name in CONVERSATION_STORE {HTTP,HTTPS,ALL}_PROXY {http,https,all}_proxy; do
    [[ ! ${ENV[$name]:-} =~ ://[^/@]*:([^/@]+)@ ]] || keep_secret "${BASH_REMATCH[1]}"
  done
}

# take_file NAME NAME_FILE: the file lies on this host, where the container cannot see it, so its
# text goes in as NAME. Several lines become one: JSON by its own rules, lists with commas.
take_file() {
  local path=${ENV[$2]:-} text
  [[ -n $path ]] || return 0
  if [[ -n ${ENV[$1]:-} ]]; then
    problem p_both "$1" "$2"
    return
  fi
  [[ $path == /* || $ENV_FILE == - ]] || path=$(dirname "$ENV_FILE")/$path
  if [[ ! -f $path || ! -r $path ]]; then
    problem p_file "$2" "$path"
    return
  fi
  text=$(<"$path")
  if [[ -z ${text//[[:space:]]/} ]]; then
    problem p_file_empty "$2" "$path"
  elif json_models "$text"; then
    text=$JSON_OUT
  else
    text=${text//$'\r'/}
    text=${text//$'\n'/,}
  fi
  unset "ENV[$2]"
  [[ -n ${ENV[$1]+set} ]] || ENV_ORDER+=("$1")
  ENV[$1]=$text
}

# Quotes, $ and the like would be read differently by different tools; an address has them encoded.
readonly ADDRESS='^https?://[A-Za-z0-9._~-]+(:[0-9]+)?(/[]A-Za-z0-9._~:%!()*+,;=@[-]*)*$|^https?://\[[0-9A-Fa-f:.]+\](:[0-9]+)?(/[A-Za-z0-9._~:%-]*)*$'

check_base() {
  local base=${ENV[DIFY_API_BASE]:-}
  if [[ -z $base ]]; then
    every_model_has_base || problem p_base_missing
  elif [[ ! $base =~ $ADDRESS ]]; then
    problem p_base_bad
  fi
}

check_models() {
  local index name seen='' text=${ENV[MODEL_CONFIG]:-}
  if [[ -z $text ]]; then
    problem p_models_missing
  elif ! json_models "$text"; then
    problem p_models_json
  elif ((${#MODEL_NAMES[@]} == 0)); then
    problem p_models_empty
  else
    for index in "${!MODEL_NAMES[@]}"; do
      name=${MODEL_NAMES[index]}
      [[ $seen != *$'\n'"$name"$'\n'* ]] || problem p_models_twice "$name"
      seen+=$'\n'$name$'\n'
      has_key "${MODEL_VALUES[index]}" || problem p_models_value "$name"
    done
  fi
}

# Models may each name a Dify of their own.
every_model_has_base() {
  local value
  ((${#MODEL_VALUES[@]})) || return 1
  for value in "${MODEL_VALUES[@]}"; do
    [[ $value =~ [{,]\"base\":\"[^\"] ]] || return 1
  done
}

# A model's value is its key, or an object with its key; callers may bring theirs.
has_key() { [[ ${ENV[DIFY_KEY_PASSTHROUGH]:-} == true || $1 == '"'?*'"' || $1 =~ [{,]\"key\":\"[^\"] ]]; }

check_port() {
  local port=${ENV[SERVER_PORT]:-$CONTAINER_PORT}
  is_port "$port" || problem p_port "$port"
}

# write_raw_environment HOST PORT -> RAW: the file that the engine reads, its values without quotes,
# since `--env-file` of `docker run` keeps them.
write_raw_environment() {
  local name
  need_temporary
  RAW=$TEMPORARY/environment
  {
    for name in "${ENV_ORDER[@]}"; do
      case $name in
        # Where the volume is mounted is not the file's to say.
        SERVER_HOST | SERVER_PORT | DATA_DIR) ;;
        *) [[ -z ${ENV[$name]+set} ]] || printf '%s=%s\n' "$name" "${ENV[$name]}" ;;
      esac
    done
    printf 'SERVER_HOST=%s\nSERVER_PORT=%s\n' "$1" "$2"
  } >"$RAW"
}

# ---------------------------------------------------------------- setup

cmd_setup() {
  [[ $ENV_FILE != - ]] || die 64 stdin_setup
  [[ ! -L $ENV_FILE ]] || die 73 is_symlink "$ENV_SHOWN"
  MODEL_NAMES=() MODEL_VALUES=()
  tell setup_title
  may_overwrite
  if [[ -n ${OPT[models-file]:-} ]]; then
    models_from_file "${OPT[models-file]}"
  elif ((${#MODELS_GIVEN[@]})); then
    models_from_options
  else
    [[ -t 0 ]] || warn visible_input
    tell setup_intro
  fi
  settle_base
  ((${#MODEL_NAMES[@]})) || ask_models
  write_configuration
  report_setup
}

# Asks while stdin is not needed for anything else; without a terminal only --yes will do.
may_overwrite() {
  [[ -e $ENV_FILE ]] || return 0
  warn exists "$ENV_SHOWN"
  confirm 1 ask_overwrite || exit 1
}

# again KEY [ARGUMENT...]: a wrong answer is asked anew on a terminal and is the end without one
again() {
  [[ -t 0 ]] || die 65 "$@"
  complain "$@"
}

# ask KEY -> REPLY; fails at the end of the input. The prompt goes to standard output, always.
ask() {
  words "$1" && printf '%s' "$REPLY"
  IFS= read -r REPLY || [[ -n $REPLY ]]
}

ask_hidden() {
  local status=0
  [[ -t 0 ]] || { ask "$1" && return; }
  words "$1" && printf '%s' "$REPLY"
  TERMINAL_STATE=$(stty -g)
  stty -echo
  IFS= read -r REPLY || status=1
  stty "$TERMINAL_STATE" && TERMINAL_STATE=''
  echo
  return "$status"
}

settle_base() {
  if [[ -n ${OPT[api-base]:-} ]]; then
    BASE=${OPT[api-base]%/}
    [[ $BASE =~ $ADDRESS ]] || die 65 bad_base
  else
    while :; do
      ask ask_base || die 65 input_ended
      BASE=${REPLY%/}
      [[ ! $BASE =~ $ADDRESS ]] || break
      again bad_base
    done
  fi
  warn_about_base
}

warn_about_base() {
  local host=${BASE#*://}
  host=${host%%[/]*}
  case $BASE in
    http://localhost* | http://127.* | http://\[::1\]* | https://*) ;;
    *) warn base_http "$host" ;;
  esac
  [[ $BASE == */v1 ]] || warn base_no_v1
}

ask_models() {
  local name
  tell setup_models
  while :; do
    if ! ask ask_model || [[ $REPLY == 'done' ]]; then
      ((${#MODEL_NAMES[@]} == 0)) || return 0
      [[ $REPLY == 'done' ]] || die 65 input_ended
      again no_models
      continue
    fi
    name=$REPLY
    is_model_name "$name" || { again bad_model && continue; }
    may_replace "$name" || continue
    ask_model_key
    add_model "$name" "$REPLY"
  done
}

ask_model_key() {
  while :; do
    ask_hidden ask_key || die 65 input_ended
    is_key "$REPLY" && return
    again bad_key
  done
}

is_model_name() {
  local LC_ALL=C code
  code_points "$1" || return 1
  ((${#CODES[@]} >= 1 && ${#CODES[@]} <= 128)) || return 1
  [[ ! $1 =~ ^[[:space:]]|[[:space:]]$ ]] || return 1
  for code in "${CODES[@]}"; do
    ((code >= 32 && (code < 127 || code > 159))) || return 1
  done
}

is_key() {
  local LC_ALL=C
  [[ $1 =~ ^[!-~]{1,512}$ ]]
}

index_of_model() {
  for REPLY in ${MODEL_NAMES[@]+"${!MODEL_NAMES[@]}"}; do
    [[ ${MODEL_NAMES[REPLY]} != "$1" ]] || return 0
  done
  return 1
}

may_replace() {
  index_of_model "$1" || return 0
  [[ -t 0 ]] || die 65 duplicate_model "$1"
  confirm 65 ask_replace "$1"
}

# add_model NAME KEY: both were checked; the value is kept as JSON
add_model() {
  local index
  keep_secret "$2"
  [[ $2 == app-* ]] || warn key_prefix
  index_of_model "$1" && index=$REPLY || index=${#MODEL_NAMES[@]}
  MODEL_NAMES[index]=$1
  json_string "$2"
  MODEL_VALUES[index]=$REPLY
}

models_from_options() {
  local name entry key
  for name in "${MODELS_GIVEN[@]}"; do
    is_model_name "$name" || die 65 bad_model
    ! index_of_model "$name" || die 65 duplicate_model "$name"
    key=''
    for entry in ${KEY_FILES[@]+"${KEY_FILES[@]}"}; do
      [[ $entry == *=?* ]] || die 64 key_file_form
      [[ ${entry%=*} != "$name" ]] || key=${entry##*=}
    done
    [[ -n $key ]] || die 64 no_key_file "$name" "$name"
    read_key_file "$key"
    add_model "$name" "$REPLY"
  done
}

read_key_file() {
  [[ -f $1 && -r $1 || -p $1 ]] || die 65 cannot_read "$1"
  REPLY=$(<"$1")
  REPLY=${REPLY%$'\r'}
  is_key "$REPLY" || die 65 bad_key
}

models_from_file() {
  local text index
  if [[ $1 == - ]]; then
    text=$(cat)
  else
    [[ -r $1 ]] || die 65 cannot_read "$1"
    text=$(<"$1")
  fi
  ENV=([MODEL_CONFIG]=$text)
  PROBLEMS=()
  check_models
  for index in ${MODEL_NAMES[@]+"${!MODEL_NAMES[@]}"}; do
    is_model_name "${MODEL_NAMES[index]}" || problem bad_model
  done
  ((${#PROBLEMS[@]})) || return 0
  complain problems "$1"
  printf '  - %s\n' "${PROBLEMS[@]}" >&2
  exit 65
}

# The JSON of all models, on one line
models_json() {
  local index out=''
  for index in "${!MODEL_NAMES[@]}"; do
    json_string "${MODEL_NAMES[index]}"
    out+=${out:+,}$REPLY:${MODEL_VALUES[index]}
  done
  REPLY="{$out}"
}

write_configuration() {
  local folder temporary
  folder=$(dirname "$ENV_FILE")
  umask 077
  temporary=$(mktemp "$folder/.env.XXXXXXXX" 2>/dev/null) || die 73 cannot_write "$ENV_SHOWN"
  undo rm -f "$temporary"
  carry_over
  models_json
  {
    printf 'DIFY_API_BASE="%s"\n' "$BASE"
    printf "MODEL_CONFIG='%s'\n" "$REPLY"
    printf 'SERVER_HOST="0.0.0.0"\n'
    printf 'SERVER_PORT=%s\n' "$((10#${OPT[port]:-$OLD_PORT}))"
    printf '%s' "$OTHER_LINES"
  } >"$temporary" || die 73 cannot_write "$ENV_SHOWN"
  chmod 600 "$temporary"
  keep_old_file
  mv -f "$temporary" "$ENV_FILE" || die 73 cannot_write "$ENV_SHOWN"
  UNDO=()
}

# carry_over -> OLD_PORT, OTHERS, OTHER_LINES: what the old file has beyond what setup asks for
carry_over() {
  local line name LC_ALL=C
  OLD_PORT=$CONTAINER_PORT OTHERS='' OTHER_LINES=''
  [[ -r $ENV_FILE && -f $ENV_FILE ]] || return 0
  while IFS= read -r line || [[ -n $line ]]; do
    line=${line#$'\xef\xbb\xbf'}
    line=${line%$'\r'}
    [[ $line =~ $ASSIGNMENT ]] || continue
    name=${BASH_REMATCH[2]}
    case $name in
      DIFY_API_BASE | MODEL_CONFIG | MODEL_CONFIG_FILE | SERVER_HOST) ;;
      SERVER_PORT) ! { parse_assignment "$line" && is_port "$REPLY"; } || OLD_PORT=$REPLY ;;
      *) OTHERS+=" $name" OTHER_LINES+=$line$'\n' ;;
    esac
  done <"$ENV_FILE"
}

keep_old_file() {
  [[ -e $ENV_FILE ]] || return 0
  [[ -f $ENV_FILE && ! -L $ENV_FILE.bak ]] || die 73 cannot_write "$ENV_SHOWN"
  cp -p "$ENV_FILE" "$ENV_FILE.bak" || die 73 cannot_write "$ENV_SHOWN.bak"
  chmod 600 "$ENV_FILE.bak"
}

report_setup() {
  local index value
  echo
  tell setup_done "$ENV_SHOWN"
  for index in "${!MODEL_NAMES[@]}"; do
    value=${MODEL_VALUES[index]}
    REPLY='{…}'
    if [[ $value == '"'* ]]; then
      json_text "$value" && mask_key "$REPLY"
    fi
    printf '  %s  %s\n' "${MODEL_NAMES[index]}" "$REPLY"
  done
  [[ ! -e $ENV_FILE.bak ]] || say setup_backup "$ENV_SHOWN.bak"
  [[ -z $OTHERS ]] || say setup_carried "$OTHERS"
  say next_deploy
}

# ---------------------------------------------------------------- the engine

ENGINE='' KNOWN=''
declare -A OURS=()

# bounded SECONDS COMMAND...: where the host has no `timeout`, without a bound
bounded() {
  if command -v timeout >/dev/null; then timeout "$@"; else "${@:2}"; fi
}

# The first engine that answers. Sets ENGINE.
find_engine() {
  local candidate wanted=${OPT[engine]:-${CONTAINER_ENGINE:-}} failure=''
  REFUSED='' FAILURE=''
  [[ -z $wanted || $wanted == docker || $wanted == podman ]] || die 64 bad_engine
  for candidate in ${wanted:-docker podman}; do
    command -v "$candidate" >/dev/null || continue
    failure=$(bounded 30 "$candidate" ps -q 2>&1 >/dev/null) && ENGINE=$candidate && break
    REFUSED=${REFUSED:-$candidate}
    FAILURE=${FAILURE:-${failure%%$'\n'*}}
  done
  [[ -z $ENGINE ]] || return 0
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

refuse_foreign() {
  find_container "$NAME" && return
  [[ -z $(inspect '{{.Id}}' "$NAME") ]] || die 1 foreign "$NAME"
}

no_facts() {
  C_STATE=absent C_HEALTH=none C_RESTARTS=0 C_IMAGE='' C_REF='' C_STARTED='' C_STOP=40
  C_VERSION='' C_DIGEST='' C_OPTIONS='' C_ADDRESS='' C_DATA=''
}

# describe CONTAINER: what there is to know of it, in variables that begin with C_
describe() {
  local facts
  no_facts
  facts=$(inspect '{{.State.Status}}
{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}
{{.RestartCount}}
{{.Image}}
{{.Config.Image}}
{{.State.StartedAt}}
{{.Config.StopTimeout}}
{{index .Config.Labels "opendify.version"}}
{{index .Config.Labels "opendify.config-sha256"}}
{{index .Config.Labels "opendify.options"}}
{{index .Config.Labels "opendify.address"}}
{{range .Mounts}}{{if eq .Destination "/app/data"}}{{if .Name}}{{.Name}}{{else}}{{.Source}}{{end}}{{end}}{{end}}' "$1") || return 1
  {
    IFS= read -r C_STATE && IFS= read -r C_HEALTH && IFS= read -r C_RESTARTS
    IFS= read -r C_IMAGE && IFS= read -r C_REF && IFS= read -r C_STARTED
    IFS= read -r C_STOP && IFS= read -r C_VERSION && IFS= read -r C_DIGEST
    IFS= read -r C_OPTIONS && IFS= read -r C_ADDRESS
    IFS= read -r C_DATA || true
  } <<<"$facts"
  [[ $C_STOP =~ ^[0-9]+$ ]] || C_STOP=40
}

# describe_named NAME: as describe, of ours alone; C_STATE is absent where there is none
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
    first=${first:-$C_RESTARTS}
    ((C_RESTARTS == first)) || return 1
    ! podman_is_healthy "$1" || C_HEALTH=healthy
    case $C_STATE/$C_HEALTH in
      running/healthy) return 0 ;;
      running/none) ask_service "$1" && return 0 ;;
      running/unhealthy | exited/* | dead/* | restarting/*) return 1 ;;
    esac
    ((SECONDS < deadline)) || return 124
    sleep 1
  done
}

# Asks /v1/models from inside, with the first plain key there is. Prints the status, then the ids.
service_question() {
  cat <<'PYTHON'
import http.client, json, os
def written(value):
    if isinstance(value, str):
        return value.split(",")
    if isinstance(value, dict):
        value = [value["keys"]] if "keys" in value else value.values()
    return [key for entry in value for key in written(entry)]
def keys(name):
    text = os.environ.get(name, "").strip("'\" ")
    return written(json.loads(text) if text.startswith("{") else text)
found = [key.strip() for name in ("OPENDIFY_API_KEYS", "OPENDIFY_ADMIN_KEYS") for key in keys(name)]
key = next((key for key in found if key and not key.lower().startswith("sha256:")), "")
port = int(os.environ.get("SERVER_PORT") or 5000)
link = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
link.request("GET", "/v1/models", headers={"Authorization": "Bearer " + key} if key else {})
answer = link.getresponse()
body = answer.read()
print(answer.status)
if answer.status == 200:
    print("\n".join(str(model["id"]) for model in json.loads(body)["data"]))
PYTHON
}

# ask_service CONTAINER -> ANSWER
ask_service() { ANSWER=$("$ENGINE" exec "$1" python -c "$(service_question)" 2>/dev/null); }

last_lines() { "$ENGINE" logs --tail "$2" "$1" 2>&1 | mask_stream >&2; }

# ---------------------------------------------------------------- one deploy at a time

take_lock() {
  local base holder
  base=${XDG_RUNTIME_DIR:-/tmp}
  [[ -d $base && -w $base ]] || base=/tmp
  base=$base/opendify-$EUID-$NAME.lock
  if command -v flock >/dev/null; then
    [[ ! -L $base ]] || die 73 is_symlink "$base"
    exec 9<>"$base" || die 73 cannot_write "$base"
    if ! flock -n 9; then
      holder=$(head -n 1 "$base")
      die 75 locked "${holder:-?}" "$base"
    fi
  else
    take_folder_lock "$base.d"
    exec 9>"$base.d/holder"
  fi
  describe_holder >&9
}

describe_holder() { printf 'pid %s, %s          \n' "$$" "$(date -u +%Y-%m-%dT%H:%M:%SZ)"; }

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

# IMAGE_ID of IMAGE; loads opendify.tar.gz beside this script where there is none
find_image() {
  IMAGE_ID=$(image_fact '{{.Id}}' "$IMAGE") && return
  [[ -f $HERE/opendify.tar.gz ]] || die 78 no_image "$IMAGE"
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

# remembered OPTION: given now, else as at the last deploy
remembered() {
  local entry
  REPLY=${OPT[$1]:-}
  [[ -z $REPLY ]] || return 0
  for entry in $C_OPTIONS; do
    [[ $entry != "$1="* ]] || REPLY=${entry#*=}
  done
  [[ -z $REPLY ]] || KEPT+=" --$1 $REPLY"
}

# Settings of this deploy, from the options, the last deploy and the file. Verb: $1.
settle_options() {
  local option
  KEPT='' OPTIONS=''
  describe_named "$NAME"
  for option in bind image data memory cpus network; do
    remembered "$option"
    [[ -z $REPLY ]] || OPTIONS+=" $option=$REPLY"
    case $option in
      bind) BIND=${REPLY:-0.0.0.0} ;;
      image) IMAGE=${REPLY:-opendify:latest} ;;
      data) DATA=${REPLY:-${NAME}_data} ;;
      memory) MEMORY=$REPLY ;;
      cpus) CPUS=$REPLY ;;
      network) NETWORK=$REPLY ;;
    esac
  done
  PORT=${OPT[port]:-}
  [[ $1 != update ]] || { remembered port && PORT=$REPLY; }
  [[ -z $PORT ]] || OPTIONS+=" port=$PORT"
  OPTIONS=${OPTIONS# }
}

# For the verbs that only look
settle_image() {
  settle_options update
  KEPT=''
}

number_or() { [[ $1 =~ ^[1-9][0-9]{0,5}$ ]] && REPLY=$1 || REPLY=$2; }

# Threads and memory as the container will use them. A pids limit counts threads.
settle_limits() {
  local cores threads workers
  cores=$("$ENGINE" info -f '{{.NCPU}}' 2>/dev/null) || cores=$("$ENGINE" info -f '{{.Host.CPUs}}' 2>/dev/null) || cores=4
  [[ -z $CPUS ]] || cores=$((10#${CPUS%%.*} + 1))
  number_or "$cores" 4
  number_or "${ENV[GUNICORN_WORKERS]:-}" $((REPLY * 2 + 1)) && workers=$REPLY
  number_or "${ENV[GUNICORN_THREADS]:-}" 128 && threads=$REPLY
  number_or "${ENV[GUNICORN_GRACEFUL_TIMEOUT]:-}" 30 && STOP=$((REPLY + 10))
  PIDS=$((workers * (threads + 16) + 64))
  [[ -n $MEMORY ]] || { MEMORY=1g && ((workers <= 9)) || MEMORY=$((workers * 112))m; }
}

# plan VERB: everything that is known before anything is touched
plan() {
  PORT=${PORT:-${ENV[SERVER_PORT]:-$CONTAINER_PORT}}
  PORT=$((10#$PORT))
  [[ $BIND != *:* || $BIND == \[* ]] || BIND=[$BIND]
  settle_limits
  if [[ $NETWORK == host ]]; then
    write_raw_environment "${BIND//[][]/}" "$PORT"
  else
    write_raw_environment 0.0.0.0 "$CONTAINER_PORT"
  fi
  DIGEST=$({
    printf '%s\n' "$NAME" "$BIND:$PORT $DATA $MEMORY $CPUS $NETWORK $PIDS $STOP"
    cat "$RAW"
  } | sum_of)
  VERSION=$(image_fact '{{index .Config.Labels "org.opencontainers.image.version"}}' "$IMAGE_ID") || VERSION=''
}

# SETTINGS: the part of `run` that trial and service share
common_settings() {
  SETTINGS=(
    --init --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges
    --memory "$MEMORY" --pids-limit "$PIDS" --stop-timeout "$STOP" --env-file "$RAW"
    --label opendify.managed=1 --label "opendify.env=$NAME" --label "opendify.version=$VERSION"
  )
  # Named, because another default of the daemon may refuse these options.
  [[ $ENGINE == podman ]] ||
    SETTINGS+=(--log-driver json-file --log-opt max-size=10m --log-opt max-file=3)
  [[ -z $CPUS ]] || SETTINGS+=(--cpus "$CPUS")
}

# The trial has no port and no data: two processes must not write the same files.
trial_settings() {
  common_settings
  SETTINGS+=(--name "$NAME-next" --tmpfs /app/data --tmpfs /app/logs)
  [[ -z $NETWORK || $NETWORK == host ]] || SETTINGS+=(--network "$NETWORK")
}

service_settings() {
  common_settings
  SETTINGS+=(
    --name "$NAME-new" --restart unless-stopped
    --volume "$DATA:/app/data" --volume "${NAME}_logs:/app/logs"
    --label "opendify.config-sha256=$DIGEST" --label "opendify.options=$OPTIONS"
    --label "opendify.address=$BIND:$PORT"
    --label "opendify.deployed-at=$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  )
  if [[ $NETWORK == host ]]; then
    SETTINGS+=(--network host)
  else
    SETTINGS+=(--publish "$BIND:$PORT:$CONTAINER_PORT" ${NETWORK:+--network "$NETWORK"})
  fi
}

# port_holder PORT -> HOLDER: the container that publishes it, if one does
port_holder() {
  HOLDER=$("$ENGINE" ps --filter "publish=$1" --format '{{.Names}}' 2>/dev/null | head -n 1) || HOLDER=''
}

# Does something on this host answer at the port? Nothing can be said of an engine elsewhere.
port_answers() {
  local address=${BIND//[][]/}
  case ${DOCKER_HOST:-unix:} in
    unix:*) ;;
    *) return 1 ;;
  esac
  case $address in
    0.0.0.0 | ::) address=127.0.0.1 ;;
  esac
  # shellcheck disable=SC2016  # the inner shell expands them
  bounded 2 bash -c 'exec 3<>"/dev/tcp/$1/$2"' _ "$address" "$1" 2>/dev/null
}

# our_port_is PORT: our running service holds it
our_port_is() {
  describe_named "$NAME"
  [[ $C_STATE == running && ${C_ADDRESS##*:} == "$1" ]]
}

require_free_port() {
  our_port_is "$PORT" && return
  port_answers "$PORT" || return 0
  port_holder "$PORT"
  words port_program
  die 1 port_used "$PORT" "${HOLDER:-$REPLY}" "$PORT"
}

# ---------------------------------------------------------------- check and deploy

# The application's own judgement. A message of its own is shown; an image without this is no fault.
check_in_image() {
  local output status=0
  [[ -z ${OPT[dry-run]:-} ]] || return 0
  output=$("$ENGINE" run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL \
    --env-file "$RAW" "$IMAGE_ID" python -m opendify.config 2>&1) || status=$?
  ((status == 78)) || return 0
  complain problems "$ENV_SHOWN"
  mask_stream <<<"$output" >&2
  exit 65
}

cmd_check() {
  load_configuration
  if (find_engine) 2>/dev/null && find_engine && settle_image &&
    IMAGE_ID=$(image_fact '{{.Id}}' "$IMAGE"); then
    write_raw_environment 0.0.0.0 "$CONTAINER_PORT"
    check_in_image
  else
    warn check_unseen
    [[ -z ${OPT[online]:-} ]] || { find_engine && die 78 no_image "$IMAGE"; }
  fi
  say check_ok "$ENV_SHOWN" "${#MODEL_NAMES[@]}"
  [[ -z ${OPT[online]:-} ]] || check_online
}

# Runs in the image. One line a model; the exit status is the worst of them: 65 refused, 1 unreachable.
online_question() {
  cat <<'PYTHON'
import json, os, sys, urllib.error, urllib.request
worst = 0
for name, entry in json.loads(os.environ["MODEL_CONFIG"]).items():
    entry = entry if isinstance(entry, dict) else {"key": entry}
    base = str(entry.get("base") or os.environ["DIFY_API_BASE"]).rstrip("/")
    said = "ok"
    paths = ("/info", "/parameters")
    if os.environ.get("DIFY_KEY_PASSTHROUGH") == "true":
        said, paths = "not asked, callers bring the key", ()
    for path in paths:
        request = urllib.request.Request(base + path)
        request.add_unredirected_header("Authorization", "Bearer " + entry["key"])
        try:
            urllib.request.urlopen(request, timeout=5).close()
            said = "ok"
            break
        except urllib.error.HTTPError as error:
            said = str(error.code)
            if error.code != 404:
                break
        except (OSError, ValueError) as error:
            said = "unreachable (%s)" % type(getattr(error, "reason", error)).__name__
            break
    worst = max(worst, 65 if said.isdigit() else said.startswith("unreachable"))
    print("  %s: %s" % (name, said))
sys.exit(worst)
PYTHON
}

check_online() {
  local status=0
  settle_options update
  tell online_title
  "$ENGINE" run --rm --read-only --cap-drop ALL ${NETWORK:+--network "$NETWORK"} \
    --env-file "$RAW" "$IMAGE_ID" python -c "$(online_question)" || status=$?
  ((status == 0)) && return
  ((status == 65)) || status=1
  die "$status" online_failed
}

cmd_deploy() {
  take_lock
  find_engine
  settle_options deploy
  find_image
  load_configuration
  deploy_image
}

# The common end of deploy and update: the image is there and the configuration is read.
deploy_image() {
  refuse_foreign
  heal
  plan deploy
  [[ -z $KEPT ]] || say kept_options "$KEPT"
  if is_current && [[ -z ${OPT[force]:-} ]]; then
    UNDO=()
    say up_to_date
    return
  fi
  say deploying "$NAME" "$IMAGE"
  require_free_port
  check_in_image
  run_trial
  swap
  prune
  say deployed
  [[ -n ${OPT[dry-run]:-}${OPT[quiet]:-} ]] || show_status "$NAME" || true
}

is_current() {
  describe_named "$NAME"
  [[ $C_IMAGE == "$IMAGE_ID" && $C_DIGEST == "$DIGEST" && $C_STATE/$C_HEALTH == running/healthy ]]
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
  [[ -n $broken && $C_STATE != absent ]] || return 0
  [[ $C_STATE == running ]] || change start "$FOUND" || true
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
  [[ $C_STATE == @(running|restarting|paused) ]] || return 0
  WAS_RUNNING=$1
  undo bring_back "$1"
  say stopping "$NAME" "$C_STOP"
  change stop -t "$C_STOP" "$1"
}

# A stop that was under way must be over before a start means anything.
bring_back() {
  "$ENGINE" stop -t "$C_STOP" "$1"
  "$ENGINE" start "$1"
}

# put_in_place ID: it gets the name only when it is healthy, so that `heal` knows what it may trust
put_in_place() {
  undo "$ENGINE" rm -f "$1"
  change start "$1" || swap_failed "$1"
  wait_healthy "$1" || swap_failed "$1"
  change rename "$1" "$NAME" || swap_failed "$1"
}

# swap_failed CONTAINER: says why, puts the old service back and leaves
swap_failed() {
  complain start_failed
  last_lines "$1" 30
  settle_back rolled_back
}

# settle_back KEY: undoes all, and leaves with the code that tells whether the service is up again
settle_back() {
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
  settle_options update
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
    ! runs_image "$IMAGE_ID" || { say nothing_to_update && return; }
  fi
  load_configuration
  deploy_image
}

runs_image() { find_container "$NAME" && [[ $(inspect '{{.Image}}' "$FOUND") == "$1" ]]; }

# Loading takes the name away from the running image: it gets one of its own, and the name back
# if the new image turns out to be bad.
keep_running_image() {
  local running named
  named=$(image_fact '{{.Id}}' "$IMAGE") || named=''
  if find_container "$NAME" && running=$(inspect '{{.Image}}' "$FOUND"); then
    REPLY=${running#sha256:}
    change tag "$running" "$(repository):prev-${REPLY:0:12}"
  fi
  [[ -z $named ]] || undo "$ENGINE" tag "$named" "$IMAGE"
}

cmd_rollback() {
  local previous current='' status=0
  take_lock
  find_engine
  settle_image
  refuse_foreign
  heal
  find_container "$NAME-prev" || die 1 no_previous
  previous=$FOUND
  describe "$previous"
  say rolling "$C_REF ${C_VERSION:+($C_VERSION)}"
  WAS_RUNNING=''
  ! find_container "$NAME" || current=$FOUND
  [[ -z $current ]] || exchange_out "$current"
  undo "$ENGINE" rename "$previous" "$NAME-prev"
  undo "$ENGINE" stop "$previous"
  change rename "$previous" "$NAME" || settle_back rollback_failed
  change start "$previous" || settle_back rollback_failed
  wait_healthy "$previous" || status=$?
  ((status == 0)) || { last_lines "$previous" 30 && settle_back rollback_failed; }
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

# state_word, health_word -> REPLY
state_word() {
  case $C_STATE in
    running) words w_running ;;
    restarting) words w_loop "$C_RESTARTS" ;;
    absent) words w_absent ;;
    *) words w_stopped ;;
  esac
  if [[ $C_STATE == running && $C_RESTARTS -gt 2 && $C_HEALTH != healthy ]]; then
    words w_loop "$C_RESTARTS"
  fi
}

health_word() {
  case $C_STATE/$C_HEALTH in
    running/healthy) words w_healthy ;;
    running/unhealthy | restarting/*) words w_unhealthy ;;
    running/starting) words w_starting ;;
    *) words w_none ;;
  esac
}

# look NAME: describes the container and asks the service. API and LISTED.
look() {
  API=bad LISTED=''
  describe_named "$1"
  [[ $C_STATE == running ]] || return 0
  ANSWER=''
  ask_service "$FOUND" || true
  case ${ANSWER%%$'\n'*} in
    200) API=ok LISTED=${ANSWER#200} && LISTED=${LISTED#$'\n'} ;;
    401 | 403) API=key ;;
  esac
}

# An image without a health check is judged by its answer alone.
is_good() { [[ $C_STATE/$C_HEALTH == running/@(healthy|none) && $API != bad ]]; }

# show_status NAME: in words. The answer is whether it is healthy.
show_status() {
  local model
  look "$1"
  tell status_title
  state_word && tell s_container "$REPLY"
  health_word && tell s_health "$REPLY"
  words "w_$API" && tell s_api "$REPLY"
  if [[ $C_STATE != absent ]]; then
    REPLY=${C_IMAGE#sha256:}
    tell s_image "$C_REF ${REPLY:0:12}" "${C_VERSION:-?}"
    tell s_address "$C_ADDRESS"
    tell s_since "${C_STARTED%%.*}" "$C_RESTARTS"
  fi
  if [[ -n $LISTED ]]; then
    tell s_models
    while IFS= read -r model; do printf '  - %s\n' "$model"; done <<<"$LISTED"
  fi
  is_good
}

status_names() {
  if [[ -z ${OPT[all]:-} ]]; then
    printf '%s\n' "$NAME"
  else
    "$ENGINE" ps -a --filter label=opendify.managed=1 --format '{{.Names}} {{.Label "opendify.env"}}' |
      awk '$1 == $2 { print $1 }' | sort
  fi
}

cmd_status() {
  local name worst=0
  find_engine
  if [[ -n ${OPT[json]:-} ]]; then
    for name in $(status_names); do status_line json "$name" || worst=3; done
  elif [[ -n ${OPT[all]:-} ]]; then
    table_row NAME STATE HEALTH IMAGE VERSION ADDRESS UPTIME RESTARTS MODELS
    for name in $(status_names); do status_line table "$name" || worst=3; done
  elif [[ -n ${OPT[quiet]:-} ]]; then
    look "$NAME" && is_good || worst=3
  else
    show_status "$NAME" || worst=3
  fi
  exit "$worst"
}

table_row() { printf '%-20s %-12s %-10s %-22s %-9s %-20s %-9s %-8s %s\n' "$@"; }

# status_line table|json NAME
status_line() {
  local models
  look "$2"
  if [[ $1 == table ]]; then
    uptime_of "$C_STARTED"
    models=${LISTED//$'\n'/,}
    table_row "$2" "$C_STATE" "$C_HEALTH" "$C_REF" "${C_VERSION:--}" "$C_ADDRESS" "$REPLY" \
      "$C_RESTARTS" "${models:--}"
  else
    status_json "$2"
  fi
  is_good
}

uptime_of() {
  local since
  REPLY=-
  [[ $C_STATE == running ]] && since=$(date -d "$1" +%s 2>/dev/null) || return 0
  since=$(($(date +%s) - since))
  REPLY=$((since / 86400))d$((since % 86400 / 3600))h$((since % 3600 / 60))m
}

status_json() {
  local out name value model list=''
  while IFS= read -r model; do
    [[ -z $model ]] || { json_string "$model" && list+=${list:+,}$REPLY; }
  done <<<"$LISTED"
  out="{\"name\":\"$1\",\"restarts\":$C_RESTARTS,\"healthy\":$(is_good && echo true || echo false)"
  for name in STATE HEALTH REF IMAGE VERSION ADDRESS STARTED; do
    value=C_$name
    json_string "${!value}"
    out+=",\"${name,,}\":$REPLY"
  done
  printf '%s,"api":"%s","models":[%s]}\n' "$out" "$API" "$list"
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
  take_lock
  find_engine
  refuse_foreign
  find_container "$NAME" || { say stop_absent "$NAME" && return; }
  describe "$FOUND"
  case $C_STATE in
    running | restarting | paused) ;;
    *) say stop_already "$NAME" && return ;;
  esac
  say stopping "$NAME" "$C_STOP"
  change stop -t "$C_STOP" "$FOUND" || die 1 engine_failed stop "$NAME"
  say stopped
}

cmd_start() { bring_up start; }
cmd_restart() { bring_up restart; }

bring_up() {
  local status=0 arguments=()
  take_lock
  find_engine
  refuse_foreign
  heal
  find_container "$NAME" || die 1 absent "$NAME"
  describe "$FOUND"
  [[ $1 == start ]] || arguments=(-t "$C_STOP")
  change "$1" ${arguments[@]+"${arguments[@]}"} "$FOUND" || die 2 engine_failed "$1" "$NAME"
  wait_healthy "$FOUND" || status=$?
  ((status != 1)) || { last_lines "$FOUND" 30 && die 2 down; }
  ((status == 0)) || die 124 start_timeout "$NAME" "${OPT[timeout]:-60}"
  say started "$NAME"
}

cmd_remove() {
  local suffix any='' data
  take_lock
  find_engine
  settle_image
  refuse_foreign
  ! find_container "$NAME" || { any=1 && describe "$FOUND" && DATA=${C_DATA:-$DATA}; }
  data=$DATA
  if [[ -z $any && -z ${OPT[volumes]:-} ]]; then
    say remove_absent "$NAME" && return
  fi
  suffix=ask_remove
  [[ -z ${OPT[volumes]:-} ]] || suffix=ask_remove_data
  confirm 64 "$suffix" "$NAME" || exit 1
  for suffix in '' -next -new -prev -old; do
    find_container "$NAME$suffix" || continue
    [[ -n $suffix ]] || change stop -t "$C_STOP" "$FOUND" || true
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

# settle_data: DATA as the container has it, and an image to read it with
settle_data() {
  settle_image
  refuse_foreign
  IMAGE_ID=''
  if find_container "$NAME" && describe "$FOUND"; then
    DATA=${C_DATA:-$DATA} IMAGE_ID=$C_IMAGE
  elif [[ $DATA != /* ]]; then
    "$ENGINE" volume inspect "$DATA" >/dev/null 2>&1 || die 1 no_data "$DATA"
  fi
  [[ -n $IMAGE_ID ]] || find_image
}

# in_image MODE CODE [ARGUMENT...]: Python in the image, with the data at /backup/data
in_image() {
  local mode=$1 code=$2
  shift 2
  "$ENGINE" run --rm -i --network none --read-only --user 0 --cap-drop ALL \
    --cap-add DAC_OVERRIDE --cap-add CHOWN --cap-add FOWNER --security-opt no-new-privileges \
    --volume "$DATA:/backup/data:$mode" "$IMAGE_ID" python -c "$code" "$@"
}

# The snapshot is read after the journals, as the application does; where a journal came or went
# meanwhile, all is read again. Sends a tar.gz; standard input goes in under the name given.
backup_code() {
  cat <<'PYTHON'
import io, json, os, sys, tarfile, time
snapshot = "data/conversation_mappings.json"
def listed():
    paths = []
    for folder, _, names in os.walk("data"):
        paths += [os.path.join(folder, name) for name in names if not name.endswith((".lock", ".tmp"))]
    paths = [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
    return sorted(paths, key=lambda path: (path == snapshot, path))
def read():
    found = {}
    for path in listed():
        try:
            with open(path, "rb") as file:
                found[path] = file.read()
        except FileNotFoundError:
            pass
    return found
os.chdir("/backup")
for _ in range(50):
    files = read()
    if listed() == list(files):
        break
    time.sleep(0.1)
PYTHON
  pack_code
}

pack_code() {
  cat <<'PYTHON'
try:
    json.loads(files.get(snapshot, b"").strip() or b"{}")
except ValueError:
    sys.exit("conversation_mappings.json is not valid JSON")
if len(sys.argv) > 1:
    files["config/" + sys.argv[1]] = sys.stdin.buffer.read()
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|gz") as archive:
    for name in sorted(files):
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = len(files[name]), 0o600, int(time.time())
        archive.addfile(entry, io.BytesIO(files[name]))
print(len(files), file=sys.stderr)
PYTHON
}

cmd_backup() {
  take_lock
  find_engine
  settle_data
  write_backup "${OPT[out]:-$PWD/backup-$NAME-$(date -u +%Y%m%dT%H%M%SZ).tar.gz}"
}

# write_backup FILE
write_backup() {
  local file=$1 part=$1.part count source=/dev/null name=()
  [[ -z ${OPT[dry-run]:-} ]] || { backup_plan "$file" && return; }
  if [[ -n ${OPT[with-config]:-} ]]; then
    [[ $ENV_FILE != - && -r $ENV_FILE ]] || die 65 no_env_file "$ENV_SHOWN"
    source=$ENV_FILE name=("${ENV_FILE##*/}")
  fi
  need_temporary
  umask 077
  { : >"$part"; } 2>/dev/null || die 73 cannot_write "$file"
  undo rm -f "$part"
  in_image ro "$(backup_code)" ${name[@]+"${name[@]}"} <"$source" >"$part" 2>"$TEMPORARY/said" ||
    die 1 backup_failed "$(tail -n 1 "$TEMPORARY/said")"
  gzip -t "$part" 2>/dev/null || die 1 backup_failed gzip
  count=$(tail -n 1 "$TEMPORARY/said")
  finish_archive "$part" "$file"
  UNDO=()
  say backup_done "$file" "$count"
  [[ -z ${OPT[with-config]:-} ]] || warn backup_keys
}

backup_plan() { printf '+ %s run --rm --volume %s:/backup/data:ro %s > %s\n' "$ENGINE" "$DATA" "$IMAGE_ID" "$1" >&2; }

# finish_archive PART FILE: its sum beside it, then its name
finish_archive() {
  printf '%s  %s\n' "$(sum_of <"$1")" "${2##*/}" >"$2.sha256" || die 73 cannot_write "$2.sha256"
  mv -f "$1" "$2" || die 73 cannot_write "$2"
}

# Reads the whole archive before a byte is written, and refuses what is not plain data.
restore_code() {
  cat <<'PYTHON'
import json, os, pwd, shutil, sys, tarfile
task, owner, root, aside = sys.argv[1], sys.argv[2], "/backup/data", "/backup/data/.before-restore"
def read():
    files = {}
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
        for member in archive:
            parts = member.name.rstrip("/").split("/")
            if parts[0] not in ("data", "config") or {"", ".", ".."} & set(parts):
                sys.exit("a name that does not belong there: %r" % member.name)
            if not (member.isreg() or member.isdir()):
                sys.exit("not a plain file: %r" % member.name)
            if member.isreg() and parts[0] == "data":
                files["/".join(parts[1:])] = archive.extractfile(member).read()
    try:
        json.loads(files.get("conversation_mappings.json", b"").strip() or b"{}")
    except ValueError:
        sys.exit("conversation_mappings.json is not valid JSON")
    return files
def move(source, target):
    for name in os.listdir(source):
        if os.path.join(source, name) != aside:
            os.rename(os.path.join(source, name), os.path.join(target, name))
PYTHON
  restore_tasks
}

restore_tasks() {
  cat <<'PYTHON'
def own(path):
    user, _, group = owner.partition(":")
    entry = None if user.isdigit() else pwd.getpwnam(user or "root")
    uid = entry.pw_uid if entry else int(user)
    os.chown(path, uid, int(group) if group.isdigit() else entry.pw_gid if entry else uid)
def write(files):
    for name, content in files.items():
        folder, path = root, os.path.join(root, name)
        for part in name.split("/")[:-1]:
            folder = os.path.join(folder, part)
            if not os.path.isdir(folder):
                os.mkdir(folder, 0o700)
                own(folder)
        with open(path, "xb") as file:
            file.write(content)
        os.chmod(path, 0o600)
        own(path)
PYTHON
  restore_switch
}

restore_switch() {
  cat <<'PYTHON'
if task == "look":
    print(len(read()))
elif task == "put":
    files = read()
    shutil.rmtree(aside, ignore_errors=True)
    os.mkdir(aside, 0o700)
    move(root, aside)
    write(files)
    own(root)
elif task == "undo" and os.path.isdir(aside):
    for name in os.listdir(root):
        path = os.path.join(root, name)
        if path != aside:
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    move(aside, root)
    os.rmdir(aside)
elif task == "keep":
    shutil.rmtree(aside, ignore_errors=True)
PYTHON
}

# restore_task look|put|undo|keep [FILE] -> SAID
restore_task() {
  local owner
  owner=$(image_fact '{{.Config.User}}' "$IMAGE_ID") || owner=''
  SAID=$(in_image rw "$(restore_code)" "$1" "${owner:-0}" <"${2:-/dev/null}" 2>&1) && return
  SAID=${SAID##*$'\n'}
  return 1
}

undo_restore() { restore_task undo; }

cmd_restore() {
  local file=${WORDS[1]:-} count
  [[ -n $file ]] || die 64 restore_usage
  check_archive "$file"
  [[ -r $file.sha256 ]] || warn no_sum "$file.sha256"
  take_lock
  find_engine
  settle_data
  restore_task look "$file" || die 65 restore_bad "$file" "$SAID"
  count=$SAID
  write_backup "$PWD/backup-$NAME-$(date -u +%Y%m%dT%H%M%SZ)-before-restore.tar.gz"
  [[ -z ${OPT[dry-run]:-} ]] || return 0
  put_data "$file"
  say restore_done "$file" "$count"
}

# put_data FILE: with the service stopped, if it ran
put_data() {
  local status=0
  WAS_RUNNING=''
  describe_named "$NAME"
  set_down "$FOUND" || die 1 engine_failed stop "$NAME"
  undo undo_restore
  if [[ -n $WAS_RUNNING ]]; then
    undo "$ENGINE" stop -t "$C_STOP" "$WAS_RUNNING"
  fi
  restore_task put "$1" || { complain restore_bad "$1" "$SAID" && settle_back restore_undone; }
  if [[ -n $WAS_RUNNING ]]; then
    change start "$WAS_RUNNING" || settle_back restore_undone
    wait_healthy "$WAS_RUNNING" || status=$?
    ((status == 0)) || { last_lines "$WAS_RUNNING" 30 && settle_back restore_undone; }
  fi
  UNDO=()
  restore_task keep || true
}

# ---------------------------------------------------------------- export

cmd_export() {
  local file=${OPT[out]:-$PWD/opendify.tar.gz}
  find_engine
  settle_image
  image_fact '{{.Id}}' "$IMAGE" >/dev/null || die 78 export_build "$IMAGE" "$IMAGE"
  [[ -z ${OPT[dry-run]:-} ]] || { printf '+ %s save %s | gzip -n > %s\n' "$ENGINE" "$IMAGE" "$file" >&2 && return; }
  { : >"$file.part"; } 2>/dev/null || die 73 cannot_write "$file"
  undo rm -f "$file.part"
  "$ENGINE" save "$IMAGE" | gzip -n >"$file.part" || die 1 export_failed "$IMAGE"
  gzip -t "$file.part" || die 1 export_failed gzip
  finish_archive "$file.part" "$file"
  UNDO=()
  say export_done "$file" "$(du -h "$file" | cut -f 1)"
  say export_next "${file##*/}"
}

# ---------------------------------------------------------------- doctor

FAULTS=0

# finding good|warn|bad KEY [ARGUMENT...]
finding() {
  local level=$1 sign
  shift
  case $level in
    good) sign='✅' ;;
    warn) sign='⚠️ ' ;;
    *) sign='❌' && FAULTS=$((FAULTS + 1)) ;;
  esac
  FINDING=$1
  words "$@"
  if [[ -n ${OPT[json]:-} ]]; then
    json_string "$REPLY"
    FINDINGS+=${FINDINGS:+,}"{\"check\":\"$FINDING\",\"level\":\"$level\",\"message\":$REPLY}"
  else
    printf '%s %s\n' "$sign" "$REPLY"
  fi
}

cmd_doctor() {
  FINDINGS=''
  [[ -n ${OPT[json]:-} ]] || tell doctor_title "$NAME"
  doctor_host
  doctor_files
  if (find_engine) 2>/dev/null; then
    find_engine
    settle_image
    doctor_engine
    doctor_image
    doctor_port
    doctor_container
  else
    finding bad engine_silent "${OPT[engine]:-docker}" "$(doctor_refusal)"
  fi
  [[ -z ${OPT[json]:-} ]] || printf '[%s]\n' "$FINDINGS"
  ((FAULTS == 0)) || exit 1
}

doctor_refusal() { (find_engine) 2>&1 | tail -n 1 || true; }

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
    finding warn d_clock_bad "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  else
    finding good d_clock "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  fi
}

doctor_files() {
  local tracked output
  if [[ $ENV_FILE != - ]]; then
    if output=$( (load_configuration) 2>&1); then
      finding good d_env "$ENV_SHOWN"
    else
      finding bad d_env "$ENV_SHOWN: $(head -n 4 <<<"$output" | tr '\n' ' ')"
    fi
    [[ ! -r $ENV_FILE ]] || doctor_bytes
  fi
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

# Mode, line ends, byte order mark, quotes
doctor_bytes() {
  local mode
  mode=$(file_fact %a %Lp "$ENV_FILE")
  (((8#$mode & 8#077) == 0)) || finding warn wide_mode "$ENV_SHOWN" "$mode" "$ENV_SHOWN"
  ! grep -q $'\r' "$ENV_FILE" || finding warn d_crlf "$ENV_SHOWN" "$ENV_SHOWN"
  [[ $(head -c 3 "$ENV_FILE" | od -An -tx1 | tr -d ' \n') != efbbbf ]] ||
    finding warn d_bom "$ENV_SHOWN" "$ENV_SHOWN"
  ! grep -qE "^[^#]*=[[:space:]]*['\"]" "$ENV_FILE" || finding good d_quotes "$ENV_SHOWN"
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
  local port=${PORT:-${ENV[SERVER_PORT]:-}}
  port=${port:-$(sed -n 's/^[[:space:]]*SERVER_PORT=["'\'']\{0,1\}\([0-9][0-9]*\).*/\1/p' "$ENV_FILE" 2>/dev/null | tail -n 1)}
  port=${port:-$CONTAINER_PORT}
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
  local line level=good
  describe_named "$NAME"
  [[ $C_STATE != absent ]] || { finding warn absent "$NAME" && return; }
  [[ $C_STATE/$C_HEALTH == running/healthy ]] || level=bad
  finding "$level" d_container "$NAME" "$C_STATE" "$C_HEALTH"
  while IFS= read -r line; do
    [[ -z ${line//[[:space:]]/} ]] || finding warn d_probe "${line:0:300}"
  done < <(inspect '{{if .State.Health}}{{range .State.Health.Log}}{{.ExitCode}} {{.Output}}{{"\n"}}{{end}}{{end}}' "$FOUND" | grep -v '^0 *$' | tail -n 3)
  ((C_RESTARTS == 0)) || finding warn d_restarts "$C_RESTARTS"
  [[ $C_STATE == running ]] || return 0
  if "$ENGINE" exec "$FOUND" python -c 'import os, sys; sys.exit(not os.access("data", os.W_OK))' 2>/dev/null; then
    finding good d_volume "$C_DATA"
  else
    finding bad d_volume_bad "$C_DATA"
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
