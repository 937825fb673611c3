"""What the documents say of the code, held against the code."""

import ast
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

import opendify
from opendify import errors
from opendify.api.middleware.paths import MISSING
from opendify.config import id_headers
from opendify.config.models import SETTINGS
from opendify.config.settings import load_settings

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")
FOLDERS_OF_OTHERS = {"node_modules", "build", "dist", "data", "logs"}

CONFIGURATION = (
    ROOT / "main.py",
    ROOT / "gunicorn_config.py",
    *sorted((ROOT / "opendify/config").glob("*.py")),
)
SET_BY_THE_SUPERVISOR = {"GUNICORN_FD", "LISTEN_FDS"}
MINIMAL = {"DIFY_API_BASE": "https://dify.example.com/v1", "MODEL_CONFIG": '{"m":"app-k"}'}

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def documents() -> list[Path]:
    return [
        path
        for path in sorted(ROOT.rglob("*.md"))
        if not any(
            part.startswith(".") or part in FOLDERS_OF_OTHERS
            for part in path.relative_to(ROOT).parts
        )
    ]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of every table."""
    for line in FENCE.sub("", text).splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ .+$", FENCE.sub("", text), re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    titles = (line.lstrip("#").strip() for line in headings(path.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def variables_of_the_code() -> set[str]:
    found: set[str] = set()
    for path in CONFIGURATION:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"\A[A-Z]+(?:_[A-Z]+)+\Z|\AENVIRONMENT\Z", node.value))
    return found - SET_BY_THE_SUPERVISOR


def variables_of_compose() -> set[str]:
    return {
        name
        for path in ROOT.glob("docker-compose*.yml")
        for name in re.findall(r"\$\{([A-Z_]+)", path.read_text(encoding="utf-8"))
    }


def variables_of_the_table(name: str) -> dict[str, str]:
    """Each variable of a README's table, and its default."""
    found = {}
    for first, *rest in rows(read(name)):
        if match := re.fullmatch(r"`([A-Z]+(?:_[A-Z]+)*)`", first):
            assert match[1] not in found, f"{match[1]} is told twice in {name}"
            found[match[1]] = rest[0]
    return found


def defaults_of_the_code(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    for name in variables_of_the_code():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    server = runpy.run_path(str(ROOT / "gunicorn_config.py"))
    settings = load_settings(MINIMAL)
    return {
        "DIFY_READ_TIMEOUT": settings.read_timeout,
        "SERVER_HOST": settings.server_host,
        "SERVER_PORT": settings.server_port,
        "GUNICORN_THREADS": server["threads"],
        "GUNICORN_TIMEOUT": server["timeout"],
        "GUNICORN_GRACEFUL_TIMEOUT": server["graceful_timeout"],
        "GUNICORN_KEEPALIVE": server["keepalive"],
        "GUNICORN_MAX_REQUESTS": server["max_requests"],
        "GUNICORN_MAX_REQUESTS_JITTER": server["max_requests_jitter"],
        "GUNICORN_RELOAD": str(server["reload"]).lower(),
        "MAX_ANSWER_MB": settings.max_answer_chars // 1024**2,
        "MAX_BODY_MB": settings.max_body_bytes // 1024**2,
        "MAX_TEXT_MB": settings.max_text_bytes // 1024**2,
        "MAX_CONCURRENT_STREAMS": settings.max_concurrent_streams,
        "LOG_LEVEL": settings.log_level,
        "DATA_DIR": settings.data_dir,
        "MAPPING_MAX_AGE_DAYS": settings.mapping_max_age_days,
        "MAPPING_MAX_ENTRIES": settings.mapping_max_entries,
        "FILE_CACHE_MB": settings.file_cache_bytes // 1024**2,
        "FILES_ONLY_QUERY": settings.files_only_query,
        "HISTORY_MAX_CHARS": settings.models["m"].history_max_chars,
        "CHAT_ID_HEADERS": id_headers.DEFAULT_CHAT,
        "USER_ID_HEADERS": id_headers.DEFAULT_USER,
        "MESSAGE_ID_HEADERS": id_headers.DEFAULT_MESSAGE,
        "PARENT_ID_HEADERS": id_headers.DEFAULT_PARENT,
    }


def all_errors(root: type[errors.OpenDifyError]) -> Iterator[type[errors.OpenDifyError]]:
    for error in root.__subclasses__():
        yield error
        yield from all_errors(error)


@pytest.mark.parametrize("name", READMES)
def test_every_variable_of_the_code_is_in_the_table_and_vice_versa(name: str) -> None:
    assert set(variables_of_the_table(name)) == variables_of_the_code()


def test_every_variable_of_the_code_is_in_the_example_and_vice_versa() -> None:
    example = re.findall(r"^#?([A-Z][A-Z_]*)=", read(".env.example"), re.MULTILINE)
    assert sorted(example) == sorted(variables_of_the_code() | variables_of_compose())


@pytest.mark.parametrize("name", READMES)
def test_the_defaults_in_the_table_are_those_of_the_code(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = variables_of_the_table(name)
    for variable, default in defaults_of_the_code(monkeypatch, tmp_path).items():
        assert told[variable] == f"`{default}`", variable


def routes_of(app: Flask) -> set[str]:
    return {
        f"{method} {re.sub(r'<[^>]*>', '{}', rule.rule)}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


@pytest.mark.parametrize("name", READMES)
def test_every_route_is_in_the_table_and_vice_versa(name: str, app: Flask) -> None:
    told = {
        re.sub(r"\{[^}]*\}", "{}", match[1])
        for first, *_ in rows(read(name))
        if (match := re.fullmatch(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`]*)`", first))
    }
    assert told == routes_of(app)


@pytest.mark.parametrize("name", READMES)
def test_every_missing_endpoint_is_in_the_table_and_vice_versa(name: str) -> None:
    told = {
        path.split("/")[2]
        for first, *_ in rows(read(name))
        for path in re.findall(r"`(/v1/[a-z_/]+)`", first)
    }
    assert told == set(MISSING)


def test_every_route_is_in_openapi_json_and_vice_versa(app: Flask) -> None:
    described = json.loads(read("opendify/api/openapi.json"))
    told = {
        f"{method.upper()} {re.sub(r'{[^}]*}', '{}', path)}"
        for path, methods in described["paths"].items()
        for method in methods
    }
    assert told == routes_of(app)
    assert described["info"]["version"] == opendify.__version__


@pytest.mark.parametrize("name", READMES)
def test_every_error_code_is_in_the_table_with_its_status(name: str) -> None:
    told = {
        (int(cells[1]), cells[2].strip("`"))
        for cells in rows(read(name))
        if len(cells) == 3 and re.fullmatch(r"[45]\d\d", cells[1])
    }
    known = {
        (error.status, error.default_code)
        for error in all_errors(errors.OpenDifyError)
        if error.default_code
    }
    assert told == known


@pytest.mark.parametrize("name", READMES)
def test_every_example_of_model_config_is_accepted(name: str) -> None:
    text = read(name)
    after = text[text.index("\n## Models" if name == "README.md" else "\n## 模型") :]
    examples = re.findall(r"^```json\n(.*?)\n```$", after.split("\n## ")[1], re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        assert load_settings({**MINIMAL, "MODEL_CONFIG": example}).models


@pytest.mark.parametrize("name", READMES)
def test_every_setting_of_a_model_is_documented_with_its_default(name: str) -> None:
    told = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(read(name))}
    model = load_settings(MINIMAL).models["m"]
    assert told["inputs"] == "{}"
    for setting in SETTINGS:
        default = getattr(model, setting, "")
        if setting not in ("key", "base", "name") and default and isinstance(default, str):
            assert told[setting] == default
        assert told[setting]


def test_the_python_examples_are_python() -> None:
    examples = re.findall(r"^```python\n(.*?)^```$", read("README.md"), re.M | re.S)
    assert len(examples) == 2
    for example in examples:
        compile(example, "README.md", "exec")


def test_both_readmes_have_the_same_headings_and_tables() -> None:
    english, chinese = (read(name) for name in READMES)
    levels = [[line.split()[0] for line in headings(text)] for text in (english, chinese)]
    assert levels[0] == levels[1]
    assert [len(cells) for cells in rows(english)] == [len(cells) for cells in rows(chinese)]


def test_both_readmes_have_the_same_code_blocks() -> None:
    english, chinese = (FENCE.findall(read(name)) for name in READMES)
    assert english == chinese
    assert english


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path: Path) -> None:
    dead = []
    for link in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_every_package_is_in_the_tree_of_the_architecture_and_vice_versa() -> None:
    packages = {f"{path.parent.name}/" for path in (ROOT / "opendify").rglob("__init__.py")}
    assert set(re.findall(r"^ *(\w+/)", tree_of_the_architecture(), re.MULTILINE)) == packages


def test_every_module_is_in_the_tree_of_the_architecture() -> None:
    packages = re.split(r"^  (?=\w+/)", tree_of_the_architecture(), flags=re.MULTILINE)
    top, *rest = packages
    named = {part.partition("/")[0]: set(re.findall(r"\w+", part)) for part in rest}
    for path in (ROOT / "opendify").rglob("[!_]*.py"):
        package, *inner = path.relative_to(ROOT / "opendify").parts
        assert path.name in top if not inner else path.stem in named[package], path


def tree_of_the_architecture() -> str:
    after = read("docs/architecture.md").split("\n## The tree\n")[1]
    return FENCE.findall(after)[0].strip("`\n")


def test_every_test_that_proves_a_promise_is_there() -> None:
    for name, test in re.findall(r"`(tests/\S+\.py)::(\w+)`", read("docs/faults.md")):
        assert re.search(rf"^def {test}\(", read(name), re.MULTILINE), f"{name}::{test}"
