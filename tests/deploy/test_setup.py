"""setup: the guide's questions, one safe file, and never a key on the screen or in ps."""

import json
import os
import stat
from pathlib import Path

import pytest

from .conftest import Host

ANSWERS = "https://your-production-dify.com/v1\nclaude-3-5-sonnet\napp-your-production-key-123\n"
MORE = "gpt-4-turbo\napp-another-production-key\ndone\n"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_guides_dialogue_and_file(host: Host) -> None:
    done = host.run("setup", stdin=ANSWERS + MORE)
    assert done.stdout.startswith(
        "🔧 创建环境配置文件\n请输入配置信息:\n"
        "DIFY API 地址 (例: https://api.dify.ai/v1): 配置模型 (输入 'done' 完成):\n"
        "模型名称 (或 'done'): API Key (app-xxxxx): 模型名称 (或 'done'): API Key (app-xxxxx): "
        "模型名称 (或 'done'): \n✅ 配置文件已创建: .env.production\n"
    )
    assert "key-123" not in done.stdout and "app-…-123" in done.stdout
    assert host.env_file.read_text() == (
        'DIFY_API_BASE="https://your-production-dify.com/v1"\n'
        'MODEL_CONFIG=\'{"claude-3-5-sonnet":"app-your-production-key-123",'
        '"gpt-4-turbo":"app-another-production-key"}\'\n'
        'SERVER_HOST="0.0.0.0"\nSERVER_PORT=5000\n'
    )
    assert mode(host.env_file) == 0o600
    assert [path.name for path in host.folder.iterdir() if path.name.startswith(".env")] == [
        ".env.production"
    ]


def test_without_a_terminal_it_warns_that_keys_are_visible(host: Host) -> None:
    assert "ssh -t" in host.run("setup", stdin=ANSWERS + "done\n").stderr


def test_the_end_of_the_input_counts_as_done(host: Host) -> None:
    host.run("setup", stdin=ANSWERS)
    assert "claude-3-5-sonnet" in host.env_file.read_text()


def test_english(host: Host) -> None:
    done = host.run("setup", "--lang", "en", stdin=ANSWERS)
    assert "Model name (or 'done'): " in done.stdout and "Configuration file created" in done.stdout


@pytest.mark.parametrize(
    "answers",
    [
        "",
        "done\n",
        "https://a.example/v1\n",
        "https://a.example/v1\ndone\n",
        "https://a.example/v1\nm\n",
        "https://a.example/v1\nm\n\n",
        "https://a.example/v1\nm\nkey with blank\n",
        "https://a.example/v1\nm\napp-kéy\n",
        "https://a.example/v1\n\napp-key\n",
        "https://a.example/v1\nbad\tname\napp-key\n",
        f"https://a.example/v1\n{'x' * 129}\napp-key\n",
        "https://a.example/v1\nm\napp-key1\nm\napp-key2\n",
        "ftp://a.example/v1\nm\napp-key\n",
        "https://user:pass@a.example/v1\nm\napp-key\n",
        "https://a.example/v1?x=1\nm\napp-key\n",
        "https://a.example/v1#x\nm\napp-key\n",
        "https://a.example/$HOME\nm\napp-key\n",
        'https://a.example/"v1\nm\napp-key\n',
        "a.example\nm\napp-key\n",
        "http://:8080/v1\nm\napp-key\n",
    ],
)
def test_a_wrong_answer_is_65_and_no_file(host: Host, answers: str) -> None:
    done = host.run("setup", stdin=answers, code=65)
    assert "❌" in done.stderr
    assert not [path for path in host.folder.iterdir() if path.name.startswith(".env")]


def test_a_last_slash_is_cut_and_odd_addresses_are_named(host: Host) -> None:
    done = host.run("setup", stdin="http://10.0.0.7:8080/\nm\nkey-of-some-kind\n")
    assert 'DIFY_API_BASE="http://10.0.0.7:8080"\n' in host.env_file.read_text()
    assert "/v1" in done.stderr and "明文" in done.stderr and "app-" in done.stderr


def test_an_existing_file_is_kept_unless_agreed(host: Host) -> None:
    host.configure("OLD=1\nLOG_LEVEL=debug\nSERVER_PORT=nonsense")
    done = host.run("setup", stdin="y\n" + ANSWERS, code=1)
    assert "已存在" in done.stderr and "--yes" in done.stderr
    assert host.env_file.read_text().startswith("OLD=1")
    done = host.run("setup", "--yes", stdin=ANSWERS)
    backup = host.folder / ".env.production.bak"
    assert backup.read_text().startswith("OLD=1") and mode(backup) == 0o600


def test_setting_up_anew_keeps_what_it_does_not_ask_for(host: Host) -> None:
    """Else a new key for Dify would take the callers' keys away, and open the door."""
    kept = "export LOG_LEVEL=debug\nOPENDIFY_API_KEYS='a, b'\n"
    host.configure(
        "\ufeffDIFY_API_BASE=x\r\nSERVER_PORT='5100'\r\nMODEL_CONFIG_FILE=models.json\n"
        f"# a word\n#NOT=this\nnonsense\n{kept}SERVER_HOST=127.0.0.1"
    )
    done = host.run("setup", "--yes", stdin=ANSWERS)
    lines = host.env_file.read_text().splitlines(keepends=True)
    assert "".join(lines[2:]) == f'SERVER_HOST="0.0.0.0"\nSERVER_PORT=5100\n{kept}'
    assert "LOG_LEVEL OPENDIFY_API_KEYS" in done.stdout and "a, b" not in done.stdout
    host.run("setup", "--yes", "--port", "5200", stdin=ANSWERS)
    assert f"SERVER_PORT=5200\n{kept}" in host.env_file.read_text()


def test_a_link_is_not_followed(host: Host) -> None:
    target = host.folder / "elsewhere"
    host.env_file.symlink_to(target)
    host.run("setup", "--yes", stdin=ANSWERS, code=73)
    assert not target.exists()


def test_a_folder_that_cannot_be_written(host: Host) -> None:
    done = host.run("setup", "--env-file", "/proc/.env", stdin=ANSWERS, code=73)
    assert "/proc/.env" in done.stderr


def test_keys_from_files(host: Host) -> None:
    (host.folder / "k=1").write_text("app-key-one\n")
    (host.folder / "k2").write_text("app-key-two")
    done = host.run(
        *("setup", "--api-base", "https://a.example/v1", "--model", "a=b", "--model", "c"),
        *("--key-file", "a=b=k2", "--key-file", "c=k2", "--port", "05001"),
    )
    text = host.env_file.read_text()
    assert 'MODEL_CONFIG=\'{"a=b":"app-key-two","c":"app-key-two"}\'' in text
    assert "SERVER_PORT=5001" in text and "?" not in done.stderr
    host.run("setup", "--yes", "--api-base", "https://a.example/v1", "--model", "c", code=64)


def test_there_is_no_option_for_a_key(host: Host) -> None:
    host.run("setup", "--key", "app-x", code=64)


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_models_from_json(host: Host, source: str) -> None:
    models = {
        "模型 一": "app-$1'\"\\`#",
        "b": {"key": "app-b", "inputs": {"n": [1, 2.5e3, None, True]}},
    }
    text = json.dumps(models, ensure_ascii=False, indent=2)
    (host.folder / "m.json").write_text(text)
    name = "m.json" if source == "file" else "-"
    host.run("setup", "--api-base", "https://a.example/v1", "--models-file", name, stdin=text)
    line = host.env_file.read_text().splitlines()[1]
    value = line.removeprefix("MODEL_CONFIG='").removesuffix("'")
    assert json.loads(value) == models
    assert value.isascii() and not set(value) & set("'$`#")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '"x"',
        "{",
        '{"a":"app-k"',
        '{"a":"app-k",}',
        '{"a":"app-k"} x',
        '{"a":""}',
        '{"a":1}',
        '{"a":{}}',
        '{"a":{"key":""}}',
        '{"a":"app-k","a":"app-l"}',
        '{"a":"app-k\n"}',
        '{"a":"\\u0000"}',
        '{"a":"\\ud800"}',
        '{"a":"\\x"}',
        "{'a':'app-k'}",
        '{"a":"app-k" "b":"app-l"}',
        '{"a" "app-k"}',
        '{"a":[01]}',
        "[" * 60 + "]" * 60,
    ],
)
def test_json_that_is_not_a_set_of_models(host: Host, text: str) -> None:
    done = host.run(
        "setup", "--api-base", "https://a.example/v1", "--models-file", "-", stdin=text, code=65
    )
    assert "app-k" not in done.stderr.replace("app-key", "") and not host.env_file.exists()


def test_a_file_that_is_too_open_is_named_and_one_of_another_is_refused(host: Host) -> None:
    host.configure().chmod(0o644)
    assert "chmod 600" in host.run("check").stderr
    host.run("check", "--yes")
    assert mode(host.env_file) == 0o600
    if os.geteuid() == 0:
        os.chown(host.env_file, 12345, 12345)
        assert "chown" in host.run("check", code=77).stderr
