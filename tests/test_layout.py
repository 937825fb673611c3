"""Who may know whom, and where the doors to the outside are."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.service import ROOT, environment, free_variables

# From the bottom to the top. A line of imports only ever points down, or stays in its package;
# rooms that stand side by side do not know each other.
FLOORS = [
    [
        "opendify",
        "opendify.errors",
        "opendify.keys",
        "opendify.logs",
        "opendify.request_ids",
        "opendify.sse",
        "opendify.steps",
    ],
    ["opendify.serving"],
    ["opendify.capacity", "opendify.config", "opendify.dify", "opendify.protocols.base"],
    ["opendify.conversations"],
    ["opendify.files", "opendify.inputs", "opendify.openwebui", "opendify.tasks"],
    ["opendify.telling", "opendify.limits"],
    ["opendify.continuity", "opendify.protocols"],
    ["opendify.openai"],
    ["opendify.unsettled"],
    ["opendify.translate", "opendify.callers", "opendify.chats", "opendify.upstream"],
    ["opendify.administration", "opendify.deploy", "opendify.monitoring"],
    ["opendify.exchange"],
    ["opendify.chores"],
    ["opendify.chat"],
    ["opendify.web"],
    ["main", "opendify.__main__"],
]

# These compute and nothing else.
PURE = [
    "opendify.errors",
    "opendify.sse",
    "opendify.steps",
    "opendify.serving.chunks",
    "opendify.upstream.transport.response_reader",
    "opendify.upstream.unpacking",
    "opendify.openwebui",
    "opendify.tasks",
    "opendify.translate",
    "opendify.telling",
    "opendify.protocols",
    "opendify.inputs",
    "opendify.continuity",
    "opendify.unsettled",
    "opendify.files.acceptance",
    "opendify.files.content",
    "opendify.files.inline",
    "opendify.files.intake",
    "opendify.files.links",
    "opendify.files.media",
    "opendify.files.names",
    "opendify.files.placing",
    "opendify.files.tickets",
    "opendify.dify",
    "opendify.openai",
    "opendify.config.ca_files",
    "opendify.config.models",
    "opendify.config.proxies",
    "opendify.config.settings",
    "opendify.config.store_address",
    "opendify.config.callers",
    "opendify.config.secret_files",
    "opendify.config.values",
    "opendify.callers",
    "opendify.deploy.masking",
    "opendify.deploy.messages",
    "opendify.keys",
    "opendify.monitoring.record",
    "opendify.request_ids",
    "opendify.conversations.contract",
    "opendify.conversations.mapping",
    "opendify.conversations.owners",
    "opendify.conversations.uses",
    "opendify.conversations.whose",
]
DOORS = {
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
        "opendify.web.access",
        "opendify.web.app",
        "opendify.web.chat_completions",
        "opendify.web.error_handlers",
        "opendify.web.models",
        "opendify.web.responder",
        "opendify.web.body",
        "opendify.web.cors",
        "opendify.web.description",
        "opendify.web.files",
        "opendify.web.monitoring",
        "opendify.web.operator",
        "opendify.web.origins",
        "opendify.web.recording",
        "opendify.web.resources",
        "opendify.web.stepped",
    },
    "werkzeug": {"opendify.web.error_handlers", "opendify.web.files"},
    "httpx": {
        "opendify.deploy.online",
        "opendify.upstream.client",
        "opendify.upstream.network_errors",
        "opendify.upstream.stream",
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
        "opendify.dify.events",
        "opendify.openai.json_object",
        "opendify.sse",
        "opendify.telling.tellings",
    },
    "dotenv": {"opendify.config.environment", "opendify.deploy.env_files"},
    "limits": {"opendify.limits.rates"},
    "jwt": {"opendify.openwebui"},
    "prometheus_client": {"opendify.monitoring.folding", "opendify.monitoring.metrics"},
    "fcntl": {
        "opendify.monitoring.folder",
        "opendify.conversations.folder",
        "opendify.conversations.turn_locks",
        "opendify.serving.retirement",
    },
    "mmap": {"opendify.serving.board"},
    "gunicorn": {
        "opendify.serving.access_log",
        "opendify.serving.answer",
        "opendify.serving.connection",
        "opendify.serving.head",
        "opendify.serving.intake",
        "opendify.serving.pages",
        "opendify.serving.waiting",
        "opendify.serving.worker",
        "opendify.web.body",
    },
    "redis": {"opendify.conversations.redis_link", "opendify.conversations.redis_shelf"},
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


def is_within(name: str, room: str) -> bool:
    return name == room or (room != "opendify" and name.startswith(f"{room}."))


def room(name: str) -> str:
    return next(room for floor in FLOORS for room in floor if is_within(name, room))


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if any(is_within(name, r) for r in rooms))


PURE_MODULES = [name for name in PATHS if any(is_within(name, pure) for pure in PURE)]


@pytest.mark.parametrize("name", PATHS)
def test_every_module_has_its_place_and_its_imports_point_down(name: str) -> None:
    for found in ours(name):
        assert room(found) == room(name) or floor(found) < floor(name), f"{name} imports {found}"


def test_no_module_reaches_itself() -> None:
    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for found in sorted(ours(name)):
                visit(found, (*above, name))
            done.add(name)

    done: set[str] = set()
    for name in PATHS:
        visit(name, ())
    assert done == set(PATHS)


@pytest.mark.parametrize("name", PURE_MODULES)
def test_the_inside_does_no_io(name: str) -> None:
    assert not foreign(name) & DOORS
    assert not set(called(name)) & {"open", "print", "input", "exec", "eval", "__import__"}
    for found in ours(name):
        assert found in PURE_MODULES or found == "opendify", f"{name} imports {found}"


@pytest.mark.parametrize("name", PURE_MODULES)
def test_a_room_without_io_says_so(name: str) -> None:
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
    rooms = (
        "access",
        "body",
        "error_handlers",
        "files",
        "origins",
        "recording",
        "resources",
        "responder",
    )
    readers -= {f"opendify.web.{room}" for room in rooms}
    assert readers == {
        "main",
        "opendify.__main__",
        "opendify.config.environment",
        "opendify.config.__main__",
        "opendify.conversations.transfer",
        "opendify.deploy.__main__",
        "opendify.monitoring",  # prometheus_client takes its folder from there
        "opendify.monitoring.folder",
    }


def test_the_worker_and_the_application_do_not_know_each_other() -> None:
    for name in PATHS:
        for found in ours(name):
            if found != "opendify.steps":  # what the two have agreed upon
                assert is_within(name, "opendify.serving") == is_within(found, "opendify.serving")


def test_no_response_owns_what_its_request_holds() -> None:
    """Werkzeug does not call ``call_on_close`` of every response; web/resources.py is the owner."""
    for name in PATHS:
        names = {node.attr for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute)}
        assert not names & {"call_on_close", "direct_passthrough"}, name


def test_there_is_one_flask_app() -> None:
    assert [name for name in PATHS for function in called(name) if function == "Flask"] == [
        "opendify.web.app"
    ]


@pytest.mark.parametrize("name", PATHS)
def test_nothing_is_imported_within_a_function(name: str) -> None:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inner, f"{name}.{node.name}"


@pytest.mark.parametrize("name", PATHS)
def test_no_room_is_named_undecided(name: str) -> None:
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


def test_importing_the_rooms_needs_no_configuration() -> None:
    rooms = sorted(name for name in PATHS if name != "main" and not name.endswith("__main__"))
    done = run_python(f"import {', '.join(rooms)}")
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
