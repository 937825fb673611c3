"""What is written for other programs is read by those programs, and compared with the code."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import gunicorn_config
import opendify
from tests.support.programs import require_program
from tests.support.service import ROOT, environment, running

DOCKERFILE = (ROOT / "Dockerfile").read_text()
SCRIPT = (ROOT / "deploy.sh").read_text()
KUBERNETES = ROOT / "deploy" / "kubernetes"


def run(*words: str | Path, code: int = 0, **more: Any) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **more)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def documents() -> dict[tuple[str, str], dict[str, Any]]:
    """Kind and name to Kubernetes object."""
    found = {}
    for path in KUBERNETES.glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            name = document.get("metadata", {}).get("name", "")
            found[document["kind"], name] = document
    return found


def known_variables() -> set[str]:
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.M))


def known_paths() -> set[str]:
    sources = [path.read_text() for path in (ROOT / "opendify").rglob("*.py")]
    return {path for text in sources for path in re.findall(r'"(/[a-z]+)"', text)}


def test_hadolint_and_shellcheck_have_nothing_to_say() -> None:
    """deploy.sh is checked with the other scripts of its folder, by run_tests.sh."""
    run(require_program("hadolint"), ROOT / "Dockerfile", ROOT / "Dockerfile.dev")
    scripts = ("tests/docker/run", "tests/docker/engine.sh", "tests/deploy/deploy.bats")
    run(require_program("shellcheck"), "-x", *scripts, cwd=ROOT)


def test_deploy_sh_as_a_person_types_it() -> None:
    """Here rather than in run_tests.sh, so that one command chooses among all tests."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    suite = ROOT / "tests" / "deploy" / "deploy.bats"
    run(require_program("bats"), suite, env=os.environ | {"PATH": path}, timeout=300)


def test_the_image_gets_everything_that_the_application_imports() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    copied = {word.rstrip("/") for words in copied for word in words.split()}
    seen, queue = set(), ["main.py", "gunicorn_config.py"]
    while queue:
        name = queue.pop()
        seen.add(name)
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {module.split(".")[0] for module in modules}:
                if (ROOT / f"{top}.py").exists() and f"{top}.py" not in seen:
                    queue.append(f"{top}.py")
                if (ROOT / top / "__init__.py").exists():
                    assert top in copied
    assert seen | {"opendify", "requirements.lock"} <= copied


def test_the_image_gets_what_deploy_sh_runs_in_it(tmp_path: Path) -> None:
    for words in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for word in words.split():
            if (ROOT / word).is_dir():
                shutil.copytree(ROOT / word, tmp_path / word)
            else:
                shutil.copy(ROOT / word, tmp_path)
    said = run(sys.executable, "-m", "opendify.deploy", "--help", cwd=tmp_path)
    verbs = re.findall(r'converse ([a-z]+)|\[@\]}" ([a-z]+)|in_image \w+ ([a-z]+)', SCRIPT)
    assert len(verbs) > 5
    for words in verbs:
        assert "".join(words) in said


def test_one_version_everywhere() -> None:
    assert f"ARG VERSION={opendify.__version__}\n" in DOCKERFILE
    assert f"readonly SCRIPT_VERSION={opendify.__version__}\n" in SCRIPT


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.dev.yml"])
def test_compose_reads_it_without_a_warning(name: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    words = (require_program("docker-compose"), "-f", name, "config", "-q")
    assert run(*words, cwd=tmp_path, env=environment()) == ""


def test_compose_says_what_env_lacks(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    (tmp_path / ".env").write_text("LOG_LEVEL=info\n")
    said = run(
        require_program("docker-compose"), "config", "-q", cwd=tmp_path, env=environment(), code=1
    )
    assert "DIFY_API_BASE" in said and "MODEL_CONFIG" in said


def test_compose_gives_a_drain_its_time_and_hard_limits() -> None:
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["opendify"]
    assert service["stop_grace_period"] == f"{gunicorn_config.graceful_timeout + 10}s"
    assert service["ports"] == ["${PUBLISH_ADDRESS:-127.0.0.1}:${SERVER_PORT:-5000}:5000"]
    assert service["environment"]["PUBLISH_ADDRESS"] == "${PUBLISH_ADDRESS:-127.0.0.1}"
    (tmpfs,) = service["tmpfs"]
    size = re.search(r"size=(\d+)m", tmpfs)
    assert size and int(size[1]) < 512, "the workers need the other half"
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["deploy"]["resources"]["limits"] == {"cpus": "2.0", "memory": "1G"}
    assert set(service["environment"]) - {"SERVER_HOST", "SERVER_PORT"} <= known_variables()


def test_the_swarm_stack(tmp_path: Path) -> None:
    words = (
        require_program("docker-compose"),
        "-f",
        ROOT / "deploy" / "swarm" / "stack.yml",
        "config",
        "-q",
    )
    said = run(*words, cwd=tmp_path, env=environment(DIFY_API_BASE="https://x/v1"))
    # Compose calls obsolete, or not its own, what Swarm wants
    assert [line for line in said.splitlines() if not re.search("`version`|Swarm", line)] == []
    stack = yaml.safe_load((ROOT / "deploy" / "swarm" / "stack.yml").read_text())
    service = stack["services"]["opendify"]
    assert service["stop_grace_period"] == f"{gunicorn_config.graceful_timeout + 10}s"
    assert set(service["environment"]) <= known_variables()
    # `docker stack deploy` ignores `tmpfs:`; on a read-only root Gunicorn then finds no place
    assert "tmpfs" not in service
    tmpfs = {"type": "tmpfs", "target": "/tmp", "tmpfs": {"size": 128 * 1024**2}}
    assert tmpfs in service["volumes"]
    assert stack["networks"]["opendify-network"]["driver_opts"] == {"encrypted": "true"}
    redis = stack["services"]["redis"]
    assert redis["cap_drop"] == ["ALL"] and redis["read_only"] and redis["user"] == "redis"
    assert "data:/app/data" in service["volumes"] and "data" in stack["volumes"]
    for name in ("MODEL_CONFIG_FILE", "OPENDIFY_API_KEYS_FILE", "CONVERSATION_STORE_FILE"):
        assert service["environment"][name].removeprefix("/run/secrets/") in stack["secrets"]


def test_redis_of_the_stack_gets_its_password_by_no_command_line(tmp_path: Path) -> None:
    stack = yaml.safe_load((ROOT / "deploy" / "swarm" / "stack.yml").read_text())
    shell, option, script = stack["services"]["redis"]["entrypoint"]
    (tmp_path / "redis_password").write_text("top-secret")
    (tmp_path / "redis-server").write_text('#!/bin/sh\necho "arguments: $*"\nexec cat\n')
    (tmp_path / "redis-server").chmod(0o755)
    script = script.replace("$$", "$").replace("/run/secrets", str(tmp_path))
    path = f"{tmp_path}:{os.environ['PATH']}"
    said = run(shell, option, script, env={"PATH": path}).splitlines()
    assert said == ["arguments: - --appendonly yes --dir /data", "requirepass top-secret"]


PINNED = re.compile(r"[\w./-]+(:[\w.-]+)?@sha256:[0-9a-f]{64}")


def test_what_is_pulled_is_named_by_its_digest() -> None:
    paths = [*ROOT.glob("docker-compose*.yml"), *(ROOT / "deploy").rglob("*.y*ml")]
    images = [
        image
        for path in paths
        for image in re.findall(r"^\s+(?:- )?image: (\S+)$", path.read_text(), re.M)
        if not re.match(r"(\$\{OPENDIFY_IMAGE:-)?opendify(-dev)?:latest|opendify$", image)
    ]
    assert len(images) == 3 and len(set(images)) == 1
    assert all(PINNED.fullmatch(image) for image in images)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (base,) = re.findall(r"^  BASE_IMAGE: (\S+)$", workflow, re.M)
    assert PINNED.fullmatch(base)
    for name in ("Dockerfile", "Dockerfile.dev"):
        text = (ROOT / name).read_text()
        assert f"ARG BASE_IMAGE={base.partition('@')[0]}\n" in text
        assert set(re.findall(r"^FROM (\S+)", text, re.M)) == {"$BASE_IMAGE"}


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EACH_WORKFLOW = pytest.mark.parametrize("path", WORKFLOWS, ids=[path.name for path in WORKFLOWS])


@EACH_WORKFLOW
def test_a_workflow_runs_what_was_reviewed_with_the_least_rights(path: Path) -> None:
    text = path.read_text()
    used = re.findall(r"uses: (.+)$", text, re.M)
    assert used
    for one in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        publishes = path.name == "ci.yml" and name == "publish"
        more = {"packages": "write"} if publishes else {}
        assert job["permissions"] == {"contents": "read", **more}
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_workflows_use_one_version_of_each_action() -> None:
    used = {one for path in WORKFLOWS for one in re.findall(r"uses: (.+)$", path.read_text(), re.M)}
    assert len(used) == len({one.partition("@")[0] for one in used})


def test_the_publishing_job_installs_and_tests_nothing() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["publish"]["steps"] if "run" in step]
    assert not [command for command in commands if re.search("pip|test |tests/|run_tests", command)
                and "opendify.__version__" not in command]  # fmt: skip


def test_kubernetes_knows_every_field() -> None:
    paths = [path for path in KUBERNETES.glob("*.yaml") if path.name != "kustomization.yaml"]
    run(require_program("kubernetes-validate"), "--strict", *paths)


def test_the_kubernetes_objects_fit_together_and_fit_the_application() -> None:
    found = documents()
    pod = found["Deployment", "opendify"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": 5000}]
    assert found["Service", "opendify"]["spec"]["ports"][0]["targetPort"] == "http"
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        path = container[kind]["httpGet"]["path"].partition("?")[0]
        assert path in known_paths()
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= waits + gunicorn_config.graceful_timeout + 10
    uid = re.search(r"^USER (\d+):", DOCKERFILE, re.MULTILINE)
    assert uid and pod["securityContext"]["runAsUser"] == int(uid[1])
    assert found["HorizontalPodAutoscaler", "opendify"]["spec"]["minReplicas"] == 3
    for one in found.values():
        for labels in (one.get("spec", {}).get("selector", {}).get("matchLabels"),):
            assert labels in (None, {"app": "opendify"}, {"app": "redis"})


def test_kustomize_puts_it_together(tmp_path: Path) -> None:
    """By kubectl, which holds a Kustomize."""
    folder = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    (folder / "secrets").mkdir()
    (folder / "secrets" / "model_config").write_text('{"m":"app-k"}')
    (folder / "secrets" / "api_keys").write_text("key")
    built = list(yaml.safe_load_all(run(require_program("kubectl"), "kustomize", folder)))
    objects = {document["kind"]: document for document in built}
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings, secret = objects["ConfigMap"]["metadata"]["name"], objects["Secret"]["metadata"]
    assert container["envFrom"] == [{"configMapRef": {"name": settings}}]
    assert pod["volumes"][0]["secret"]["secretName"] == secret["name"]
    assert {one["metadata"]["namespace"] for one in built if one["kind"] != "Namespace"} == {
        "opendify"
    }


def test_the_kustomization_names_files_and_settings_that_exist() -> None:
    text = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    there = {path.name for path in KUBERNETES.glob("*.yaml")}
    assert set(text["resources"]) == there - {"kustomization.yaml"}
    settings = dict(entry.split("=", 1) for entry in text["configMapGenerator"][0]["literals"])
    assert set(settings) <= known_variables()
    deployment = documents()["Deployment", "opendify"]["spec"]["template"]["spec"]
    (mount,) = [m for m in deployment["containers"][0]["volumeMounts"] if m["name"] == "secrets"]
    files = {path.split("/")[-1] for path in text["secretGenerator"][0]["files"]}
    named = {value for name, value in settings.items() if name.endswith("_FILE")}
    assert named == {f"{mount['mountPath']}/{name}" for name in files}
    assert "deploy/kubernetes/secrets/" in (ROOT / ".gitignore").read_text()


@EACH_WORKFLOW
def test_a_workflow_is_valid(path: Path) -> None:
    run(require_program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", path)
    commands = re.findall(r"run: (\S+/\S+|\./\S+)", path.read_text())
    for command in commands:
        assert command.startswith(".venv/") or os.access(ROOT / command, os.X_OK), command
    for test in re.findall(r"tests/\S+\.py", path.read_text()):
        assert (ROOT / test).is_file(), test


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "systemd" / "opendify.service").read_text()
    assert f"TimeoutStopSec={gunicorn_config.graceful_timeout + 10}\n" in text
    home = "/opt/opendify"
    for name in set(re.findall(rf"^ExecStart={home}/(\S+)", text, re.MULTILINE)):
        assert os.access(ROOT / name, os.X_OK)
    path = tmp_path / "opendify.service"
    path.write_text(text.replace(home, str(ROOT)).replace("=opendify\n", "=daemon\n"))
    assert run(require_program("systemd-analyze"), "verify", path) == ""


def test_the_application_goes_on_in_a_new_file_when_its_log_is_rotated(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o700)
    text = (ROOT / "deploy" / "logrotate" / "opendify").read_text()
    text = text.replace("/opt/opendify/logs", str(logs)).replace("    su opendify opendify\n", "")
    path = tmp_path / "rotation"
    path.write_text(text)
    path.chmod(0o600)
    settings = {
        "DIFY_API_BASE": "http://127.0.0.1:9/v1",
        "MODEL_CONFIG": '{"m":"app-k"}',
        "LOG_FILE": "logs/gunicorn.log",
        "GUNICORN_WORKERS": "1",
    }
    body = {"model": "nobody", "messages": [{"role": "user", "content": "Hi"}]}
    log = logs / "gunicorn.log"
    with running(tmp_path, settings) as service:
        url = f"{service.url}/v1/chat/completions"
        httpx.post(url, json=body, trust_env=False)
        before = once_written(log)
        run(require_program("logrotate"), "--force", "--state", tmp_path / "state", path)
        httpx.post(url, json=body, trust_env=False)
        assert once_written(log)
        assert (logs / "gunicorn.log.1").read_text().startswith(before)


def once_written(path: Path) -> str:
    """What is in a log, when there is something: the line of a request comes after its answer."""
    deadline = time.monotonic() + 20
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return path.read_text()
