"""status, logs, stop, start, backup, restore, remove, doctor, export."""

import hashlib
import io
import json
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from .conftest import GOOD, ROOT, Host
from .fake_docker import NEW, OLD

MAPPINGS = {
    "a": {"dify_conversation_id": "c1", "created_at": 1, "last_used": 2},
}


def data(host: Host, name: str = "opendify_data") -> Path:
    path = host.engine / "volumes" / name
    path.mkdir(exist_ok=True)
    return path


def archive(path: Path, **files: bytes | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def set_state(host: Host, **values: object) -> None:
    state = host.state()
    state["containers"][0] |= values
    host.change(**state)


def test_status_in_the_guides_words(host: Host) -> None:
    host.deploy()
    done = host.run("status")
    assert done.stdout.startswith(
        "📊 检查服务状态\n容器状态: 运行中\n健康状态: 健康\nAPI 状态: 正常\n"
    )
    assert "可用模型:\n  - gpt-4\n" in done.stdout and "127.0.0.1:59871" in done.stdout


def test_status_in_english(host: Host) -> None:
    host.deploy()
    assert (
        "Container: running\nHealth: healthy\nAPI: good\n"
        in host.run("status", "--lang", "en").stdout
    )


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("unhealthy", "健康状态: 不健康"),
        ("crash", "容器状态: 已停止"),
        ("loop", "容器状态: 重启循环 ("),
    ],
)
def test_status_is_3_when_it_is_not_well(host: Host, kind: str, words: str) -> None:
    host.deploy()
    host.change(behaviour={OLD: {"service": kind}})
    done = host.run("status", code=3)
    assert words in done.stdout


class Door(BaseHTTPRequestHandler):
    """Answers as the service does, and keeps what it was shown."""

    shown: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.shown.append(self.headers.get("Authorization", ""))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data":[{"id":"gpt-4"}]}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ("", ""),
        ("'sha256:ab, one,two'", "Bearer one"),
        ("sha256:ab", "Bearer admin"),
        ('{"a":"sha256:ab","b":{"models":["m"],"keys":["sha256:cd","two"]}}', "Bearer two"),
        ('{"a":["one"],"b":{"keys":"two"}}', "Bearer one"),
    ],
)
def test_status_asks_with_the_first_plain_key(host: Host, keys: str, shown: str) -> None:
    """The question runs in the container, with the container's variables."""
    Door.shown.clear()
    with HTTPServer(("127.0.0.1", 0), Door) as server:
        settings = {"SERVER_PORT": str(server.server_port), "OPENDIFY_API_KEYS": keys}
        settings["OPENDIFY_ADMIN_KEYS"] = "admin" if keys else ""
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        done = subprocess.run(
            [sys.executable, "-m", "opendify.deploy", "probe"],
            env=settings | {"PYTHONPATH": str(ROOT)},
            cwd=host.folder,
            capture_output=True,
            text=True,
        )
        server.shutdown()
    assert 'api 200\nmodels ["gpt-4"]\n' in done.stdout and done.stderr == ""
    assert set(Door.shown) == {shown}


def test_status_when_the_api_wants_a_key(host: Host) -> None:
    host.deploy()
    host.change(api="401")
    assert "API 状态: 正常（需要密钥）" in host.run("status").stdout
    host.change(api="")
    assert "API 状态: 异常" in host.run("status", code=3).stdout


def test_status_reports_that_dify_or_the_store_is_unhealthy(host: Host) -> None:
    host.deploy()
    assert "readyz" not in host.run("status").stdout
    host.change(ready=503)
    assert "/readyz 是 503" in host.run("status").stdout
    assert "503" in host.run("doctor").stdout
    assert json.loads(host.run("status", "--json").stdout)["ready"] == "503"


def test_a_service_from_an_older_image_is_not_reported_as_unhealthy(host: Host) -> None:
    host.deploy()
    host.new_image()
    host.change(without_package=[OLD])
    assert "API 状态: 未知" in host.run("status").stdout
    assert "d_volume_bad" not in host.run("doctor", "--json", code=None).stdout


def test_status_may_put_a_question(host: Host) -> None:
    host.deploy()
    assert "试问一次" not in host.run("status").stdout
    assert "试问一次: 200\n" in host.run("status", "--ask").stdout


def test_status_quiet_is_only_an_exit_code(host: Host) -> None:
    assert host.run("status", "--quiet", code=3).stdout == ""
    host.deploy()
    assert host.run("status", "--quiet").stdout == ""


def test_status_as_json(host: Host) -> None:
    host.deploy()
    host.change(api="200\ngpt-4\n模型")
    answer = json.loads(host.run("status", "--json").stdout)
    assert answer["name"] == "opendify" and answer["healthy"] is True
    assert answer["models"] == ["gpt-4", "模型"] and answer["restarts"] == 0
    assert (
        json.loads(host.run("status", "--json", "--name", "other", code=3).stdout)["state"]
        == "absent"
    )


def test_status_of_all(host: Host) -> None:
    assert host.run("status", "--all").stdout.startswith("NAME")
    host.deploy()
    host.configure(GOOD.replace("59871", "59873"), ".env.staging")
    host.run("deploy", "--env-file", ".env.staging")
    host.new_image()
    host.run("deploy")
    lines = host.run("status", "--all").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "opendify", "opendify-staging"]
    objects = host.run("status", "--all", "--json").stdout.splitlines()
    assert [json.loads(line)["image"] for line in objects] == [NEW, OLD]


def test_logs_end_in_a_pipe(host: Host) -> None:
    host.deploy()
    assert "tail=['200'] follow=False" in host.run("logs").stdout
    assert "tail=['5'] follow=True" in host.run("logs", "-f", "-n", "5").stdout
    host.run("logs", "--name", "other", code=1)


def test_stop_and_start(host: Host) -> None:
    assert "无需停止" in host.run("stop").stdout
    host.run("start", code=1)
    host.deploy()
    host.run("stop")
    assert host.running() == {} and "opendify" in host.containers()
    assert "已经是停止的" in host.run("stop").stdout
    host.run("start")
    assert host.running() == {"opendify": OLD}
    host.run("restart")
    assert ["restart", "-t", "40"] in [call[:3] for call in host.calls()]


def test_start_reports_whether_the_service_is_healthy(host: Host) -> None:
    host.deploy()
    host.run("stop")
    host.change(behaviour={OLD: {"service": "starting"}})
    host.run("start", "--timeout", "1", code=124)
    host.change(behaviour={OLD: {"service": "crash"}})
    host.run("restart", code=2)


def test_a_stopped_service_is_stopped_after_a_failed_deploy(host: Host) -> None:
    host.deploy()
    host.run("stop")
    host.new_image(service="crash")
    done = host.run("deploy", code=1)
    assert "没有在运行" in done.stderr
    assert host.containers()["opendify"]["image"] == OLD and host.running() == {}


def test_remove_asks_and_keeps_the_data(host: Host) -> None:
    host.deploy()
    (data(host) / "f").write_text("x")
    assert "--yes" in host.run("remove", code=64).stderr
    assert set(host.running()) == {"opendify"}
    host.new_image()
    host.run("deploy")
    done = host.run("remove", "--yes")
    assert host.containers() == {} and (data(host) / "f").exists()
    assert "opendify_data" in done.stdout
    assert "无需删除" in host.run("remove", "--yes").stdout
    host.run("remove", "--yes", "--volumes")
    assert not (host.engine / "volumes" / "opendify_data").exists()


def test_a_backup_and_its_way_back(host: Host) -> None:
    host.deploy()
    folder = data(host)
    (folder / "conversation_mappings.json").write_text(json.dumps(MAPPINGS))
    (folder / "conversation_mappings.00000001.jsonl").write_text('{"b":null}\n')
    (folder / "conversation_mappings.lock").touch()
    (folder / "conversation_mappings.json.tmp").write_text("{half")
    (folder / "files").mkdir()
    (folder / "files" / "one.bin").write_bytes(b"\x00\xff")
    done = host.run("backup", "--out", str(host.folder / "b.tar.gz"))
    made = host.folder / "b.tar.gz"
    assert "（3 个文件）" in done.stdout and stat.S_IMODE(made.stat().st_mode) == 0o600
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    assert (host.folder / "b.tar.gz.sha256").read_text() == f"{digest}  b.tar.gz\n"
    (folder / "conversation_mappings.json").write_text("{}")
    (folder / "new").write_text("later")
    host.run("restore", "b.tar.gz")
    assert json.loads((folder / "conversation_mappings.json").read_text()) == MAPPINGS
    assert (folder / "files" / "one.bin").read_bytes() == b"\x00\xff"
    assert not (folder / "new").exists() and not (folder / ".before-restore").exists()
    assert host.running() == {"opendify": OLD}
    (before,) = host.folder.glob("backup-opendify-*-before-restore.tar.gz")
    with tarfile.open(before) as tar:
        assert "data/new" in tar.getnames()


def test_a_backup_has_no_keys_unless_asked_for(host: Host) -> None:
    host.deploy()
    host.run("backup", "--out", "plain.tar.gz")
    host.run("backup", "--out", "full.tar.gz", "--with-config")
    with tarfile.open(host.folder / "full.tar.gz") as tar:
        member = tar.extractfile("config/.env.production")
        assert member and member.read().decode() == GOOD
    with tarfile.open(host.folder / "plain.tar.gz") as tar:
        assert not [name for name in tar.getnames() if name.startswith("config")]
    host.run("restore", "full.tar.gz")
    assert not (data(host) / "config").exists()


def test_data_that_is_damaged_is_not_called_a_backup(host: Host) -> None:
    host.deploy()
    (data(host) / "conversation_mappings.json").write_text("{half")
    done = host.run("backup", code=1)
    assert "JSON" in done.stderr and not list(host.folder.glob("backup-*"))


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize(
    "files",
    [
        {"../evil": b"x"},
        {"/data/evil": b"x"},
        {"data/../../evil": b"x"},
        {"other/evil": b"x"},
        {"data/evil": link("data/evil", tarfile.SYMTYPE, "/etc/passwd")},
        {"data/evil": link("data/evil", tarfile.LNKTYPE, "/etc/passwd")},
        {"data/evil": link("data/evil", tarfile.CHRTYPE, "")},
        {"data/conversation_mappings.json": b"{half"},
    ],
    ids=["above", "absolute", "out", "elsewhere", "symbolic link", "link", "device", "half JSON"],
)
def test_an_archive_with_anything_else_in_it_is_refused(host: Host, files: dict) -> None:
    host.deploy()
    (data(host) / "kept").write_text("x")
    archive(host.folder / "b.tar.gz", **files)
    host.run("restore", "b.tar.gz", code=65)
    assert (data(host) / "kept").exists() and host.running() == {"opendify": OLD}
    assert "stop" not in [call[0] for call in host.calls()]


def test_an_archive_that_was_changed_is_refused(host: Host) -> None:
    host.deploy()
    archive(host.folder / "b.tar.gz", **{"data/x": b"x"})
    (host.folder / "b.tar.gz.sha256").write_text("0" * 64 + "  b.tar.gz\n")
    host.run("restore", "b.tar.gz", code=65)
    host.run("restore", "nowhere.tar.gz", code=65)


def test_restored_data_that_makes_the_service_unhealthy_is_removed_again(host: Host) -> None:
    host.deploy()
    (data(host) / "kept").write_text("old")
    archive(host.folder / "b.tar.gz", **{"data/kept": b"new"})
    host.change(fail={"start": "start"})
    done = host.run("restore", "b.tar.gz", code=2)
    assert (data(host) / "kept").read_text() == "old"
    assert "服务现在是停的" in done.stderr


@pytest.mark.parametrize("phase", ["stop", "start"])
def test_an_interrupted_restore_puts_the_old_data_back(host: Host, phase: str) -> None:
    host.deploy()
    (data(host) / "kept").write_text("old")
    archive(host.folder / "b.tar.gz", **{"data/kept": b"new"})
    if phase == "stop":
        host.change(stop_takes=1)
    else:
        host.change(behaviour={OLD: {"service": "starting"}})
    code, said = host.interrupt("restore", "b.tar.gz", "--timeout", "3", at=phase)
    assert (code, "服务现在是停的" in said) == ((130, False) if phase == "stop" else (2, True))
    assert (data(host) / "kept").read_text() == "old"
    assert host.running() == {"opendify": OLD}
    assert not (data(host) / ".before-restore").exists()


def test_a_restore_without_a_service_only_puts_the_data(host: Host) -> None:
    data(host)
    archive(host.folder / "b.tar.gz", **{"data/kept": b"new"})
    host.run("restore", "b.tar.gz")
    assert (data(host) / "kept").read_text() == "new" and host.containers() == {}


def test_a_backup_of_nothing(host: Host) -> None:
    assert "opendify_data" in host.run("backup", code=1).stderr


def test_export(host: Host) -> None:
    done = host.run("export")
    made = host.folder / "opendify.tar.gz"
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    assert (host.folder / "opendify.tar.gz.sha256").read_text() == f"{digest}  opendify.tar.gz\n"
    assert "scp opendify.tar.gz deploy.sh" in done.stdout
    assert not list(host.folder.glob("*.part"))
    host.change(images={})
    assert "docker build" in host.run("export", code=78).stderr


def test_an_export_that_fails_leaves_nothing(host: Host) -> None:
    host.change(fail={"save": "save"})
    host.run("export", code=1)
    assert not list(host.folder.glob("opendify.tar*"))


def test_doctor_finds_nothing_wrong(host: Host) -> None:
    host.deploy()
    done = host.run("doctor")
    assert "❌" not in done.stdout
    for word in ("bash", "docker 99.0-fake", "Compose: 9.9.9", "59871", "opendify_data"):
        assert word in done.stdout


def test_doctor_names_each_fault_and_its_remedy(host: Host) -> None:
    path = host.configure()
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    path.chmod(0o640)
    done = host.run("doctor", LC_ALL="C")
    for word in ("sed -i", "BOM", "chmod 600", "MODEL_CONFIG", "59871", "LANG=C.UTF-8"):
        assert word in done.stdout, word
    assert "app-secret-key" not in done.stdout
    host.configure(GOOD + "GUNICORN_THREADS=many\nMODEL_CONFIG={}\n")
    done = host.run("doctor", code=1)
    assert done.stdout.count("❌ .env.production: ") == 2
    host.configure(GOOD + "nonsense app-secret-key\n")
    done = host.run("doctor", code=1)
    assert "第 5 行" in done.stdout and "app-secret-key" not in done.stdout


def test_doctor_examines_the_container(host: Host) -> None:
    host.deploy()
    host.change(behaviour={OLD: {"service": "unhealthy"}})
    done = host.run("doctor", code=1)
    assert "❌ 容器 opendify: running，unhealthy" in done.stdout
    assert "健康检查输出: 1 Connection  refused" in done.stdout


def test_doctor_goes_on_when_the_image_cannot_examine_the_container(host: Host) -> None:
    host.deploy()
    host.change(without_package=[OLD])
    done = host.run("doctor", "--json", code=1)
    found = [each["check"] for each in json.loads(done.stdout)]
    assert found[-1].startswith("d_port") and "d_env" not in found
    assert "opendify:latest" in done.stderr


def test_status_without_the_image(host: Host) -> None:
    """What the container has is used; where there is neither, nothing can be running."""
    host.deploy()
    host.change(images={})
    assert "健康状态: 健康" in host.run("status").stdout
    assert "没有部署" in host.run("status", "--name", "other", code=3).stderr


def test_doctor_says_what_it_could_not_check(host: Host) -> None:
    host.configure()
    host.change(images={})
    done = host.run("doctor", code=1)
    assert "docker load" in done.stdout and "没有检查 .env.production" in done.stdout


def test_doctor_as_json_and_without_an_engine(host: Host) -> None:
    (host.engine / "down").write_text("Cannot connect")
    findings = json.loads(host.run("doctor", "--json", code=1).stdout)
    bad = {each["check"]: each["message"] for each in findings if each["level"] == "bad"}
    assert set(bad) == {"d_env", "engine_silent"}
    assert bad["engine_silent"].count("systemctl start docker") == 1


def test_doctor_sees_another_platform(host: Host) -> None:
    host.deploy()
    host.change(architecture="arm64")
    assert "--platform linux/amd64" in host.run("doctor", code=1).stdout


def put_checkout(host: Host) -> None:
    """The package beside deploy.sh, as in a clone whose .venv is there."""
    shutil.copytree(ROOT / "opendify", host.folder / "opendify")
    python = host.folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)


@pytest.mark.parametrize("missing", ["engine", "image"])
def test_without_the_image_a_checkout_beside_the_script_checks(host: Host, missing: str) -> None:
    host.configure()
    if missing == "engine":
        (host.engine / "down").write_text("Cannot connect")
    else:
        host.change(images={})
    done = host.run("check", code=69 if missing == "engine" else 78)
    assert "什么都没有检查" in done.stderr and done.stdout == ""
    answers = "https://a.example/v1\nm\napp-key-of-mine\n"
    done = host.run("setup", "--env-file", ".env.fresh", stdin=answers, code=done.returncode)
    assert "什么都没有检查" in done.stderr and not (host.folder / ".env.fresh").exists()
    put_checkout(host)
    done = host.run("check")
    assert "✅" in done.stdout and "源码" in done.stderr
    done = host.run("setup", "--env-file", ".env.fresh", stdin=answers)
    assert "app-key-of-mine" in (host.folder / ".env.fresh").read_text()
    host.configure(GOOD + "LOG_LEVEL=loud\n")
    assert "LOG_LEVEL" in host.run("check", code=65).stderr


def test_in_a_clone_the_image_is_to_be_built(host: Host) -> None:
    host.configure()
    host.change(images={})
    shutil.copy(ROOT / "Dockerfile", host.folder)
    for verb in ("check", "deploy"):
        assert "docker build -t opendify:latest ." in host.run(verb, code=78).stderr


def test_setup_loads_the_archive_beside_the_script(host: Host) -> None:
    host.change(images={})
    host.archive()
    host.run("setup", stdin="https://a.example/v1\nm\napp-key-of-mine\n")
    assert host.state()["images"] == {"opendify:latest": NEW} and host.env_file.exists()


def test_check_online_asks_with_each_key(host: Host) -> None:
    import http.server
    import threading

    class Dify(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.headers["Authorization"] == "Bearer app-good-key"
            self.send_response(200 if good else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dify) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}/v1"
        host.configure(f'DIFY_API_BASE={base}\nMODEL_CONFIG={{"one":"app-good-key"}}\n')
        assert "one: ok" in host.run("check", "--online").stdout
        host.configure(f'DIFY_API_BASE={base}\nMODEL_CONFIG={{"two":"app-bad-key"}}\n')
        done = host.run("check", "--online", code=65)
        assert "two: 401" in done.stdout and "bad-key" not in done.stdout + done.stderr
        server.shutdown()
    done = host.run("check", "--online", code=1)
    assert "two: unreachable" in done.stdout


def test_quiet_says_nothing_when_all_is_well(host: Host) -> None:
    host.deploy()
    host.new_image()
    for verb in ("check", "deploy", "stop", "start", "restart", "rollback", "export"):
        assert host.run(verb, "--quiet").stdout == "", verb


@pytest.mark.parametrize(
    "verb", ["update", "rollback", "stop", "restart", "remove", "backup", "export"]
)
def test_a_dry_run_changes_nothing(host: Host, verb: str) -> None:
    host.deploy()
    host.new_image()
    host.run("deploy")
    before = host.state()
    files = sorted(host.folder.iterdir())
    host.run(verb, "--dry-run", "--yes")
    assert host.state() == before and NEW in str(before)
    assert sorted(host.folder.iterdir()) == files
