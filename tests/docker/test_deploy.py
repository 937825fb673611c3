"""deploy.sh on a real engine, against a Dify that containers can reach."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator

import httpx
import pexpect
import pytest

from tests.support.fake_dify import Chat, FakeDify, refused, streamed
from tests.support.waiting import wait_for

from .conftest import Server, Watch, build, docker, fact

pytestmark = pytest.mark.docker
GUIDE = """
docker load < opendify.tar.gz
./deploy.sh setup
./deploy.sh deploy
./deploy.sh status
./deploy.sh update
./deploy.sh stop
"""
PROMPTS = ("/v1): ", "'done'): ", "xxxxx): ", "'done'): ")


@pytest.fixture
def bad(quick: str) -> str:
    build("opendify:bad", 'FROM opendify:quick\nLABEL version=bad\nCMD ["false"]\n')
    return "opendify:bad"


def deploy(server: Server, dify: FakeDify, *words: str) -> None:
    server.set_up(dify.base)
    server.run("deploy", "--image", "opendify:quick", *words)


@pytest.fixture
def uploaded(server: Server, image: str) -> Iterator[None]:
    """opendify.tar.gz lies beside deploy.sh, and the engine knows no opendify:latest."""
    server.run("export")
    docker("rmi", "-f", "opendify:latest")
    yield
    docker("tag", image, "opendify:latest")


def upload_next_version(server: Server, image: str) -> None:
    build("opendify:latest", f"FROM {image}\nLABEL org.opencontainers.image.version=9.9\n")
    server.run("export")
    docker("tag", image, "opendify:latest")


def serves_the_guides_model() -> bool:
    answer = httpx.get("http://127.0.0.1:5000/v1/models", timeout=10, trust_env=False)
    return [model["id"] for model in answer.json()["data"]] == ["claude-3-5-sonnet"]


@pytest.mark.usefixtures("uploaded")
def test_the_guides_six_commands_without_a_terminal(
    server: Server, image: str, dify: FakeDify
) -> None:
    answers = f"{dify.base}\nclaude-3-5-sonnet\napp-your-production-key-123\ndone\n"
    for line in GUIDE.strip().splitlines():
        if line.endswith("update"):
            upload_next_version(server, image)
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=server.folder,
            input=answers if line.endswith("setup") else "",
            capture_output=True,
            text=True,
            start_new_session=True,  # nor is there one to be found: as over ssh
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert "key-123" not in done.stdout + done.stderr
        if line.endswith(("deploy", "status", "update")):
            assert serves_the_guides_model()
            assert "  - claude-3-5-sonnet" in done.stdout and "健康状态: 健康" in done.stdout
        assert ("9.9" in done.stdout) == line.endswith("update")
    assert fact("opendify", "{{.State.Status}}") == "exited"
    server.run("status", code=3)


@pytest.mark.usefixtures("uploaded")
def test_the_guides_six_commands_typed_at_a_terminal(server: Server, dify: FakeDify) -> None:
    answers = [dify.base, "claude-3-5-sonnet", "app-your-production-key-123", "done"]
    shell = pexpect.spawn(
        "bash",
        ["--norc"],
        cwd=str(server.folder),
        env=os.environ | {"LC_ALL": "C.UTF-8", "PS1": "$?> "},
        timeout=120,
        encoding="utf-8",
    )
    try:
        shell.expect_exact("0> ")
        for line in GUIDE.strip().splitlines():
            shell.sendline(line)
            for prompt in PROMPTS if line.endswith("setup") else ():
                shell.expect_exact(prompt)
                shell.sendline(answers.pop(0))
            shell.expect(r"\n(?:\x1b\S+h)?(\d+)> ")
            assert shell.match[1] == "0", (line, shell.before)
            assert "key-123" not in shell.before
            if line.endswith(("deploy", "status", "update")):
                assert serves_the_guides_model()
        shell.sendline("./deploy.sh status")
        shell.expect(r"\n(?:\x1b\S+h)?3> ")
    finally:
        shell.close(force=True)
    assert not answers


def test_it_serves_a_person_who_is_not_root(server: Server, quick: str, dify: FakeDify) -> None:
    deploy(server, dify)
    assert server.chat("one") == "Hello"
    uids = docker("exec", "opendify", "sh", "-c", "cat /proc/[0-9]*/status | grep ^Uid")
    assert {line.split()[1] for line in uids.splitlines()} == {"1000"}
    code = "open('/app/x', 'w')"
    docker("exec", "opendify", "python", "-c", code, code=1)


def test_data_survives_an_update_and_a_rollback(server: Server, quick: str, dify: FakeDify) -> None:
    deploy(server, dify)
    server.chat("one")
    before = fact("opendify", "{{.Id}}")
    build("opendify:quick", "FROM opendify:quick\nLABEL org.opencontainers.image.version=9.9\n")
    done = server.run("update")
    assert "9.9" in done.stdout
    assert fact("opendify", "{{.Id}}") != before and fact("opendify-prev", "{{.Id}}") == before
    assert server.mappings() == 1
    server.run("rollback")
    assert fact("opendify", "{{.Id}}") == before and server.mappings() == 1


def test_staging_beside_production(server: Server, quick: str, dify: FakeDify) -> None:
    deploy(server, dify)
    server.chat("one")
    other = Server(server.folder)
    server.set_up(dify.base, ".env.staging", other.port)
    server.run("deploy", "--env-file", ".env.staging", "--image", "opendify:quick")
    assert (server.mappings(), other.mappings()) == (1, 0)
    listed = server.run("status", "--all").stdout
    assert "opendify-staging" in listed
    server.run("stop", "--env-file", ".env.staging")
    assert server.models() == 200


def test_a_bad_image_never_interrupts_the_old(server: Server, bad: str, dify: FakeDify) -> None:
    deploy(server, dify)
    with Watch(server) as watch:
        done = server.run("deploy", "--image", bad, code=1)
    assert watch.bad == 0 and watch.good > 5
    assert "什么都没有改变" in done.stderr
    named = docker("ps", "-a", "--filter", "label=opendify.managed=1", "--format", "{{.Names}}")
    assert named == "opendify"


def test_an_image_that_is_good_only_on_trial_is_rolled_back(
    server: Server, quick: str, dify: FakeDify
) -> None:
    deploy(server, dify)
    # the trial has a tmpfs at /app/data, the service the volume, on which this one ends
    code = "import sys; sys.exit('tmpfs /app/data' not in open('/proc/mounts').read())"
    build(
        "opendify:late",
        f'FROM opendify:quick\nCMD ["sh", "-c", "python -c \\"{code}\\" && '
        'exec gunicorn --config gunicorn_config.py main:app"]\n',
    )
    done = server.run("deploy", "--image", "opendify:late", code=124)
    assert "已回滚" in done.stderr
    assert server.models() == 200
    assert fact("opendify", "{{.Config.Image}}") == "opendify:quick"


@pytest.fixture
def slow(quick: str) -> str:
    """Healthy as a trial, which has no volume, and not yet so as a service."""
    check = "HEALTHCHECK --interval=1s --start-period=5m CMD grep -q 'tmpfs /app/data' /proc/mounts"
    build("opendify:slow", f"FROM {quick}\n{check}\n")
    return "opendify:slow"


@pytest.mark.parametrize("when", ["the old stops", "the new starts"])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_deploy_that_is_cut_short(
    server: Server, slow: str, dify: FakeDify, end: signal.Signals, when: str
) -> None:
    """Ctrl-C puts the service back itself; after a kill, the next call of deploy.sh does."""
    deploy(server, dify)
    with subprocess.Popen(
        ["./deploy.sh", "deploy", "--image", slow],
        cwd=server.folder,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        while "停止 opendify" not in process.stdout.readline():
            assert process.poll() is None
        while when == "the new starts" and docker("ps", "-q", "--filter", f"ancestor={slow}") == "":
            assert process.poll() is None
        os.killpg(process.pid, end)
        process.stdout.read()
    if end == signal.SIGINT:
        assert process.returncode == 130
    else:
        server.run("start")
    # The engine may still restart a container that was being stopped when deploy.sh was killed.
    wait_for(lambda: answers(server), 90)
    assert fact("opendify", "{{.Config.Image}}") == "opendify:quick"
    assert docker("ps", "-a", "--filter", "label=opendify.managed=1", "-q").count("\n") == 0


def answers(server: Server) -> bool:
    try:
        return server.models() == 200
    except httpx.TransportError:
        return False


def test_without_keys_only_this_host_can_connect(
    server: Server, quick: str, dify: FakeDify
) -> None:
    deploy(server, dify)
    assert docker("port", "opendify", "5000/tcp") == f"127.0.0.1:{server.port}"
    assert server.models() == 200
    path = server.folder / ".env.production"
    path.write_text(path.read_text() + "OPENDIFY_API_KEYS=the-key-of-a-caller\n")
    done = server.run("deploy")
    assert f"0.0.0.0:{server.port}" in docker("port", "opendify", "5000/tcp")
    assert server.models() == 401 and "  - tiny" in done.stdout


def test_a_port_that_is_taken(server: Server, quick: str, dify: FakeDify) -> None:
    server.set_up(dify.base)
    with socket.create_server(("127.0.0.1", server.port)):
        done = server.run("deploy", "--image", "opendify:quick", code=1)
    assert str(server.port) in done.stderr
    assert docker("ps", "-aq", "--filter", "label=opendify.managed=1") == ""


def test_a_stop_lets_a_stream_end(server: Server, quick: str, dify: FakeDify) -> None:
    chat = Chat()
    words = [chat.text(f"w{number} ") for number in range(8)]
    steps = [part for word in words for part in (word, 0.5)]
    deploy(server, dify)
    dify.answers.append(streamed(*steps, chat.end()))
    received: list[str] = []
    begun = threading.Event()

    def listen() -> None:
        body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as answer:
            for line in answer.iter_lines():
                received.append(line)
                if "w0" in line:
                    begun.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert begun.wait(30)
    server.run("stop")
    listener.join(30)
    assert [line for line in received if line][-1] == "data: [DONE]"
    assert "w7" in "".join(received) and "error" not in "".join(received)
    assert fact("opendify", "{{.State.ExitCode}}") == "0"


def test_backup_and_restore(server: Server, quick: str, dify: FakeDify) -> None:
    deploy(server, dify)
    server.chat("one")
    server.run("backup", "--out", "b.tar.gz")
    server.chat("two")
    assert server.mappings() == 2
    server.run("restore", "b.tar.gz")
    assert server.mappings() == 1
    server.chat("three")
    assert server.mappings() == 2
    assert docker("exec", "opendify", "stat", "-c", "%u %a", "data") == "1000 700"
    owners = docker("exec", "opendify", "find", "data", "-type", "f", "-not", "-uid", "1000")
    assert owners == ""


def test_data_in_a_folder_of_the_host(server: Server, quick: str, dify: FakeDify) -> None:
    folder = server.folder / "data"
    folder.mkdir()
    deploy(server, dify, "--data", str(folder))
    assert "1000" in server.run("doctor", code=1).stdout
    docker("run", "--rm", "--user", "0", "-v", f"{folder}:/d", quick, "chown", "1000:1000", "/d")
    assert "❌" not in server.run("doctor").stdout
    server.chat("one")
    server.run("backup", "--out", "b.tar.gz")
    server.run("restore", "b.tar.gz")
    assert server.mappings() == 1


def test_on_the_hosts_own_network(server: Server, quick: str, dify: FakeDify) -> None:
    deploy(server, dify, "--network", "host", "--bind", "127.0.0.1")
    assert server.chat("one") == "Hello"


def test_check_online(server: Server, image: str, dify: FakeDify) -> None:
    dify.tells_of_its_app, dify.answer = True, lambda _: refused(200, {"name": "app"})
    server.set_up(dify.base)
    assert "tiny: ok" in server.run("check", "--online").stdout
    dify.answer = lambda _: refused(401, {"code": "unauthorized"})
    assert "tiny: 401" in server.run("check", "--online", code=65).stdout
    server.set_up("http://127.0.0.1:9/v1")
    server.run("check", "--online", code=1)


def test_a_wrong_setting_is_named_before_anything_runs(
    server: Server, quick: str, dify: FakeDify
) -> None:
    server.set_up(dify.base)
    path = server.folder / ".env.production"
    path.write_text(path.read_text() + "GUNICORN_THREADS=many\nLOG_LEVEL=loud\n")
    done = server.run("deploy", "--image", "opendify:quick", code=65)
    assert "GUNICORN_THREADS" in done.stderr and "LOG_LEVEL" in done.stderr
    assert docker("ps", "-aq", "--filter", "label=opendify.managed=1") == ""


def test_an_encrypted_file_is_never_written_in_the_clear(
    server: Server, quick: str, dify: FakeDify
) -> None:
    server.set_up(dify.base)
    path = server.folder / ".env.production"
    text = path.read_text()
    path.unlink()
    server.run("deploy", "--env-file", "-", "--image", "opendify:quick", stdin=text)
    assert server.models() == 200
    assert [entry.name for entry in server.folder.iterdir()] == ["deploy.sh"]


def test_every_worker_gets_its_threads_under_the_pids_limit(
    server: Server, quick: str, dify: FakeDify
) -> None:
    deploy(server, dify)
    chat = Chat()
    dify.answer = lambda _: streamed(chat.text("a"), 3.0, chat.end())
    codes: list[int] = []

    def ask() -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
        url = f"{server.url}/v1/chat/completions"
        codes.append(httpx.post(url, json=body, timeout=60, trust_env=False).status_code)

    crowd = [threading.Thread(target=ask) for _ in range(150)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join(90)
    assert codes == [200] * 150
