"""The messages of this package, in Chinese and English. No I/O."""

import re

LANGUAGES = ("zh", "en")

MESSAGES: dict[str, tuple[str, str]] = {
    "setup_title": ("🔧 创建环境配置文件", "🔧 Create the configuration file"),
    "exists": ("文件 %s 已存在", "%s exists already"),
    "ask_overwrite": ("是否覆盖? (y/N): ", "Overwrite it? (y/N): "),
    "needs_yes": (
        "没有终端，无法询问: 加上 --yes 表示同意",
        "No terminal to ask on: add --yes to agree",
    ),
    "setup_intro": ("请输入配置信息:", "Please enter the configuration:"),
    "ask_base": (
        "DIFY API 地址 (例: https://api.dify.ai/v1): ",
        "Dify API address (e.g. https://api.dify.ai/v1): ",
    ),
    "setup_models": ("配置模型 (输入 'done' 完成):", "Models (enter 'done' to finish):"),
    "ask_model": ("模型名称 (或 'done'): ", "Model name (or 'done'): "),
    "ask_key": ("API Key (app-xxxxx): ", "API key (app-xxxxx): "),
    "ask_replace": (
        "模型 %s 已经有了，是否替换? (y/N): ",
        "Model %s already exists. Replace it? (y/N): ",
    ),
    "setup_done": ("✅ 配置文件已创建: %s", "✅ Configuration file created: %s"),
    "setup_carried": (
        "旧文件中的其他变量保留了: %s",
        "Other variables of the old file were kept: %s",
    ),
    "visible_input": (
        "标准输入不是终端: 输入的密钥会显示出来。请用 ssh -t，或用 --key-file",
        "Standard input is no terminal: keys you type will be visible. Use ssh -t, or --key-file",
    ),
    "bad_base": (
        "地址无效: 应为 http:// 或 https:// 开头，例如 https://api.dify.ai/v1，"
        "不含用户名、引号、$、? 和 #",
        "Not a valid address: it should begin with http:// or https://, e.g. "
        "https://api.dify.ai/v1, without user name, quotes, $, ? or #",
    ),
    "base_http": (
        "地址用的是 http，密钥会以明文传送到 %s",
        "The address is http: keys travel in the clear to %s",
    ),
    "base_no_v1": (
        "Dify 的 API 地址通常以 /v1 结尾",
        "Addresses of the Dify API usually end in /v1",
    ),
    "bad_model": (
        "模型名称无效: 不能为空，最多 128 个字符，不能有控制字符，必须是 UTF-8",
        "Not a valid model name: not empty, at most 128 characters, no control characters, UTF-8",
    ),
    "bad_key": (
        "API Key 无效: 不能为空，不能有空格或非 ASCII 字符",
        "Not a valid API key: not empty, no spaces, ASCII only",
    ),
    "key_prefix": (
        "Dify 的应用密钥通常以 app- 开头",
        "Keys of Dify apps usually begin with app-",
    ),
    "no_models": ("至少需要一个模型", "At least one model is needed"),
    "no_key_file": (
        "没有给出模型 %s 的密钥: --key-file 名称=文件",
        "No key for model %s: --key-file NAME=FILE",
    ),
    "key_file_form": (
        "--key-file 的写法是 名称=文件",
        "--key-file is written NAME=FILE",
    ),
    "duplicate_model": ("模型 %s 给了两次", "Model %s is given twice"),
    "input_ended": (
        "输入在完成之前结束了，没有写入任何文件",
        "The input ended before it was complete; nothing was written",
    ),
    "cannot_read": ("无法读取 %s", "Cannot read %s"),
    "not_utf8": (
        "%s 不是 UTF-8 编码的文本。请在编辑器里另存为 UTF-8",
        "%s is not UTF-8 text. Save it with the encoding UTF-8 in your editor",
    ),
    "bad_line": (
        "%s 第 %s 行无法理解（应为 名称=值，引号成对，只占一行）",
        "%s line %s cannot be understood (NAME=value, quotes in pairs, on one line)",
    ),
    "dollar_brace": (
        "%s 里的 ${...} 各种工具读法不同，请避免",
        "Tools differ in how they read the ${...} in %s: avoid it",
    ),
    "problems": ("配置有误 (%s):", "The configuration is wrong (%s):"),
    "value_line_break": ("%s 的值含有换行", "The value of %s contains a line break"),
    "value_too_long": (
        "%s 的值太长: Docker 的配置文件每行最多 64 KB。请减少模型或密钥的数量",
        "The value of %s is too long: a line of Docker's env files has 64 KB at most. "
        "Use fewer models or keys",
    ),
    "value_quotes": (
        "%s 的值含有各种工具读法不同的字符",
        "The value of %s contains characters that tools read differently",
    ),
    "check_good": (
        "✅ 配置正确: %s（%s 个模型）",
        "✅ The configuration is good: %s (%s models)",
    ),
    "local_only": (
        "没有设置 OPENDIFY_API_KEYS，所以只有本机 (127.0.0.1) 能访问。"
        "要对外开放: 设置密钥（推荐），或加 --bind 0.0.0.0（或设 PUBLISH_ADDRESS）",
        "OPENDIFY_API_KEYS is not set, so only this host (127.0.0.1) can connect. "
        "To open it: set keys (best), or add --bind 0.0.0.0 (or set PUBLISH_ADDRESS)",
    ),
    "bad_value": ("%s 的值无效: %s", "Not a valid value for %s: %s"),
    "file_problem": ("%s: %s", "%s: %s"),
    "file_good": ("配置文件 %s", "Configuration file %s"),
    "file_crlf": (
        '%s 是 Windows 换行 (CRLF)。修复: sed -i "s/\\r$//" %s',
        '%s has Windows line ends (CRLF). Fix: sed -i "s/\\r$//" %s',
    ),
    "file_bom": (
        '%s 开头有 BOM。修复: sed -i "1s/^\\xEF\\xBB\\xBF//" %s',
        '%s begins with a BOM. Fix: sed -i "1s/^\\xEF\\xBB\\xBF//" %s',
    ),
    "file_docker": (
        "%s: deploy.sh 和 Compose 没有问题，但 docker run --env-file 对这些变量的读法不同: %s",
        "%s: fine for deploy.sh and Compose, but docker run --env-file reads these differently: %s",
    ),
    "container_state": ("容器 %s: %s，%s", "Container %s: %s, %s"),
    "container_check": ("健康检查输出: %s", "Health check said: %s"),
    "container_restarts": (
        "容器重启过 %s 次。查看: ./deploy.sh logs",
        "The container was restarted %s times. See: ./deploy.sh logs",
    ),
    "container_unready": (
        "/readyz 是 %s: Dify 或存储有问题。查看: ./deploy.sh check --online",
        "/readyz says %s: Dify or the store is not well. See: ./deploy.sh check --online",
    ),
    "container_data": ("数据 %s 可写", "Data %s is writable"),
    "container_data_bad": (
        "数据 %s 容器写不进去。目录须属于 uid 1000: sudo chown -R 1000:1000 <目录>",
        "The container cannot write data %s. A folder must belong to uid 1000: "
        "sudo chown -R 1000:1000 <folder>",
    ),
    "online_good": ("ok", "ok"),
    "online_callers": (
        "没有询问，密钥由调用者自带",
        "not asked, callers bring the key",
    ),
    "online_refused": (
        "%s（Dify 拒绝了这个密钥: 请在 Dify 里核对）",
        "%s (Dify refuses this key: compare it with the one in Dify)",
    ),
    "online_status": ("%s（不像是 Dify 的 API）", "%s (this does not look like Dify's API)"),
    "online_unreachable": ("unreachable（连接不上: %s）", "unreachable (%s)"),
    "status_title": ("📊 检查服务状态", "📊 Service status"),
    "status_container": ("容器状态: %s", "Container: %s"),
    "status_health": ("健康状态: %s", "Health: %s"),
    "status_api": ("API 状态: %s", "API: %s"),
    "status_unready": (
        "Dify 与存储: 没有就绪（/readyz 是 %s）",
        "Dify and store: not ready (/readyz says %s)",
    ),
    "status_answer": ("试问一次: %s", "One question: %s"),
    "status_image": ("镜像: %s（版本 %s）", "Image: %s (version %s)"),
    "status_address": ("地址: %s", "Address: %s"),
    "status_since": ("运行自: %s，重启 %s 次", "Up since: %s, restarts: %s"),
    "status_models": ("可用模型:", "Models:"),
    "word_running": ("运行中", "running"),
    "word_stopped": ("已停止", "stopped"),
    "word_absent": ("未部署", "not deployed"),
    "word_loop": ("重启循环 (%s 次)", "restart loop (%s times)"),
    "word_healthy": ("健康", "healthy"),
    "word_unhealthy": ("不健康", "unhealthy"),
    "word_starting": ("启动中", "starting"),
    "word_unknown": ("未知", "unknown"),
    "word_ok": ("正常", "good"),
    "word_key": ("正常（需要密钥）", "good (needs a key)"),
    "word_bad": ("异常", "failing"),
    "word_old": (
        "未知（镜像比这个 deploy.sh 旧，问不了）",
        "unknown (the image is older than this deploy.sh and cannot be asked)",
    ),
}

# The application reports problems in English. Those that are likely during a first setup, in
# Chinese.
SENTENCES: tuple[tuple[str, str], ...] = (
    (
        r"DIFY_API_BASE is not set\..*",
        'DIFY_API_BASE 没有设置，例如 DIFY_API_BASE="https://api.dify.ai/v1"',
    ),
    (
        r"DIFY_API_BASE must be .*",
        "DIFY_API_BASE 不是有效的地址，例如 https://api.dify.ai/v1，不含用户名、密码、? 和 #",
    ),
    (
        r"MODEL_CONFIG is not set\..*",
        """MODEL_CONFIG 没有设置，例如 MODEL_CONFIG='{"model":"app-key"}'""",
    ),
    (r"MODEL_CONFIG is not valid JSON\..*", "MODEL_CONFIG 不是有效的 JSON 对象"),
    (r"MODEL_CONFIG must be a JSON object .*", "MODEL_CONFIG 应为 JSON 对象，至少有一个模型"),
    (r"MODEL_CONFIG: the name '(.*)' occurs twice", r"MODEL_CONFIG 里模型 \1 出现两次"),
    (r"MODEL_CONFIG: model '(.*)' has no 'key'", r"MODEL_CONFIG 里模型 \1 没有密钥"),
    (
        r"MODEL_CONFIG: model '(.*)' must have a key .*",
        r"MODEL_CONFIG 里模型 \1 没有密钥",
    ),
    (
        r"MODEL_CONFIG: model '(.*)', setting 'key' must be .*",
        r"MODEL_CONFIG 里模型 \1 没有密钥",
    ),
    (
        r"MODEL_CONFIG: model '(.*)', setting 'key' contains .*",
        r"MODEL_CONFIG 里模型 \1 的密钥有空格或非 ASCII 字符",
    ),
    (r"(\w+) and (\w+) are both set\..*", r"\1 和 \2 同时设置了，只能有一个"),
    (r"(\w+): (.*) cannot be read \(.*", r"\1 指向的文件 \2 读不到"),
    (r"(\w+): (.*) is empty\.", r"\1 指向的文件 \2 是空的"),
    (r"(\w+) must be a whole number from (\d+) to (\d+)\.", r"\1 应为 \2 到 \3 的整数"),
    (r"(\w+) must be one of ([\w, ]+)\.", r"\1 应为下列之一: \2"),
)


def message(language: str, key: str, *arguments: object) -> str:
    """The message with this key, formatted with the arguments."""
    return MESSAGES[key][LANGUAGES.index(language)] % arguments


def problem(language: str, sentence: str) -> str:
    """A problem reported by the application, translated if there is a translation."""
    if language == "zh":
        for pattern, chinese in SENTENCES:
            if match := re.fullmatch(pattern, sentence, re.DOTALL):
                return match.expand(chinese)
    return sentence
