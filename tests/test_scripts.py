"""The scripts that people start, run for real on a copy of the project."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import tomllib
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_port
from tests.support.programs import packages
from tests.support.service import ROOT

ENDS_WITHIN = 30.0  # seconds; only a bound for what hangs
LEFT_OUT = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "data", "logs", "tests")
PROGRAMS = ("bash", "cat", "cksum", "dirname", "env", "grep", "sleep")


@dataclass
class Run:
    """A script under way, in a session of its own; ``log`` is the file with all its output."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str, seconds: float = ENDS_WITHIN) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.output(), re.MULTILINE)):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.output()}"
            time.sleep(0.05)
        return found

    def demo(self) -> str:
        return self.wait_for(r"a demo Dify stands in for yours, at (http://\S+/v1)\.")[1]


def copy_of_the_project(folder: Path) -> Path:
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return folder


def add_quick_venv(folder: Path) -> None:
    """A .venv as the scripts leave it, which borrows its packages from that of the tests."""
    venv.create(folder / ".venv", symlinks=True, with_pip=False)
    (site_packages,) = folder.glob(".venv/lib/python3*/site-packages")
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    gunicorn = folder / ".venv/bin/gunicorn"
    python = folder / ".venv/bin/python"
    gunicorn.write_text(f"#!{python}\nfrom gunicorn.app.wsgiapp import run\nrun()\n")
    gunicorn.chmod(0o755)
    stamp = "source scripts/venv.sh; describe_requirements >.venv/.installed-requirements.txt"
    subprocess.run(["bash", "-c", stamp], cwd=folder, check=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_of_the_project(tmp_path_factory.mktemp("clone") / "opendify")
    add_quick_venv(folder)
    return folder


def plain_environment(**variables: str) -> dict[str, str]:
    """What a newcomer's shell has; ways to the package index are those of this machine."""
    kept = {"PATH", "HOME", "LANG", "SSL_CERT_FILE"}
    own = {k: v for k, v in os.environ.items() if k in kept or k.startswith("PIP_")}
    bare_path = os.pathsep.join(p for p in own["PATH"].split(os.pathsep) if ".venv" not in p)
    return {**own, "PATH": bare_path, **variables}


@contextmanager
def started(folder: Path, variables: Mapping[str, str], port: int | None = None) -> Iterator[Run]:
    """``./start_development.sh``; what is left of its session is killed at the end."""
    port = port or free_port()
    log = folder / f"run-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["./start_development.sh"],
            cwd=folder,
            env=plain_environment(SERVER_PORT=str(port), **variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Run(process, port, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a demo that outlived the proxy, too
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def eventually(is_so: Callable[[], bool], seconds: float = ENDS_WITHIN) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def paste(run: Run, seconds: float = ENDS_WITHIN) -> str:
    """The output of the line that the script says to try, pasted into a shell."""
    line = run.wait_for(r"^curl -N .*$", seconds)[0]
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=True)
    return done.stdout.decode()


@pytest.mark.slow
def test_a_fresh_clone_streams_an_answer_after_one_command(tmp_path: Path) -> None:
    folder = copy_of_the_project(tmp_path / "opendify")
    with started(folder, {}) as run:
        stream = paste(run, seconds=300)
        demo = run.demo()
        os.killpg(run.process.pid, signal.SIGINT)
        run.process.wait(ENDS_WITHIN)
    assert "chat.completion.chunk" in stream
    assert stream.endswith("data: [DONE]\n\n")
    assert "Making .venv" in run.output()
    assert eventually(lambda: not answers(f"{demo}/"))
    with started(folder, {}) as again:
        again.wait_for(r"^curl -N ")
    assert "Installing" not in again.output()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_demo_ends_with_the_proxy_however_that_ends(
    project: Path, ending: signal.Signals
) -> None:
    with started(project, {}) as run:
        demo = run.demo()
        run.wait_for(r"^curl -N ")
        assert answers(f"{demo}/")
        if ending is signal.SIGINT:
            os.killpg(run.process.pid, ending)  # as a terminal does on Ctrl-C
        else:
            run.process.send_signal(ending)
        run.process.wait(ENDS_WITHIN)
        assert eventually(lambda: not answers(f"{demo}/"))


def own_dify(**variables: str) -> dict[str, str]:
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    return {"DIFY_API_BASE": nowhere, "MODEL_CONFIG": '{"mine":"app-mine"}', **variables}


SLOW_START = """
import threading
import time

start = threading.Thread.start


def start_slowly(thread):
    start(thread)
    if thread.name.startswith("ThreadPoolExecutor"):
        print("main thread is busy", flush=True)
        time.sleep(2)


threading.Thread.start = start_slowly


def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


def test_ctrl_c_ends_a_worker_that_is_just_giving_a_request_to_a_thread(tmp_path: Path) -> None:
    """Gunicorn's own handler takes the lock that its main thread then holds, and hangs."""
    folder = copy_of_the_project(tmp_path / "opendify")
    add_quick_venv(folder)
    (folder / "main.py").write_text(SLOW_START)
    with started(folder, own_dify()) as run:
        run.wait_for("main thread is busy")
        os.killpg(run.process.pid, signal.SIGINT)
        run.process.wait(15)  # a worker that hangs is killed after 30 s
    assert "Worker exiting" in run.output()


def test_the_demo_ends_with_a_proxy_that_cannot_boot(tmp_path: Path) -> None:
    folder = copy_of_the_project(tmp_path / "opendify")
    add_quick_venv(folder)
    (folder / "main.py").write_text("import no_such_module\n")
    with started(folder, {"GUNICORN_RELOAD": "false"}) as run:
        run.process.wait(ENDS_WITHIN)
    demo = run.demo()
    assert run.process.returncode != 0
    assert "no_such_module" in run.output()
    assert eventually(lambda: not answers(f"{demo}/"))


def test_the_line_to_try_streams_a_remembered_conversation(project: Path) -> None:
    with started(project, {}) as run:
        assert paste(run).endswith("data: [DONE]\n\n")
        chat = {"X-OpenWebUI-Chat-Id": "one", "X-OpenWebUI-User-Id": "ada"}
        url = f"http://127.0.0.1:{run.port}/v1/chat/completions"
        messages: list[dict[str, str]] = []
        for question in ("My name is Ada", "And now?"):
            messages.append({"role": "user", "content": question})
            body = {"model": "demo-chat", "messages": messages}
            answer = httpx.post(url, json=body, headers=chat, trust_env=False, timeout=30)
            messages.append(answer.json()["choices"][0]["message"])
    assert "turn 1" in messages[1]["content"]
    assert 'turn 2 of this conversation. It began with: "My name is Ada"' in messages[3]["content"]


def test_a_proxy_of_the_machine_does_not_stand_before_the_demo(project: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with started(project, {"http_proxy": nowhere, "HTTP_PROXY": nowhere}) as run:
        assert "--noproxy" in run.wait_for(r"^curl -N .*$")[0]
        assert paste(run).endswith("data: [DONE]\n\n")


def test_changed_code_is_loaded_by_itself(project: Path) -> None:
    with started(project, {}) as run:
        run.wait_for(r"^curl -N ")

        def is_reloaded() -> bool:
            """Touches it again each time: the reloader may not have seen the file before."""
            (project / "opendify/__init__.py").touch()
            return "Worker reloading: " in run.output()

        assert eventually(is_reloaded)
        assert eventually(lambda: answers(f"http://127.0.0.1:{run.port}/v1/models"))


def test_what_the_user_set_wins_over_the_defaults_of_development(project: Path) -> None:
    chosen = {"ENVIRONMENT": "production", "LOG_LEVEL": "info", "GUNICORN_WORKERS": "2"}
    with started(project, chosen) as run:
        run.wait_for(r"^curl -N ")
        run.wait_for(r"(?s)Booting worker.*Booting worker")  # the first may answer before that
    assert "[DEBUG]" not in run.output()
    assert "Reloader is on" not in run.output()
    assert run.output().count("Booting worker") == 2


def test_a_busy_port_is_named_with_its_remedy(project: Path) -> None:
    with started(project, {}) as first:
        first.wait_for(r"^curl -N ")
        with started(project, {}, first.port) as second:
            second.process.wait(ENDS_WITHIN)
    assert second.process.returncode == 1
    assert f"Port {first.port} is in use" in second.output()
    assert f"SERVER_PORT={first.port + 1}" in second.output()
    assert "demo Dify" not in second.output()


def test_a_dify_of_ones_own_in_the_environment_is_used(project: Path) -> None:
    with started(project, own_dify()) as run:
        assert '"model": "mine"' in run.wait_for(r"^curl -N .*$")[0]
    assert "demo Dify" not in run.output()


def test_a_dify_of_ones_own_in_the_env_file_is_used_and_the_file_not_run(tmp_path: Path) -> None:
    folder = copy_of_the_project(tmp_path / "opendify")
    add_quick_venv(folder)
    lines = [f"{name}='{value}'" for name, value in own_dify().items()]
    (folder / ".env").write_text("\n".join([*lines, "OTHER=$(touch was-run)", "LOG_LEVEL=info"]))
    with started(folder, {}) as run:
        assert '"model": "mine"' in run.wait_for(r"^curl -N .*$")[0]
    assert "demo Dify" not in run.output()
    assert "[DEBUG]" not in run.output()
    assert not (folder / "was-run").exists()


def test_models_with_addresses_of_their_own_need_no_demo(project: Path) -> None:
    base = own_dify()["DIFY_API_BASE"]
    config = f'{{"mine":{{"key":"app-mine","base":"{base}"}}}}'
    with started(project, {"MODEL_CONFIG": config}) as run:
        assert '"model": "mine"' in run.wait_for(r"^curl -N .*$")[0]
    assert "demo Dify" not in run.output()


def test_wrong_settings_are_named_before_anything_starts(project: Path) -> None:
    with started(project, own_dify(DIFY_API_BASE="somewhere")) as run:
        run.process.wait(ENDS_WITHIN)
    assert run.process.returncode == 78
    assert "DIFY_API_BASE" in run.output()
    assert "gunicorn" not in run.output()


class KeyWanted(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, *arguments: object) -> None:
        pass


def welcome(port: int, process: int) -> str:
    command = [sys.executable, "scripts/welcome.py", f"127.0.0.1:{port}", str(process)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout + done.stderr


def test_the_line_to_try_has_a_placeholder_for_the_key_where_one_is_required() -> None:
    with HTTPServer(("127.0.0.1", 0), KeyWanted) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        shown = welcome(server.server_port, os.getpid())
        thread.join()
    assert "-H 'Authorization: Bearer YOUR-KEY'" in shown
    assert '"model": "YOUR-MODEL"' in shown


def test_nothing_is_shown_for_a_proxy_that_never_came() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert welcome(free_port(), gone.pid) == ""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with the scripts, an empty .venv, and ``bin`` as the only PATH."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "run_tests.sh", tmp_path)
    (tmp_path / "tests").mkdir()
    for name in ("programs.sh", "programs.txt"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    (tmp_path / "bin").mkdir()
    for program in PROGRAMS:
        found = shutil.which(program)
        assert found is not None
        (tmp_path / "bin" / program).symlink_to(found)
    (tmp_path / "requirements.txt").write_text("one\n")
    (tmp_path / "requirements-dev.txt").write_text("two\n")
    return tmp_path


def put(folder: Path, name: str, program: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{program}\n")
    path.chmod(0o755)


def run_bare(
    folder: Path, *command: str, stdin: int | None = subprocess.DEVNULL, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={"PATH": str(folder / "bin"), **variables},
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def install(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "set -euo pipefail; source scripts/venv.sh; install_requirements requirements.txt"
    return run_bare(folder, "bash", "-c", program)


def put_venv(folder: Path, pip_status: int = 0) -> None:
    """A .venv whose Python writes down what pip was asked for."""
    install = f'[ "$2" = pip ] && {{ echo "$@" >>calls; exit {pip_status}; }}; exit 0'
    put(folder, ".venv/bin/python", install)
    put(folder, ".venv/bin/pip", f"echo pip 1 from {folder}/.venv/lib/site-packages/pip")


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


@pytest.mark.parametrize(
    ("python", "remedy"),
    [
        (None, "OpenDify needs Python 3.11 or newer"),
        ("exit 1", "OpenDify needs Python 3.11 or newer"),
        ('[[ "$2" != *ensurepip* ]]', "sudo apt install python3-venv"),
    ],
    ids=["none", "too old", "without venv"],
)
def test_a_missing_python_is_named_with_its_remedy(
    bare: Path, python: str | None, remedy: str
) -> None:
    if python:
        put(bare, "bin/python3", python)
    done = install(bare)
    assert done.returncode == 69
    assert remedy in done.stderr
    assert not (bare / ".venv").exists()


def test_a_later_python_is_found_beside_one_that_is_too_old(bare: Path) -> None:
    put(bare, "bin/python3", "exit 1")
    put(bare, "bin/python3.12", "exit 0")
    found = run_bare(bare, "bash", "-c", "source scripts/venv.sh; find_python")
    assert (found.returncode, found.stdout) == (0, "python3.12\n")


def test_packages_are_installed_once_and_again_when_their_list_changes(bare: Path) -> None:
    put_venv(bare)
    assert install(bare).returncode == 0
    assert len(calls(bare)) == 1
    assert install(bare).stderr == ""
    assert len(calls(bare)) == 1
    (bare / "requirements.txt").write_text("another\n")
    assert install(bare).returncode == 0
    assert len(calls(bare)) == 2


def test_a_failed_install_is_not_taken_for_a_good_one(bare: Path) -> None:
    put_venv(bare, pip_status=1)
    for _ in range(2):
        done = install(bare)
        assert done.returncode == 69
        assert "PIP_INDEX_URL" in done.stderr
    assert len(calls(bare)) == 2


def test_the_environment_of_a_moved_folder_is_made_anew(bare: Path) -> None:
    put_venv(bare)
    put(bare, ".venv/bin/pip", "echo pip 1 from /elsewhere/.venv/lib/site-packages/pip")
    put(bare, "bin/python3", 'echo "made: $*" >>calls; mkdir -p .venv')
    (bare / "bin/mkdir").symlink_to(shutil.which("mkdir") or "")
    assert install(bare).returncode == 0
    assert any("-m venv --clear .venv" in call for call in calls(bare))


def test_an_environment_behind_a_link_is_left_alone(bare: Path) -> None:
    put_venv(bare / "shared")
    (bare / ".venv").symlink_to(bare / "shared/.venv")
    put(bare, "bin/python3", '[ "$1" = -c ] || { echo "made: $*" >>calls; mkdir .venv; }')
    for program in ("mkdir", "rm"):
        (bare / "bin" / program).symlink_to(shutil.which(program) or "")
    install(bare)
    assert not (bare / ".venv").is_symlink()
    assert (bare / "shared/.venv/bin/pip").exists()


TOOLS = ("ruff", "mypy", "shellcheck")


def put_tools(folder: Path, failing: str = "") -> None:
    put(folder, ".ci/run", "")
    put_venv(folder)
    for program in packages():
        put(folder, f"bin/{program}", "exit 0")
    stamp = ".venv/.installed-requirements-dev.txt"
    command = f"source scripts/venv.sh; describe_requirements >{stamp}"
    assert run_bare(folder, "bash", "-c", command).returncode == 0
    for tool in (*TOOLS, "python"):
        status = 3 if tool == failing else 0
        quiet = '[ "$1" = -c ] && exit 0; ' if tool == "python" else ""
        put(folder, f".venv/bin/{tool}", f'{quiet}echo {tool} "$@" >>calls; cat; exit {status}')


def test_all_checks_run_and_arguments_go_to_pytest(bare: Path) -> None:
    put_tools(bare)
    done = run_bare(bare, "./run_tests.sh", "-k", "some name")
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in calls(bare)] == [
        "ruff",
        "ruff",
        "mypy",
        "shellcheck",
        "python",
    ]
    assert calls(bare)[-1].startswith("python -m pytest ")
    assert calls(bare)[-1].endswith(" -k some name")


@pytest.mark.parametrize("failing", [*TOOLS, "python"])
def test_a_failed_check_fails_the_run(bare: Path, failing: str) -> None:
    put_tools(bare, failing)
    done = run_bare(bare, "./run_tests.sh")
    assert done.returncode == 3
    assert calls(bare)[-1].startswith(failing)


def install_programs(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    program = "set -euo pipefail; source tests/programs.sh; install_programs"
    return run_bare(folder, "bash", "-c", program, **variables)


def without_two_programs(folder: Path) -> None:
    put_tools(folder)
    for program in ("nginx", "promtool"):
        (folder / f"bin/{program}").unlink()
    # What stands in /usr/sbin of this machine does not count here.
    script = folder / "tests/programs.sh"
    script.write_text(script.read_text().replace(":/usr/sbin", ""))


def test_programs_that_are_there_are_not_installed(bare: Path) -> None:
    put_tools(bare)
    put(bare, "bin/apt-get", 'echo apt-get "$@" >>calls')
    done = install_programs(bare, CI="true")
    assert (done.returncode, done.stderr, calls(bare)) == (0, "", [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can install packages")
def test_programs_that_are_missing_are_installed_by_root(bare: Path) -> None:
    without_two_programs(bare)
    made = "printf '#!/bin/bash\\n' >bin/$program; chmod +x bin/$program"
    put(
        bare,
        "bin/apt-get",
        f"""echo apt-get "${{@: -1}}" >>calls
case "${{@: -1}}" in
  nginx) program=nginx; {made} ;;
  prometheus) program=promtool; {made} ;;
esac""",
    )
    (bare / "bin/chmod").symlink_to(shutil.which("chmod") or "")
    done = install_programs(bare, CI="true")
    assert done.returncode == 0, done.stderr
    assert calls(bare) == ["apt-get --quiet", "apt-get nginx", "apt-get prometheus"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can install packages")
def test_a_package_that_cannot_be_had_keeps_no_other_away_and_fails_ci(bare: Path) -> None:
    without_two_programs(bare)
    put(bare, "bin/apt-get", 'echo apt-get "${@: -1}" >>calls; exit 100')
    done = install_programs(bare, CI="true")
    assert done.returncode == 69
    assert "could not be installed: nginx prometheus" in done.stderr
    assert calls(bare)[1:] == ["apt-get nginx", "apt-get prometheus"]


def test_where_nothing_may_be_installed_the_packages_are_named(bare: Path) -> None:
    without_two_programs(bare)  # and there is no apt-get
    done = install_programs(bare)
    assert done.returncode == 0
    assert "to run them, install: nginx prometheus" in done.stderr


def test_in_ci_nothing_waits_for_input(bare: Path) -> None:
    put_tools(bare)
    reader, writer = os.pipe()
    done = run_bare(bare, "./run_tests.sh", stdin=reader, CI="true")  # ``cat`` would never end
    os.close(reader)
    os.close(writer)
    assert done.returncode == 0


def test_the_scripts_ask_for_the_python_that_the_project_requires() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    asked = re.findall(r"version_info < \((\d+), (\d+)\)", (ROOT / "scripts/venv.sh").read_text())
    assert {f">={major}.{minor}" for major, minor in asked} == {required}
    assert sys.version_info >= tuple(int(number) for number in asked[0])


@pytest.mark.parametrize("script", ["start_development.sh", "run_tests.sh", ".ci/run"])
def test_a_script_can_be_started_from_any_folder(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    text = (ROOT / script).read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert 'set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")' in text


def test_continuous_integration_installs_the_locked_versions(bare: Path) -> None:
    put_venv(bare)
    program = "set -euo pipefail; source scripts/venv.sh; install_requirements requirements.txt"
    assert run_bare(bare, "bash", "-c", program, CI="true").returncode == 0
    assert calls(bare)[0].endswith("--require-hashes -r requirements.lock")
