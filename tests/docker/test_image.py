"""The image: small, not root, content with a root file system that cannot be written."""

import json
import subprocess
import time
from pathlib import Path

import pytest

import opendify

from .conftest import ROOT, docker, fact

pytestmark = pytest.mark.docker
GOOD = ["-e", "DIFY_API_BASE=https://dify.example.com/v1", "-e", 'MODEL_CONFIG={"m":"app-k"}']


def await_health(name: str) -> str:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        health = fact(name, "{{.State.Health.Status}}")
        if health != "starting" or fact(name, "{{.State.Status}}") != "running":
            return health
        time.sleep(0.5)
    return "late"


def run_healthy(image: str, *options: str) -> None:
    name = docker("run", "-d", *options, image)
    try:
        assert await_health(name) == "healthy", docker("logs", name)
    finally:
        docker("rm", "-f", "-v", name)


def test_what_it_is(image: str) -> None:
    about = json.loads(docker("image", "inspect", image))[0]
    assert about["Config"]["User"] == "1000:1000"
    assert about["Config"]["StopSignal"] == "SIGTERM"
    assert about["Config"]["Labels"]["org.opencontainers.image.version"] == opendify.__version__
    assert about["Config"]["Cmd"][0] == "gunicorn"
    base = json.loads(docker("image", "inspect", "python:3.11-slim"))[0]
    assert about["Size"] - base["Size"] < 40_000_000


@pytest.mark.parametrize("file", ["Dockerfile", "Dockerfile.dev"])
def test_packages_come_from_the_index_that_is_asked_for(image: str, file: str) -> None:
    words = ("build", "--network", "host", "--build-arg", "PIP_INDEX_URL=http://127.0.0.1:9/simple")
    done = subprocess.run(
        ["docker", *words, "-f", str(ROOT / file), str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "http://127.0.0.1:9/simple" in done.stdout + done.stderr


def test_it_holds_the_application_and_nothing_else(image: str) -> None:
    files = docker("run", "--rm", image, "find", "/app", "-type", "f").splitlines()
    names = {Path(file).name for file in files}
    assert {"main.py", "gunicorn_config.py", "app.py"} <= names
    strange = [file for file in files if not file.endswith((".py", ".pyc", ".sh"))]
    assert [file for file in strange if "/opendify/" not in file] == []
    assert docker("run", "--rm", image, "id", "-u") == "1000"
    docker("run", "--rm", image, "sh", "-c", "! command -v curl")


def test_deploy_sh_finds_its_python_in_it(image: str) -> None:
    sealed = ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    said = docker("run", "--rm", *sealed, image, "python", "-m", "opendify.deploy", "--help")
    dialogs = ("setup", "check", "plan", "doctor", "status")
    for verb in (*dialogs, "online", "probe", "mask", "backup", "restore"):
        assert verb in said


def test_the_users_folders_are_theirs_alone(image: str) -> None:
    shown = docker("run", "--rm", image, "stat", "-c", "%u %a", "/app/data", "/app/logs", "/app")
    assert shown.splitlines() == ["1000 700", "1000 700", "0 755"]


def test_a_read_only_root_is_enough(quick: str) -> None:
    options = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--user", "1000:1000"]
    run_healthy(quick, *options, *GOOD)


def test_the_guides_quoted_file_starts_with_plain_docker_run(quick: str, tmp_path: Path) -> None:
    path = tmp_path / ".env.production"
    path.write_text(
        'DIFY_API_BASE="https://dify.example.com/v1"\nMODEL_CONFIG=\'{"m":"app-k"}\'\n'
        'SERVER_HOST="0.0.0.0"\nSERVER_PORT="5000"\n'
    )
    run_healthy(quick, "--env-file", str(path))


def test_the_health_check_follows_the_port_and_ignores_proxies(quick: str) -> None:
    proxies = ["-e", "http_proxy=http://127.0.0.1:9", "-e", "HTTP_PROXY=http://127.0.0.1:9"]
    run_healthy(quick, *GOOD, "-e", "SERVER_PORT=5999", *proxies)


def test_a_wrong_configuration_ends_it_and_names_all(image: str) -> None:
    done = subprocess.run(
        ["docker", "run", "--rm", "-e", "SERVER_PORT=nonsense", image],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    for name in ("DIFY_API_BASE", "MODEL_CONFIG", "SERVER_PORT"):
        assert name in done.stdout + done.stderr


def test_secrets_beside_the_dockerfile_stay_out(tmp_path: Path) -> None:
    for name in (".env", ".env.production", ".env.staging", "key.env", "data", "notes.txt"):
        (tmp_path / name).write_text("app-secret")
    (tmp_path / ".dockerignore").write_text((ROOT / ".dockerignore").read_text())
    (tmp_path / "main.py").write_text("")
    (tmp_path / "Dockerfile").write_text("FROM python:3.11-slim\nCOPY . /context\n")
    docker("build", "-q", "-t", "opendify-context", str(tmp_path))
    held = docker("run", "--rm", "opendify-context", "ls", "-A", "/context")
    docker("rmi", "opendify-context")
    assert set(held.split()) <= {"main.py", "Dockerfile", ".dockerignore"}


def test_a_new_named_volume_can_be_written(image: str) -> None:
    try:
        docker("run", "--rm", "-v", "opendify_probe:/app/data", image, "touch", "/app/data/x")
    finally:
        docker("volume", "rm", "opendify_probe")


def test_memory_of_a_worker(quick: str) -> None:
    """deploy.sh reckons 112 MB a worker beyond nine; a worker at rest is far below."""
    name = docker("run", "-d", *GOOD, "-e", "GUNICORN_WORKERS=9", "--memory", "1g", quick)
    try:
        assert await_health(name) == "healthy"
        code = "cat /proc/[0-9]*/smaps_rollup | awk '/^Pss:/ { sum += $2 } END { print sum }'"
        kilobytes = int(docker("exec", name, "sh", "-c", code))
    finally:
        docker("rm", "-f", name)
    assert kilobytes < 9 * 60_000
