import io
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

import gunicorn_config
from opendify.config.settings import SERVER_NUMBERS
from opendify.worker.head import parse_head
from tests.support.service import ROOT, environment, free_variables

LOG_LINE = 'logger_class = "opendify.worker.access_log.Log"'
LINE = 'worker_class, worker_connections = "opendify.worker.worker.Worker", threads + 1000'
SOURCE = (ROOT / "gunicorn_config.py").read_text()
V2 = "/sys/fs/cgroup/cpu.max"
V1_QUOTA = "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"
V1_PERIOD = "/sys/fs/cgroup/cpu/cpu.cfs_period_us"


class Machine:
    """What the configuration can see: files, cores, environment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.files: dict[str, str] = {}
        self.environ: dict[str, str] = {}
        self.cores: int | None = 4
        self._monkeypatch = monkeypatch
        monkeypatch.chdir(folder)

    def config(self, source: str = "") -> Any:
        """Runs the file as ``exec`` does, where ``__file__`` does not exist."""
        self._monkeypatch.setattr(os, "environ", self.environ)
        if self.cores is None:
            self._monkeypatch.delattr(os, "sched_getaffinity")
            self._monkeypatch.setattr(os, "cpu_count", lambda: None)
        else:
            cores = set(range(self.cores))
            self._monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
        found: dict[str, Any] = {"open": self._open}
        exec(source or SOURCE, found)
        return SimpleNamespace(**found)

    def _open(self, path: str) -> io.StringIO:
        if path not in self.files:
            raise FileNotFoundError(path)
        return io.StringIO(self.files[path])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_without_any_variable_it_is_a_production_server(machine: Machine) -> None:
    config = machine.config()
    assert config.bind == "0.0.0.0:5000"
    assert config.workers == 9
    assert (config.threads, config.worker_connections) == (128, 1128)
    assert config.worker_class == "opendify.worker.worker.Worker"
    assert (config.timeout, config.graceful_timeout, config.keepalive) == (60, 30, 2)
    assert (config.max_requests, config.max_requests_jitter) == (2000, 100)
    assert (config.reload, config.preload_app) == (False, True)
    assert config.control_socket_disable is True
    assert config.loglevel == "info"
    assert (config.accesslog, config.errorlog) == (None, "-")


def test_what_proxies_say_of_a_request_is_not_obeyed(machine: Machine) -> None:
    machine.environ["FORWARDED_ALLOW_IPS"] = "*"
    cfg = Config()
    for name in ("forwarded_allow_ips", "forwarder_headers", "secure_scheme_headers"):
        cfg.set(name, getattr(machine.config(), name))
    headers = b"SCRIPT_NAME: /a\r\nPATH_INFO: /b\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: x"
    head = b"GET /a HTTP/1.1\r\n" + headers + b"\r\n\r\n"
    for peer in ("127.0.0.1", 1), ("10.0.0.1", 1), "":  # "" is at a Unix socket
        request = parse_head(cfg, peer, head)
        names = {name for name, _ in request.headers}
        assert names == {"X-FORWARDED-PROTO", "X-FORWARDED-SSL"}
        assert request.scheme == "http"


def test_development_changes_the_defaults(machine: Machine) -> None:
    machine.environ["ENVIRONMENT"] = "development"
    config = machine.config()
    assert (config.workers, config.reload, config.preload_app) == (1, True, False)
    assert config.loglevel == "debug"
    assert config.threads == 128


def test_development_changes_nothing_but_the_defaults(machine: Machine) -> None:
    machine.environ |= {
        "ENVIRONMENT": "Development",
        "GUNICORN_WORKERS": "3",
        "GUNICORN_RELOAD": "false",
        "LOG_LEVEL": "warning",
    }
    config = machine.config()
    assert (config.workers, config.reload, config.preload_app) == (3, False, True)
    assert config.loglevel == "warning"


VARIABLES = [
    pytest.param({"SERVER_PORT": "5001"}, "bind", "0.0.0.0:5001", id="SERVER_PORT"),
    pytest.param({"SERVER_HOST": "127.0.0.1"}, "bind", "127.0.0.1:5000", id="SERVER_HOST"),
    pytest.param({"SERVER_HOST": "::1"}, "bind", "[::1]:5000", id="SERVER_HOST of IPv6"),
    pytest.param({"SERVER_HOST": "[::1]"}, "bind", "[::1]:5000", id="IPv6 as in a URL"),
    pytest.param({"SERVER_HOST": " [::] "}, "bind", "[::]:5000", id="with blanks"),
    pytest.param({"SERVER_HOST": "localhost"}, "bind", "localhost:5000", id="a name"),
    pytest.param({"GUNICORN_WORKERS": "4"}, "workers", 4, id="GUNICORN_WORKERS"),
    pytest.param({"GUNICORN_THREADS": "8"}, "threads", 8, id="GUNICORN_THREADS"),
    pytest.param(
        {"GUNICORN_THREADS": "8"}, "worker_connections", 1008, id="connections follow threads"
    ),
    pytest.param({"GUNICORN_TIMEOUT": "90"}, "timeout", 90, id="GUNICORN_TIMEOUT"),
    pytest.param(
        {"GUNICORN_GRACEFUL_TIMEOUT": "9"}, "graceful_timeout", 9, id="GUNICORN_GRACEFUL_TIMEOUT"
    ),
    pytest.param({"GUNICORN_KEEPALIVE": "75"}, "keepalive", 75, id="GUNICORN_KEEPALIVE"),
    pytest.param({"GUNICORN_KEEPALIVE": "0"}, "keepalive", 0, id="a zero is a value"),
    pytest.param({"GUNICORN_MAX_REQUESTS": "0"}, "max_requests", 0, id="GUNICORN_MAX_REQUESTS"),
    pytest.param(
        {"GUNICORN_MAX_REQUESTS_JITTER": "5"},
        "max_requests_jitter",
        5,
        id="GUNICORN_MAX_REQUESTS_JITTER",
    ),
    pytest.param({"GUNICORN_RELOAD": "TRUE"}, "reload", True, id="GUNICORN_RELOAD"),
    pytest.param({"GUNICORN_RELOAD": "true"}, "preload_app", False, id="no preload with reload"),
    pytest.param({"ACCESS_LOG": "True"}, "accesslog", "-", id="ACCESS_LOG"),
    pytest.param({"ACCESS_LOG": "false"}, "accesslog", None, id="no ACCESS_LOG"),
    pytest.param({"LOG_LEVEL": "DEBUG"}, "loglevel", "debug", id="LOG_LEVEL"),
    pytest.param(
        {"LOG_LEVEL": "debug", "LOG_FORMAT": "JSON"}, "loglevel", "info", id="all lines are JSON"
    ),
    pytest.param({"SERVER_PORT": "'5001'"}, "bind", "0.0.0.0:5001", id="a number in quotes"),
    pytest.param({"SERVER_HOST": '"::"'}, "bind", "[::]:5000", id="a text in quotes"),
    pytest.param({"SERVER_PORT": "http"}, "bind", "0.0.0.0:5000", id="no number: the default"),
    pytest.param({"GUNICORN_WORKERS": "9" * 5000}, "workers", 9, id="no such number"),
    pytest.param({"SERVER_PORT": ""}, "bind", "0.0.0.0:5000", id="an empty value"),
]


@pytest.mark.parametrize(("variables", "name", "value"), VARIABLES)
def test_a_variable_is_read(
    machine: Machine, variables: dict[str, str], name: str, value: Any
) -> None:
    machine.environ |= variables
    assert getattr(machine.config(), name) == value


def test_dotenv_is_read_and_the_environment_wins(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SERVER_PORT=5001\nGUNICORN_WORKERS='7'\n")
    machine.environ["SERVER_PORT"] = "5002"
    config = machine.config()
    assert (config.bind, config.workers) == ("0.0.0.0:5002", 7)


QUOTAS = [
    pytest.param({}, 8, 17, id="no cgroup"),
    pytest.param({V2: "max 100000\n"}, 8, 17, id="v2 without a limit"),
    pytest.param({V2: "200000 100000\n"}, 8, 5, id="v2 of two"),
    pytest.param({V2: "150000 100000\n"}, 8, 5, id="v2 of one and a half is two"),
    pytest.param({V2: "50000 100000\n"}, 8, 3, id="v2 of a half is one"),
    pytest.param({V2: "1600000 100000\n"}, 8, 17, id="v2 above the cores"),
    pytest.param({V2: "0 100000\n"}, 8, 17, id="v2 of nothing"),
    pytest.param({V2: "100000 0\n"}, 8, 17, id="v2 of no period"),
    pytest.param({V2: ""}, 8, 17, id="v2 empty"),
    pytest.param({V2: "much\n"}, 8, 17, id="v2 unreadable"),
    pytest.param({V1_QUOTA: "-1\n", V1_PERIOD: "100000\n"}, 8, 17, id="v1 without a limit"),
    pytest.param({V1_QUOTA: "300000\n", V1_PERIOD: "100000\n"}, 8, 7, id="v1 of three"),
    pytest.param({V1_QUOTA: "50000\n", V1_PERIOD: "100000\n"}, 8, 3, id="v1 of a half"),
    pytest.param({V1_QUOTA: "300000\n"}, 8, 17, id="v1 without a period"),
    pytest.param({}, 1, 3, id="one core"),
    pytest.param({}, None, 3, id="cores that nobody tells"),
]


@pytest.mark.parametrize(("files", "cores", "workers"), QUOTAS)
def test_workers_are_twice_the_cores_that_may_be_used_and_one(
    machine: Machine, files: dict[str, str], cores: int | None, workers: int
) -> None:
    machine.files, machine.cores = files, cores
    assert machine.config().workers == workers


def test_the_number_of_workers_that_is_set_wins_over_the_quota(machine: Machine) -> None:
    machine.files = {V2: "100000 100000\n"}
    machine.environ["GUNICORN_WORKERS"] = "12"
    assert machine.config().workers == 12


class Recorder(dict[str, str]):
    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


def test_every_number_of_the_server_is_checked_by_the_application(machine: Machine) -> None:
    machine.environ = environ = Recorder()
    machine.config()
    numbers = {name for name in environ.asked if name.startswith("GUNICORN_")} | {"SERVER_PORT"}
    assert numbers - {"GUNICORN_RELOAD"} == set(SERVER_NUMBERS)


def test_it_imports_nothing_of_the_application_before_a_hook_needs_it() -> None:
    assert re.findall(r"^\S.*opendify.*", SOURCE, re.MULTILINE) == [LINE, LOG_LINE]
    assert "import main" not in SOURCE


def test_without_the_line_of_our_worker_gunicorns_own_serves(machine: Machine) -> None:
    config = machine.config(SOURCE.replace(LINE, ""))
    assert (config.worker_class, config.worker_connections) == ("sync", 144)
    assert config.max_requests == 0


def test_a_port_in_use_is_named_with_its_remedy(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        machine.environ |= {"SERVER_HOST": "127.0.0.1", "SERVER_PORT": str(port)}
        with pytest.raises(SystemExit) as caught:
            machine.config().on_starting(None)
    assert f"Port {port} is in use" in str(caught.value.code)
    assert f"SERVER_PORT={port + 1}" in str(caught.value.code)


HOSTS = {
    "[::1]": "::1",
    "::1": "::1",
    "[::]": "::",
    " [ ::1 ]\t": "::1",
    "::": "::",
    "0.0.0.0": "0.0.0.0",
    "127.0.0.1": "127.0.0.1",
    "127.8.9.1": "127.8.9.1",
    "localhost": "localhost",
    " LOCALHOST ": "LOCALHOST",
}
NOT_OURS = [
    "http://127.0.0.1",
    "https://localhost/v1",
    "127.0.0.1:5000",
    "[::1]:5000",
    "localhost:5000",
    "192.0.2.55",
    "2001:db8::55",
    "nowhere.invalid",
    "256.1.1.1",
    "127.0.0.1/8",
    "127.0.0.1, ::1",
    "*",
    "a\0b",
    "a..b",
    "[127.0.0.1]",
    "x" * 5000,
]


@pytest.mark.parametrize("text", HOSTS)
def test_every_form_of_an_address_is_taken(text: str) -> None:
    assert gunicorn_config.parse_host(text) == HOSTS[text]


@pytest.mark.parametrize("text", NOT_OURS)
def test_what_this_machine_cannot_listen_at_is_named(machine: Machine, text: str) -> None:
    with pytest.raises(ValueError, match="name of this machine") as caught:
        gunicorn_config.parse_host(text)
    assert "SERVER_PORT" in str(caught.value) and len(str(caught.value)) < 500
    machine.environ["SERVER_HOST"] = text
    with pytest.raises(SystemExit, match="SERVER_HOST must be an address"):
        machine.config().on_starting(None)


@pytest.mark.parametrize("environment_name", ["production", "development"])
def test_the_server_does_not_start_where_it_cannot_listen(
    tmp_path: Path, environment_name: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--config", f"{ROOT}/gunicorn_config.py", "main:app"],
        cwd=tmp_path,
        env=environment(
            **free_variables("http://127.0.0.1:9/v1", SERVER_HOST="http://127.0.0.1"),
            ENVIRONMENT=environment_name,
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "SERVER_HOST must be an address" in done.stderr
    assert "Traceback" not in done.stderr and "Retrying" not in done.stderr


def test_a_free_port_is_left_free(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    machine.environ |= {"SERVER_HOST": "127.0.0.1", "SERVER_PORT": str(port)}
    machine.config().on_starting(None)
    socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("name", ["GUNICORN_FD", "LISTEN_FDS"])
def test_a_socket_that_was_handed_down_is_not_probed(machine: Machine, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        machine.environ |= {"SERVER_HOST": "127.0.0.1", "SERVER_PORT": str(port), name: "3"}
        machine.config().on_starting(None)


@pytest.mark.parametrize("encoding", ["utf-16", "gbk"])
def test_a_dotenv_that_cannot_be_read_is_left_for_the_application_to_name(
    machine: Machine, tmp_path: Path, encoding: str
) -> None:
    (tmp_path / ".env").write_bytes("# 端口\nSERVER_PORT=6000\n".encode(encoding))
    assert machine.config().bind == "0.0.0.0:5000"
