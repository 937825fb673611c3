"""The command ``opendify``, from the checkout and from a wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import opendify
from tests.support.ports import free_port
from tests.support.service import ROOT, environment, free_variables, wait_until_ready
from tests.support.service import Service as RunningService


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "opendify", *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_it_prints_its_version(tmp_path: Path) -> None:
    assert run(tmp_path, "version").stdout == f"{opendify.__version__}\n"


@pytest.mark.parametrize("command", ["check", "serve"])
def test_it_names_what_is_missing(tmp_path: Path, command: str) -> None:
    done = run(tmp_path, command)
    assert done.returncode == 78
    assert "MODEL_CONFIG is not set" in done.stderr


def test_a_complete_configuration_passes(tmp_path: Path) -> None:
    done = run(tmp_path, "check", **free_variables("http://127.0.0.1:9/v1"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [(), ("begin",), ("version", "--loud")])
def test_a_wrong_command_shows_the_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert "usage: opendify" in done.stderr


def test_transfer_explains_itself(tmp_path: Path) -> None:
    done = run(tmp_path, "transfer", "--help")
    assert done.returncode == 0
    assert "--from STORE --to STORE" in done.stdout


def serve(python: Path | str, folder: Path, **variables: str) -> None:
    """Starts the server in a folder, and stops it with the signal that a supervisor sends."""
    port = free_port()
    log = folder / "service.log"
    settings = free_variables("http://127.0.0.1:9/v1", GUNICORN_WORKERS="1", **variables)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), "-m", "opendify", "serve", "--log-level", "warning"],
            cwd=folder,
            env=environment(SERVER_HOST="127.0.0.1", SERVER_PORT=str(port), **settings),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    service = RunningService(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_until_ready(service)
    finally:
        assert service.stop() == 0
    assert "Starting gunicorn" not in service.output()


def test_it_serves_from_the_checkout(tmp_path: Path) -> None:
    serve(sys.executable, tmp_path)


@pytest.mark.slow
def test_it_serves_from_a_wheel(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("opendify-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    folder = tmp_path / "run"
    folder.mkdir()
    serve(sys.executable, folder, PYTHONPATH=str(installed))
