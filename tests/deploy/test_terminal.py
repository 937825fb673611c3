"""deploy.sh on a terminal: hidden keys, questions asked again, and Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager

import pexpect
import pytest

from .conftest import Host

BASE, MODEL, KEY = "v1\\): ", "'done'\\): ", "xxxxx\\): "


@contextmanager
def terminal(host: Host, *words: str) -> Iterator[pexpect.spawn]:
    """deploy.sh under a shell of its own, which tells afterwards whether echo is on."""
    shell = pexpect.spawn(
        "bash",
        ["--norc"],
        cwd=str(host.folder),
        env=host.environment,
        timeout=20,
        encoding="utf-8",
    )
    shell.setecho(True)
    shell.sendline("PS1='$?> '")
    shell.expect_exact("$?> '")
    shell.expect_exact("0> ")
    shell.sendline(" ".join(["./deploy.sh", *words]))
    shell.expect("\n")
    try:
        yield shell
    finally:
        shell.close(force=True)


def ended(shell: pexpect.spawn, code: int) -> None:
    shell.expect_exact(f"{code}> ")
    shell.sendline("stty -a | tr ' ;' '\\n\\n' | grep -x -e echo -e -echo; echo over")
    shell.expect(r"\n(-?echo)\r\nover")
    assert shell.match and shell.match[1] == "echo"


def test_keys_are_not_shown(host: Host) -> None:
    with terminal(host, "setup") as shell:
        shell.expect(BASE)
        shell.sendline("https://a.example/v1")
        shell.expect(MODEL)
        shell.sendline("gpt-4")
        shell.expect(KEY)
        shell.sendline("app-very-secret-1234")
        shell.expect(MODEL)
        assert "very-secret" not in shell.before
        shell.sendline("done")
        shell.expect_exact("配置文件已创建: .env.production")
        assert "very-secret" not in shell.before
        ended(shell, 0)
    assert "app-very-secret-1234" in host.env_file.read_text()


def test_a_wrong_answer_is_asked_again(host: Host) -> None:
    with terminal(host, "setup") as shell:
        for answer in ("nonsense", "https://a.example/v1"):
            shell.expect(BASE)
            shell.sendline(answer)
        for answer in ("done", " ", "m"):
            shell.expect(MODEL)
            shell.sendline(answer)
        for answer in ("", "with blank", "app-first-key"):
            shell.expect(KEY)
            shell.sendline(answer)
        shell.expect(MODEL)
        shell.sendline("m")
        shell.expect_exact("是否替换? (y/N): ")
        shell.sendline("y")
        shell.expect(KEY)
        shell.sendline("app-second-key")
        shell.expect(MODEL)
        shell.sendline("done")
        ended(shell, 0)
    assert '{"m":"app-second-key"}' in host.env_file.read_text()


@pytest.mark.parametrize("prompt", [BASE, MODEL, KEY])
def test_ctrl_c_leaves_no_file_and_echo_on(host: Host, prompt: str) -> None:
    answers = {BASE: "https://a.example/v1", MODEL: "m"}
    with terminal(host, "setup") as shell:
        for each in (BASE, MODEL, KEY):
            shell.expect(each)
            if each == prompt:
                break
            shell.sendline(answers[each])
        shell.sendintr()
        ended(shell, 130)
    assert not [path for path in host.folder.iterdir() if path.name.startswith(".env")]


def test_overwriting_is_asked_for(host: Host) -> None:
    host.configure("OLD=1\n")
    with terminal(host, "setup") as shell:
        shell.expect_exact("是否覆盖? (y/N): ")
        shell.sendline("")
        ended(shell, 1)
    assert host.env_file.read_text() == "OLD=1\n"
    with terminal(host, "setup") as shell:
        shell.expect_exact("是否覆盖? (y/N): ")
        shell.sendline("y")
        shell.expect(BASE)
        shell.sendintr()
        ended(shell, 130)
    assert host.env_file.read_text() == "OLD=1\n"


def test_removing_is_asked_for(host: Host) -> None:
    host.deploy()
    with terminal(host, "remove") as shell:
        shell.expect_exact("(y/N): ")
        shell.sendline("n")
        ended(shell, 1)
    assert set(host.running()) == {"opendify"}


def test_logs_follow_on_a_terminal_and_ctrl_c_is_no_error(host: Host) -> None:
    host.deploy()
    host.change(log_waits=True)
    with terminal(host, "logs") as shell:
        shell.expect_exact("follow=True")
        shell.sendintr()
        ended(shell, 0)


def test_ctrl_c_during_a_deploy_restores_the_service(host: Host) -> None:
    host.deploy()
    host.new_image(service="starting")
    with terminal(host, "deploy") as shell:
        shell.expect_exact("停止 opendify")
        shell.sendintr()
        shell.expect_exact("已恢复原状")
        ended(shell, 130)
    assert set(host.running()) == {"opendify"} and len(host.containers()) == 1
