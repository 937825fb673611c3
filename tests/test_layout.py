"""Which modules may import which libraries, and what every module keeps to."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.service import ROOT, environment, free_variables

# These compute and nothing else.
PURE = [
    "opendify.errors",
    "opendify.sse",
    "opendify.streaming",
    "opendify.worker.chunked",
    "opendify.upstream.transport.response_reader",
    "opendify.upstream.unpacking",
    "opendify.protocols.openwebui",
    "opendify.chat.task_detection",
    "opendify.chat.client_tasks",
    "opendify.chat.tasks",
    "opendify.chat.dify_request",
    "opendify.rendering",
    "opendify.protocols",
    "opendify.chat.form_inputs",
    "opendify.chat.history_frame",
    "opendify.conversations.branches",
    "opendify.conversations.fingerprint",
    "opendify.conversations.unsettled",
    "opendify.files.file_rules",
    "opendify.files.content",
    "opendify.files.link_rewriter",
    "opendify.files.attachments",
    "opendify.files.links",
    "opendify.files.icons",
    "opendify.files.media",
    "opendify.files.names",
    "opendify.files.input_placement",
    "opendify.files.signed_links",
    "opendify.dify",
    "opendify.protocols.openai",
    "opendify.config.ca_files",
    "opendify.config.aliases",
    "opendify.config.history_words",
    "opendify.config.id_headers",
    "opendify.config.models",
    "opendify.config.proxies",
    "opendify.config.settings",
    "opendify.config.redis_url",
    "opendify.config.accounts",
    "opendify.config.secret_files",
    "opendify.config.parsing",
    "opendify.auth.accounts",
    "opendify.deploy.masking",
    "opendify.deploy.messages",
    "opendify.auth.api_keys",
    "opendify.observability.record",
    "opendify.observability.request_ids",
    "opendify.conversations.store.base",
    "opendify.conversations.store.records",
    "opendify.conversations.store.owners",
    "opendify.conversations.store.mutations",
    "opendify.conversations.keys",
]
DOING_IO = {
    "httpx",
    "httpcore",
    "flask",
    "werkzeug",
    "gunicorn",
    "os",
    "io",
    "pathlib",
    "time",
    "datetime",
    "random",
    "secrets",
    "uuid",
    "socket",
    "select",
    "ssl",
    "logging",
    "threading",
    "subprocess",
    "dotenv",
}
ONLY_IN = {
    "flask": {
        "opendify.api.middleware.auth",
        "opendify.app",
        "opendify.api.chat_completions",
        "opendify.api.completions",
        "opendify.api.dialect",
        "opendify.api.messages",
        "opendify.api.middleware.error_handlers",
        "opendify.api.models",
        "opendify.api.responder",
        "opendify.api.request_body",
        "opendify.api.middleware.cors",
        "opendify.api.openapi",
        "opendify.api.files",
        "opendify.api.health",
        "opendify.api.admin",
        "opendify.api.middleware.origins",
        "opendify.api.middleware.request_log",
        "opendify.api.resources",
        "opendify.api.streaming_response",
    },
    "werkzeug": {"opendify.api.middleware.error_handlers", "opendify.api.files"},
    "httpx": {
        "opendify.app",
        "opendify.deploy.online",
        "opendify.upstream.client",
        "opendify.upstream.network_errors",
        "opendify.upstream.event_stream",
        "opendify.upstream.tls",
        "opendify.upstream.transport.connector",
        "opendify.upstream.transport.pending_response",
        "opendify.upstream.transport.pool",
        "opendify.upstream.transport.proxy",
        "opendify.upstream.transport.request_writer",
        "opendify.upstream.transport.transport",
        "main",
    },
    "httpcore": {
        "opendify.upstream.transport.connection",
        "opendify.upstream.transport.connector",
        "opendify.upstream.transport.proxy",
    },
    "h11": {"opendify.upstream.transport.response_reader"},
    "socksio": {"opendify.upstream.transport.proxy"},
    "msgspec": {
        "opendify.dify.decoding",
        "opendify.dify.events",
        "opendify.protocols.json_object",
        "opendify.sse",
        "opendify.rendering.deltas",
    },
    "dotenv": {"opendify.config.dotenv", "opendify.deploy.env_files"},
    "limits": {"opendify.limits.rate"},
    "jwt": {"opendify.protocols.openwebui"},
    "prometheus_client": {"opendify.observability.dead_workers", "opendify.observability.metrics"},
    "fcntl": {
        "opendify.observability.multiprocess_dir",
        "opendify.storage.data_dir",
        "opendify.conversations.locks.files",
        "opendify.worker.recycling",
    },
    "mmap": {"opendify.worker.scoreboard"},
    "gunicorn": {"opendify.worker.gunicorn_api"},
    "redis": {"opendify.storage.redis_connection", "opendify.conversations.store.redis_schema"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {
    module_name(path): path
    for path in [ROOT / "main.py", *sorted((ROOT / "opendify").rglob("*.py"))]
}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(PATHS[name].read_text())


def imports(name: str) -> Iterator[str]:
    """The full names of all modules that a module imports."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in PATHS else str(node.module)


@cache
def ours(name: str) -> set[str]:
    return {found for found in imports(name) if found in PATHS and found != name}


@cache
def foreign(name: str) -> set[str]:
    return {found.partition(".")[0] for found in imports(name) if found not in PATHS}


def is_within(name: str, package: str) -> bool:
    return name == package or (package != "opendify" and name.startswith(f"{package}."))


PURE_MODULES = [name for name in PATHS if any(is_within(name, pure) for pure in PURE)]


def test_imports_point_down() -> None:
    """The layers are in pyproject.toml."""
    program = str(Path(sys.executable).with_name("lint-imports"))
    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PURE_MODULES)
def test_the_inside_does_no_io(name: str) -> None:
    assert not foreign(name) & DOING_IO
    assert not set(called(name)) & {"open", "print", "input", "exec", "eval", "__import__"}
    for found in ours(name):
        assert found in PURE_MODULES or found == "opendify", f"{name} imports {found}"


@pytest.mark.parametrize("name", PURE_MODULES)
def test_a_module_without_io_declares_it(name: str) -> None:
    assert "No I/O" in (ast.get_docstring(tree(name)) or "")


def called(name: str) -> list[str]:
    """The plain names that a module calls."""
    calls = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Call)]
    return [call.func.id for call in calls if isinstance(call.func, ast.Name)]


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_only_where_it_belongs(library: str) -> None:
    assert {name for name in PATHS if library in foreign(name)} == ONLY_IN[library]


def test_the_environment_is_read_at_the_edge_only() -> None:
    readers = set()
    for name in PATHS:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                readers |= {name} if isinstance(node.value, ast.Name) else set()
    # request.environ is Flask's
    readers = {name for name in readers if not is_within(name, "opendify.api")}
    assert readers == {
        "main",
        "opendify.config.dotenv",
        "opendify.config.__main__",
        "opendify.conversations.migrate",
        "opendify.deploy.__main__",
        "opendify.observability",  # prometheus_client takes its folder from there
        "opendify.observability.multiprocess_dir",
    }


def test_no_response_owns_what_its_request_holds() -> None:
    """Werkzeug does not call ``call_on_close`` of every response; api/resources.py is the owner."""
    for name in PATHS:
        names = {node.attr for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute)}
        assert not names & {"call_on_close", "direct_passthrough"}, name


def test_there_is_one_flask_app() -> None:
    assert [name for name in PATHS for function in called(name) if function == "Flask"] == [
        "opendify.app"
    ]


@pytest.mark.parametrize("name", PATHS)
def test_nothing_is_imported_within_a_function(name: str) -> None:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inner, f"{name}.{node.name}"


@pytest.mark.parametrize("name", PATHS)
def test_no_module_has_a_meaningless_name(name: str) -> None:
    assert not {"utils", "util", "helpers", "common", "misc", "constants"} & set(name.split("."))


@pytest.mark.parametrize("name", PATHS)
def test_functions_are_short(name: str) -> None:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{name}.{node.name}"


@pytest.mark.parametrize("name", PATHS)
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(tree(name))


def test_every_library_is_in_the_requirements() -> None:
    used = set().union(*(foreign(name) for name in PATHS)) - set(sys.stdlib_module_names)
    text = (ROOT / "requirements.txt").read_text()
    listed = set(re.findall(r"^[\w-]+", text, re.MULTILINE))
    packages = {
        "dotenv": "python-dotenv",
        "gunicorn_config": "gunicorn",
        "jwt": "pyjwt",
        "prometheus_client": "prometheus-client",
        "werkzeug": "flask",
    }
    assert {packages.get(name, name) for name in used} <= listed


LOOK = """
import json, os, ssl, threading

def opened():
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # the listing's own
            continue
    return sorted(names), threading.active_count()

before = opened()
import main
print(json.dumps([before, opened()]))
"""


@pytest.mark.parametrize("store", ["file", "redis://127.0.0.1:1/0"])
def test_importing_the_application_opens_nothing(tmp_path: Path, store: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOOK],
        cwd=tmp_path,
        env=environment(
            **free_variables(
                "http://127.0.0.1:9/v1", CONVERSATION_STORE=store, SERVER_HOST="127.0.0.1"
            )
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert after == before
    assert list(tmp_path.iterdir()) == []


def test_importing_the_packages_needs_no_configuration() -> None:
    modules = sorted(name for name in PATHS if name != "main" and not name.endswith("__main__"))
    done = run_python(f"import {', '.join(modules)}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_application_without_configuration_names_what_is_missing() -> None:
    done = run_python("import main")
    assert done.returncode != 0
    assert "MODEL_CONFIG is not set" in done.stderr
    assert "DIFY_API_BASE is not set" in done.stderr


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd="/",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
