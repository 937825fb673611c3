"""deploy, update and rollback: nothing is touched before the new version has proved itself."""

import hashlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import GOOD, Host
from .fake_docker import NEW, OLD


def test_a_first_deploy_ends_healthy(host: Host) -> None:
    host.configure()
    done = host.run("deploy")
    assert host.running() == {"opendify": OLD}
    assert "✅ 部署完成!" in done.stdout and "健康状态: 健康" in done.stdout
    assert list(host.containers()) == ["opendify"]


def test_the_container_gets_values_without_quotes_and_the_fixed_port(host: Host) -> None:
    host.configure(GOOD + "export LOG_LEVEL = debug # chatty\n")
    host.run("deploy")
    assert host.containers()["opendify"]["environment"] == {
        "DIFY_API_BASE": "https://dify.example.com/v1",
        "MODEL_CONFIG": '{"gpt-4":"app-secret-key-1234"}',
        "LOG_LEVEL": "debug",
        "SERVER_HOST": "0.0.0.0",
        "SERVER_PORT": "5000",
        "PUBLISH_ADDRESS": "127.0.0.1",
    }
    assert host.containers()["opendify"]["options"]["--publish"] == ["127.0.0.1:59871:5000"]


def test_the_service_is_locked_down(host: Host) -> None:
    host.configure()
    host.run("deploy")
    options = host.containers()["opendify"]["options"]
    assert options["--cap-drop"] == ["ALL"] and "--read-only" in options and "--init" in options
    assert options["--security-opt"] == ["no-new-privileges"] and options["--tmpfs"] == ["/tmp"]
    assert options["--memory"] == ["1g"] and options["--stop-timeout"] == ["40"]
    assert options["--restart"] == ["unless-stopped"]
    # 2 processors: 5 workers of 128 threads, 16 connections more each, and 64
    assert options["--pids-limit"] == [str(5 * 144 + 64)]
    assert options["--volume"] == ["opendify_data:/app/data", "opendify_logs:/app/logs"]


def test_limits_follow_the_settings(host: Host) -> None:
    extra = "GUNICORN_WORKERS=20\nGUNICORN_THREADS=8\nGUNICORN_GRACEFUL_TIMEOUT=120\n"
    host.configure(GOOD + extra)
    host.run("deploy")
    options = host.containers()["opendify"]["options"]
    assert options["--pids-limit"] == [str(20 * 24 + 64)]
    assert options["--memory"] == ["2240m"] and options["--stop-timeout"] == ["130"]


def test_the_trial_has_neither_port_nor_data(host: Host) -> None:
    host.configure()
    host.run("deploy")
    (trial,) = [call for call in host.calls() if call[:2] == ["run", "-d"]]
    assert "opendify-next" in trial and "--publish" not in trial and "--volume" not in trial


def test_no_secret_is_ever_an_argument(host: Host) -> None:
    host.configure()
    host.run("deploy")
    host.run("status")
    host.run("check")
    host.new_image()
    host.run("deploy", "--dry-run")
    assert not [call for call in host.calls() if "app-secret" in " ".join(call)]


def test_nothing_changed_is_nothing_done(host: Host) -> None:
    host.deploy()
    before = host.containers()["opendify"]["id"]
    assert "已是最新，无需重新部署" in host.run("deploy").stdout
    assert host.containers()["opendify"]["id"] == before
    host.run("deploy", "--force")
    assert host.containers()["opendify"]["id"] != before


@pytest.mark.parametrize("change", ["LOG_LEVEL=debug\n", "SERVER_PORT=59872\n"])
def test_a_changed_configuration_is_deployed(host: Host, change: str) -> None:
    host.deploy()
    before = host.containers()["opendify"]["id"]
    host.configure(GOOD + change)
    host.run("deploy")
    assert host.containers()["opendify"]["id"] != before
    assert host.containers()["opendify-prev"]["id"] == before


@pytest.mark.parametrize("kind", ["crash", "unhealthy", "loop"])
def test_a_bad_image_never_touches_the_service(host: Host, kind: str) -> None:
    host.deploy()
    host.new_image(trial=kind)
    host.forget_calls()
    done = host.run("deploy", code=1)
    assert host.running() == {"opendify": OLD}
    assert list(host.containers()) == ["opendify"]
    assert not [call for call in host.calls() if call[0] in ("stop", "rename")]
    assert "log of opendify-next" in done.stderr
    assert "app-secret-key-1234" not in done.stderr and "app-…1234" in done.stderr


@pytest.mark.parametrize("kind", ["crash", "unhealthy", "refuses", "loop"])
def test_a_service_that_fails_is_rolled_back(host: Host, kind: str) -> None:
    host.deploy()
    host.new_image()
    host.run("deploy")
    third = "sha256:" + "c" * 64
    host.change(
        images={"opendify:latest": third}, behaviour={third: {"trial": "healthy", "service": kind}}
    )
    done = host.run("deploy", code=124)
    assert "已回滚" in done.stderr
    assert host.running() == {"opendify": NEW}
    images = {name: one["image"] for name, one in host.containers().items()}
    assert images == {"opendify": NEW, "opendify-prev": OLD}


def test_health_is_waited_for_no_longer_than_the_timeout(host: Host) -> None:
    host.configure()
    host.change(behaviour={OLD: {"trial": "starting"}})
    started = time.monotonic()
    host.run("deploy", "--timeout", "1", code=1)
    assert time.monotonic() - started < 30


def test_a_service_that_cannot_be_restored_is_reported(host: Host) -> None:
    host.deploy()
    host.new_image()
    host.change(fail={"start": "start"})
    done = host.run("deploy", code=2)
    assert "服务现在是停的" in done.stderr


def test_a_failed_first_deploy_leaves_nothing(host: Host) -> None:
    host.configure()
    host.change(behaviour={OLD: {"service": "refuses"}})
    done = host.run("deploy", code=1)
    assert host.containers() == {}
    assert "此前服务没有在运行" in done.stderr


@pytest.mark.parametrize("step", ["create", "stop", "rename"])
def test_a_failing_engine_leaves_the_service_running(host: Host, step: str) -> None:
    host.deploy()
    host.new_image()
    host.change(fail={step: "opendify" if step != "stop" else ""})
    if step == "stop":
        host.change(fail={"stop": "-t"})
    done = host.run("deploy", code=None)
    host.change(fail={})
    assert done.returncode in (1, 124), done.stderr
    assert host.running() == {"opendify": OLD}


def test_the_engine_is_asked_by_exact_name(host: Host) -> None:
    host.configure()
    host.configure(GOOD.replace("59871", "59873"), ".env.dev")
    host.run("deploy", "--env-file", ".env.dev")
    done = host.run("status", code=3)
    assert "容器状态: 未部署" in done.stdout
    host.run("deploy")
    assert set(host.running()) == {"opendify", "opendify-dev"}


def test_a_container_of_somebody_else_is_left_alone(host: Host) -> None:
    host.deploy()
    state = host.state()
    state["containers"][0]["labels"] = {}
    host.change(**state)
    for verb in ("deploy", "stop", "start", "restart", "remove", "rollback"):
        assert "不是由 deploy.sh 创建的" in host.run(verb, "--yes", code=1).stderr
    assert set(host.running()) == {"opendify"}


def test_a_port_in_use_is_found_before_anything_is_done(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        host.configure()
        done = host.run("deploy", "--port", str(port), code=1)
    assert f"端口 {port} 已被占用" in done.stderr and host.containers() == {}


@pytest.mark.parametrize(
    ("words", "published"),
    [
        (["--port", "6001"], "127.0.0.1:6001:5000"),
        (["--port=06001"], "127.0.0.1:6001:5000"),
        (["--bind", "0.0.0.0"], "0.0.0.0:59871:5000"),
        (["--bind", "127.0.0.1"], "127.0.0.1:59871:5000"),
        (["--bind", "::1"], "[::1]:59871:5000"),
    ],
)
def test_where_it_listens(host: Host, words: list[str], published: str) -> None:
    host.configure()
    host.run("deploy", *words)
    assert host.containers()["opendify"]["options"]["--publish"] == [published]


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ("", "127.0.0.1"),
        ("OPENDIFY_API_KEYS=\n", "127.0.0.1"),
        ("OPENDIFY_ADMIN_KEYS=only-for-operators\n", "127.0.0.1"),
        ("OPENDIFY_API_KEYS=one,two\n", "0.0.0.0"),
        ("OPENDIFY_API_KEYS_FILE=callers\n", "0.0.0.0"),
        ("DIFY_KEY_PASSTHROUGH=true\n", "0.0.0.0"),
        ("PUBLISH_ADDRESS=0.0.0.0\n", "0.0.0.0"),
        ("OPENDIFY_API_KEYS=one\nPUBLISH_ADDRESS=10.0.0.7\n", "10.0.0.7"),
    ],
)
def test_only_this_host_can_connect_where_no_keys_are_set(
    host: Host, settings: str, address: str
) -> None:
    (host.folder / "callers").write_text("one\n")
    host.configure(GOOD + settings)
    done = host.run("deploy")
    options = host.containers()["opendify"]["options"]
    assert options["--publish"] == [f"{address}:59871:5000"]
    is_told = "OPENDIFY_API_KEYS" in done.stderr and "--bind 0.0.0.0" in done.stderr
    assert is_told == (address == "127.0.0.1")


def test_an_address_in_the_file_that_is_none(host: Host) -> None:
    host.configure(GOOD + "PUBLISH_ADDRESS='a b'\n")
    assert "PUBLISH_ADDRESS" in host.run("deploy", code=65).stderr


def test_certificates_are_those_of_the_image(host: Host) -> None:
    """deploy.sh mounts none: a path of the host means nothing in the container."""
    (host.folder / "ca.pem").write_text("no certificate")
    host.configure(GOOD + "DIFY_CA_FILE=/nowhere/ca.pem\n")
    assert "DIFY_CA_FILE" in host.run("deploy", code=65).stderr
    assert host.containers() == {}


def test_who_opened_the_port_without_keys_is_not_asked_again(host: Host) -> None:
    host.configure()
    assert host.run("deploy", "--bind", "0.0.0.0").stderr == ""
    host.new_image()
    assert host.run("update").stderr == ""
    options = host.containers()["opendify"]["options"]
    assert options["--publish"] == ["0.0.0.0:59871:5000"]


def test_keys_open_the_port_and_their_end_closes_it(host: Host) -> None:
    published = []
    for keys in ("", "OPENDIFY_API_KEYS=one\n", ""):
        host.configure(GOOD + keys)
        host.run("deploy")
        published += host.containers()["opendify"]["options"]["--publish"]
    assert [address.partition(":")[0] for address in published] == [
        "127.0.0.1",
        "0.0.0.0",
        "127.0.0.1",
    ]


def test_the_default_port_is_5000(host: Host) -> None:
    host.configure(GOOD.replace("SERVER_PORT=59871\n", ""))
    calls = host.run("deploy", "--dry-run", code=None)
    if calls.returncode == 0:
        assert "127.0.0.1:5000:5000" in calls.stderr
    else:
        assert "5000" in calls.stderr  # something on this machine holds it


def test_on_the_hosts_network_the_application_takes_the_port_itself(host: Host) -> None:
    host.configure()
    host.run("deploy", "--network", "host", "--bind", "127.0.0.1")
    service = host.containers()["opendify"]
    assert "--publish" not in service["options"] and service["options"]["--network"] == ["host"]
    assert service["environment"]["SERVER_PORT"] == "59871"
    assert service["environment"]["SERVER_HOST"] == "127.0.0.1"
    (trial,) = [call for call in host.calls() if call[:2] == ["run", "-d"]]
    assert "--network" not in trial


def test_an_update_keeps_the_options_of_the_deploy(host: Host) -> None:
    host.configure()
    host.run("deploy", "--bind", "127.0.0.1", "--port", "6001", "--memory", "2g")
    host.new_image()
    done = host.run("update")
    options = host.containers()["opendify"]["options"]
    assert options["--publish"] == ["127.0.0.1:6001:5000"] and options["--memory"] == ["2g"]
    assert "--bind 127.0.0.1" in done.stdout
    assert host.running() == {"opendify": NEW}


def test_a_deploy_takes_the_port_from_the_file_again(host: Host) -> None:
    host.configure()
    host.run("deploy", "--bind", "127.0.0.1", "--port", "6001")
    host.new_image()
    host.run("deploy")
    assert host.containers()["opendify"]["options"]["--publish"] == ["127.0.0.1:59871:5000"]


def test_rollback_goes_back_and_forth(host: Host) -> None:
    host.deploy()
    host.new_image()
    host.run("deploy")
    assert host.running() == {"opendify": NEW}
    host.run("rollback")
    assert host.running() == {"opendify": OLD}
    host.run("rollback")
    assert host.running() == {"opendify": NEW}
    assert set(host.containers()) == {"opendify", "opendify-prev"}


def test_a_rollback_that_fails_is_taken_back(host: Host) -> None:
    host.deploy()
    host.new_image()
    host.run("deploy")
    host.change(behaviour={OLD: {"service": "crash"}})
    host.run("rollback", code=124)
    assert host.running() == {"opendify": NEW}
    assert host.containers()["opendify-prev"]["image"] == OLD


def test_there_may_be_nothing_to_go_back_to(host: Host) -> None:
    host.configure()
    assert "没有可以回到的版本" in host.run("rollback", code=1).stderr
    host.run("deploy")
    host.run("rollback", code=1)
    assert set(host.running()) == {"opendify"}


def test_update_loads_the_archive_and_keeps_the_old_image_by_name(host: Host) -> None:
    host.deploy()
    archive = host.archive()
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.with_name("opendify.tar.gz.sha256").write_text(f"{digest}  opendify.tar.gz\n")
    host.run("update")
    assert host.running() == {"opendify": NEW}
    assert host.state()["images"]["opendify:prev-" + "a" * 12] == OLD


def test_update_names_fewer_images_again_when_they_are_not_used(host: Host) -> None:
    host.deploy()
    for letter in "cde":
        host.archive(image=f"sha256:{letter * 64}")
        host.run("update")
    assert [name for name in host.state()["images"] if ":prev-" in name] == [
        "opendify:prev-" + "d" * 12
    ]


def test_a_bad_update_restores_the_tag_of_the_running_image(host: Host) -> None:
    host.deploy()
    host.change(behaviour={NEW: {"trial": "crash"}})
    host.archive()
    host.run("update", code=1)
    assert host.running() == {"opendify": OLD}
    assert host.state()["images"]["opendify:latest"] == OLD


def test_update_without_anything_new(host: Host) -> None:
    host.deploy()
    assert "没有可更新的" in host.run("update").stdout


@pytest.mark.parametrize("damage", ["cut", "sum", "other"])
def test_an_archive_that_is_not_right_is_refused(host: Host, damage: str) -> None:
    host.deploy()
    archive = host.archive("other:latest" if damage == "other" else "opendify:latest")
    if damage == "cut":
        archive.write_bytes(archive.read_bytes()[:-6])
    if damage == "sum":
        (host.folder / "opendify.tar.gz.sha256").write_text("0" * 64 + "  opendify.tar.gz\n")
    done = host.run("update", code=78 if damage == "other" else 65)
    assert "opendify.tar.gz" in done.stderr
    assert host.running() == {"opendify": OLD}
    assert host.state()["images"]["opendify:latest"] == OLD


def test_the_image_is_loaded_from_beside_the_script(host: Host) -> None:
    host.configure()
    host.change(images={})
    assert "docker load < opendify.tar.gz" in host.run("deploy", code=78).stderr
    host.archive()
    host.run("deploy")
    assert host.running() == {"opendify": NEW}


def test_the_applications_own_judgement_is_asked(host: Host) -> None:
    models = '{"gpt-4":{"key":"app-secret-key-1234","colour":"red"}}'
    host.configure(f"{GOOD}MODEL_CONFIG='{models}'\nGUNICORN_THREADS=many\n")
    done = host.run("deploy", code=65)
    assert "'gpt-4' has an unknown setting 'colour'" in done.stderr
    assert "GUNICORN_THREADS" in done.stderr and "secret" not in done.stderr
    assert host.containers() == {}


@pytest.mark.parametrize("path", ["/etc/hostname", "{folder}/other", "{folder}/../victim"])
def test_an_image_gets_no_file_that_was_not_named(host: Host, path: str) -> None:
    """It has the keys of the models, but it is not to read the host as root."""
    for victim in (host.folder / "other", host.folder.parent / "victim"):
        victim.write_text("secret")
    host.configure()
    asked = path.format(folder=host.folder)
    host.change(instead=f'echo "file {asked}"; read -r line; echo "warn <$line>"; echo "exit 65"')
    assert "<!>" in host.run("check", code=65).stderr


@pytest.mark.parametrize(
    "line",
    [
        "set port a[$(touch victim)]",
        "set port x",
        "exit a[$(touch victim)]",
        "exit",
        "odd $(touch v)",
    ],
)
def test_what_an_image_says_is_never_executed(host: Host, line: str) -> None:
    host.configure()
    host.change(instead=f"echo '{line}'; echo put; read -r; echo 'exit 0'")
    for verb in ("deploy", "check", "doctor"):
        host.run(verb, code=None)
    assert not list(host.folder.glob("v*"))


def test_an_image_without_the_package_is_named(host: Host) -> None:
    host.configure()
    host.change(without_package=[OLD])
    done = host.run("deploy", code=1)
    assert "opendify:latest" in done.stderr and host.containers() == {}


@pytest.mark.parametrize(
    ("words", "code"),
    [("Cannot connect to the Docker daemon", 69), ("Got permission denied while trying", 77)],
)
def test_an_engine_that_does_not_answer(host: Host, words: str, code: int) -> None:
    host.configure()
    (host.engine / "down").write_text(words)
    for verb in ("deploy", "status", "stop", "update"):
        host.run(verb, code=code)


def test_no_engine_at_all(host: Host) -> None:
    host.configure()
    host.run("deploy", code=69, PATH="/usr/bin:/bin", CONTAINER_ENGINE="podman")


def test_a_decrypted_file_on_standard_input(host: Host) -> None:
    host.run("deploy", "--env-file", "-", stdin=GOOD)
    assert host.running() == {"opendify": OLD}
    held = [path for path in host.folder.parent.rglob("*") if path.is_file()]
    held = [path for path in held if path.name not in ("docker",)]
    assert not [path for path in held if b"app-secret-key" in path.read_bytes()]


def test_one_deploy_at_a_time(host: Host) -> None:
    host.configure()
    lock = host.folder.parent / "run" / f"opendify-{os.geteuid()}-opendify.lock"
    script = 'exec 9<>"$1"; flock -n 9; echo "pid 1, since now" >&9; echo held; read -r _'
    holder = subprocess.Popen(
        ["bash", "-c", script, "_", str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        done = host.run("deploy", code=75)
        assert "pid 1, since now" in done.stderr
        host.run("status", code=3)
    finally:
        holder.communicate(b"\n", timeout=10)
    host.run("deploy")


@pytest.mark.parametrize("kind", ["open", "link", "missing"])
def test_the_lock_is_not_where_others_can_write(host: Host, tmp_path: Path, kind: str) -> None:
    """Whoever can make the file can hold the lock for ever."""
    runtime = tmp_path / "runtime"
    if kind == "open":
        runtime.mkdir()
        runtime.chmod(0o1777)
    elif kind == "link":
        runtime.symlink_to(tmp_path / "nowhere")
    host.configure()
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    name = f"fresh{os.getpid()}"
    host.run("deploy", "--name", name, XDG_RUNTIME_DIR=str(runtime), HOME=str(home))
    found = [
        path
        for folder in (Path("/tmp"), runtime, home, Path("/run"), Path(f"/run/user/{os.geteuid()}"))
        if folder.is_dir()
        for path in folder.glob(f"opendify-*-{name}.lock")
    ]
    (lock,) = found
    assert lock.parent not in (Path("/tmp"), runtime)
    assert lock.parent.stat().st_uid == os.geteuid() and lock.stat().st_mode & 0o077 == 0
    lock.unlink()


def test_without_flock_a_folder_is_the_lock(host: Host) -> None:
    programs = host.folder.parent / "few"
    programs.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for path in os.scandir(folder):
            link = programs / path.name
            if path.name != "flock" and not link.exists():
                link.symlink_to(path.path)
    path = f"{host.folder.parent / 'bin'}:{programs}"
    host.configure()
    lock = host.folder.parent / "run" / f"opendify-{os.geteuid()}-opendify.lock.d"
    lock.mkdir()
    (lock / "holder").write_text(f"pid {os.getpid()}, now\n")
    host.run("deploy", code=75, PATH=path)
    (lock / "holder").write_text("pid 999999999, long ago\n")
    host.run("deploy", PATH=path)
    assert not lock.exists()


@pytest.mark.parametrize("phase", ["stop", "start"])
def test_an_interruption_restores_everything(host: Host, phase: str) -> None:
    host.deploy()
    host.new_image(service="starting")
    host.change(stop_takes=1 if phase == "stop" else 0)
    code, said = host.interrupt("deploy", at=phase)
    assert code == 130 and "已恢复原状" in said
    assert host.running() == {"opendify": OLD}
    assert list(host.containers()) == ["opendify"]


def test_an_interruption_that_cannot_restore_the_service_is_reported(host: Host) -> None:
    host.deploy()
    host.new_image(service="starting")
    host.change(behaviour=host.state()["behaviour"] | {OLD: {"service": "starting"}})
    code, said = host.interrupt("deploy", "--timeout", "3", at="start")
    assert code == 2 and "服务现在是停的" in said


@pytest.mark.parametrize("step", ["stop", "rename", "start"])
def test_a_deploy_that_was_killed_is_mended_by_the_next(
    host: Host, tmp_path: Path, step: str
) -> None:
    host.deploy()
    (tmp_path / "left behind").mkdir()
    host.new_image(service="starting")
    elsewhere = {"XDG_RUNTIME_DIR": str(tmp_path / "left behind")}
    host.interrupt("deploy", at=step, by=signal.SIGKILL, **elsewhere)
    host.run("start")
    assert host.running() == {"opendify": OLD}  # the other was never seen healthy
    host.change(behaviour={})
    host.run("deploy")
    assert host.running() == {"opendify": NEW}
    assert set(host.containers()) <= {"opendify", "opendify-prev"}


def test_what_a_killed_deploy_held_of_the_configuration_is_removed(host: Host) -> None:
    run = Path(host.environment["XDG_RUNTIME_DIR"])
    for owner in (99999999, os.getpid()):
        (run / f"opendify.{owner}.abcdefgh").mkdir()
    host.deploy()
    host.run("deploy", "--force")
    kept = run / f"opendify.{os.getpid()}.abcdefgh"
    assert list(run.glob("opendify.*.????????")) == [kept]
    kept.rmdir()


def test_a_key_with_an_ampersand_is_masked_too(host: Host) -> None:
    """bash 5.2 puts the text that was found in the place of & in a replacement."""
    host.deploy()
    host.configure(GOOD.replace("app-secret-key-1234", "app-secret-key-1&&4"))
    host.change(log_leaks="app-secret-key-1&&4", behaviour={OLD: {"trial": "crash"}})
    done = host.run("deploy", code=1)
    assert "app-…1&&4" in done.stderr and "secret" not in done.stderr


def test_a_paused_service_gives_up_its_port(host: Host) -> None:
    host.deploy()
    host.new_image()
    host.change(containers=[one | {"state": "paused"} for one in host.state()["containers"]])
    host.run("deploy")
    assert host.running() == {"opendify": NEW}
    assert host.containers()["opendify-prev"]["state"] == "exited"


def test_a_reader_who_leaves_does_not_stop_a_deploy(host: Host) -> None:
    host.deploy()
    host.new_image()
    subprocess.run(
        ["bash", "-c", 'bash "$1" deploy | head -c 1', "_", str(host.folder / "deploy.sh")],
        env=host.environment,
        capture_output=True,
        timeout=60,
    )
    assert host.running() == {"opendify": NEW}


def test_a_folder_for_data_in_the_file_does_not_lead_out_of_the_volume(host: Host) -> None:
    host.configure(GOOD + "DATA_DIR=/var/lib/opendify\n")
    host.run("deploy")
    assert "DATA_DIR" not in host.containers()["opendify"]["environment"]


def test_an_engine_that_dies_on_the_way_is_no_empty_engine(host: Host) -> None:
    host.deploy()
    host.change(fail={"ps": "opendify.managed"})
    host.run("stop", code=69)
    host.change(fail={})
    assert host.running() == {"opendify": OLD}


def test_dry_run_changes_nothing_and_shows_no_secret(host: Host) -> None:
    host.configure()
    done = host.run("deploy", "--dry-run")
    assert host.containers() == {}
    assert "+ docker run -d" in done.stderr and "+ docker start" in done.stderr
    assert "app-secret-key" not in done.stdout + done.stderr
