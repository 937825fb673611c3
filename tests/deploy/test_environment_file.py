"""One file, read alike by python-dotenv, bash, Compose, deploy.sh and, through it, docker run."""

import json
import shutil
import subprocess
import tempfile
from io import StringIO
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opendify.config.dotenv import load_environment
from opendify.deploy.env_files import parse
from tests.support.profiles import examples

from .conftest import GOOD, ROOT, Host
from .fake_docker import OLD

names = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=30
).filter(lambda name: name != "done" and name.isprintable())
keys = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)


def read_by_deploy(path: Path) -> dict[str, str]:
    return parse(path.read_bytes().decode())


def read_by_bash(path: Path) -> str:
    script = '. "$1"; printf %s "$MODEL_CONFIG"'
    return subprocess.run(
        ["bash", "-c", script, "_", str(path)], capture_output=True
    ).stdout.decode()


def read_by_compose(path: Path) -> str:
    (path.parent / "compose.yml").write_text(
        "services: {one: {image: x, env_file: .env.production}}\n"
    )
    words = ["docker-compose", "-f", str(path.parent / "compose.yml"), "config", "--format", "json"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["services"]["one"]["environment"]["MODEL_CONFIG"].replace(
        "$$", "$"
    )


def set_up(folder: Path, models: dict[str, str]) -> Path:
    """Types the models into setup."""
    answers = "".join(f"{name}\n{key}\n" for name, key in models.items())
    path = folder / ".env.production"
    done = subprocess.run(
        ["bash", str(ROOT / "deploy.sh"), "setup", "--env-file", str(path), "--quiet", "--yes"],
        input=f"https://a.example/v1\n{answers}done\n".encode(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    return path


@given(st.dictionaries(names, keys, min_size=1, max_size=15))
@settings(max_examples=examples(8), suppress_health_check=[HealthCheck.too_slow])
def test_what_is_typed_is_what_every_reader_gets(models: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = set_up(Path(folder), models)
        texts = {
            "python-dotenv": dotenv_values(path)["MODEL_CONFIG"],
            "deploy.sh": read_by_deploy(path)["MODEL_CONFIG"],
            "bash": read_by_bash(path),
        }
        if shutil.which("docker-compose"):
            texts["compose"] = read_by_compose(path)
    assert len(set(texts.values())) == 1, texts
    assert json.loads(texts["bash"]) == models


def test_the_hardest_key_and_compose(tmp_path: Path) -> None:
    models = {"中文 🙂": "app-'\"\\$x`#${HOME}", "a/b:c": "$(id)"}
    path = set_up(tmp_path, models)
    assert json.loads(read_by_bash(path)) == models
    if shutil.which("docker-compose"):
        assert json.loads(read_by_compose(path)) == models


HAND_MADE = [
    "A=plain",
    "A = spaced",
    "export A=exported",
    'A="double"',
    "A='single'",
    "A='with # hash' # and a comment",
    'A="quoted" # comment',
    "A=ab #c",
    "A=ab#c",
    "A=#c",
    "A=trailing   ",
    "A=",
    "A=''",
    r"A='it\'s'",
    r'A="a \"b\" c"',
    r'A="tab\tend"',
    r"A='no \n escape'",
    r"A='back\\slash'",
    "A=pa$HOME",
    'A=\'{"m":"k"}\'',
    'A={"m":"k"}',
    "A=one\nA=two",
    "\ufeffA=bom",
    "A=crlf\r\nB=x\r\n",
    "# A=comment\n\n  # more\nB=x",
    "A=ünïcode 中文",
    "A==x=y",
]


@pytest.mark.parametrize("text", HAND_MADE, ids=repr)
def test_hand_made_files_mean_what_the_application_makes_of_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "env"
    path.write_bytes((text + "\n").encode())
    expected = dict(dotenv_values(stream=StringIO(text.removeprefix("\ufeff")), interpolate=False))
    assert read_by_deploy(path) == expected


@pytest.mark.parametrize(
    "text", ["A", "A='open", 'A="open', "A='a'b", "1A=x", "A B=x", "A='a\nb'", "=x"], ids=repr
)
def test_a_line_that_cannot_be_read_is_named_and_never_shown(host: Host, text: str) -> None:
    host.configure("LOG_LEVEL=info\n" + text + "-secret\n")
    done = host.run("check", code=65)
    assert "2" in done.stderr and "secret" not in done.stderr


def test_a_value_is_never_executed(host: Host) -> None:
    victim = host.folder / "victim"
    host.configure(
        f'DIFY_API_BASE="https://a.example/v1"\nMODEL_CONFIG=\'{{"m":"app-k12"}}\'\n'
        f"X=$(touch {victim})\nY=`touch {victim}`\n"
    )
    host.run("check")
    assert not victim.exists()


def test_all_problems_are_reported_together(host: Host) -> None:
    host.configure('DIFY_API_BASE=ftp://x\nMODEL_CONFIG={}\nSERVER_PORT=x\nA="a\\nb"\n')
    done = host.run("check", code=65)
    for word in ("DIFY_API_BASE", "MODEL_CONFIG", "SERVER_PORT", "A 的值"):
        assert word in done.stderr
    assert done.stderr.count("  - ") == 4


def test_a_model_without_a_key_is_named(host: Host) -> None:
    host.configure('DIFY_API_BASE=https://x/v1\nMODEL_CONFIG={"gpt":"","b":{"type":"chat"}}\n')
    done = host.run("check", code=65)
    assert "gpt" in done.stderr and "模型 b" in done.stderr


def test_where_callers_bring_their_keys_models_need_none(host: Host) -> None:
    models = 'DIFY_API_BASE=https://127.0.0.1:9/v1\nMODEL_CONFIG={"m":{}}\nDIFY_KEY_PASSTHROUGH='
    host.configure(f"{models}'true'\n")
    host.run("check")
    assert "m: " in host.run("check", "--online").stdout
    host.configure(f"{models}false\n")
    assert "m" in host.run("check", code=65).stderr


def test_models_may_each_have_a_dify_of_their_own(host: Host) -> None:
    one = '"a":{"key":"app-k1","base":"https://x/v1"}'
    host.configure(f"MODEL_CONFIG={{{one}}}\n")
    host.run("check")
    host.configure(f'MODEL_CONFIG={{{one},"b":"app-k2"}}\n')
    assert "DIFY_API_BASE" in host.run("check", code=65).stderr


def test_a_missing_file_says_what_to_run(host: Host) -> None:
    assert "./deploy.sh setup" in host.run("deploy", code=65).stderr


def test_models_in_a_file_of_this_host_go_in_as_text(host: Host) -> None:
    (host.folder / "models.json").write_text('{\n "gpt-4": "app-file-key-123"\n}\n')
    (host.folder / "callers").write_text("one\ntwo\n")
    host.configure(
        "DIFY_API_BASE=https://x/v1\nMODEL_CONFIG_FILE=models.json\n"
        "OPENDIFY_API_KEYS_FILE=callers\nSERVER_PORT=59871\n"
    )
    host.run("deploy")
    environment = host.containers()["opendify"]["environment"]
    assert environment["MODEL_CONFIG"] == '{"gpt-4":"app-file-key-123"}'
    assert environment["OPENDIFY_API_KEYS"] == "one,two"
    assert "MODEL_CONFIG_FILE" not in environment


def test_both_forms_at_once_are_refused(host: Host) -> None:
    host.configure(
        'DIFY_API_BASE=https://x/v1\nMODEL_CONFIG={"m":"app-k"}\nMODEL_CONFIG_FILE=models.json\n'
    )
    assert "MODEL_CONFIG_FILE" in host.run("check", code=65).stderr
    host.configure("DIFY_API_BASE=https://x/v1\nMODEL_CONFIG_FILE=nowhere.json\n")
    assert "nowhere.json" in host.run("check", code=65).stderr


@pytest.mark.parametrize("name", ["MODEL_CONFIG", "OPENDIFY_API_KEYS", "OPENDIFY_ADMIN_KEYS"])
def test_an_empty_file_is_not_taken_for_no_wish(host: Host, name: str) -> None:
    """Without keys the door would be open."""
    (host.folder / "secret").write_text("\n")
    models = "" if name == "MODEL_CONFIG" else GOOD.splitlines()[1]
    host.configure(f"DIFY_API_BASE=https://x/v1\n{models}\n{name}_FILE=secret\n")
    assert f"{name}_FILE" in host.run("check", code=65).stderr


@pytest.mark.parametrize(
    "keys",
    [
        "first-key-of-them,second-key-of-them",
        '{"a":"first-key-of-them","b":{"models":["gpt-4"],"keys":["x1","second-key-of-them"]}}',
        '{"a":["first-key-of-them"], "b":{"keys":"second-key-of-them"}}',
    ],
)
def test_keys_of_callers_are_masked_however_they_are_written(host: Host, keys: str) -> None:
    (host.folder / "admins").write_text("an-admin-of-all\n")
    host.configure(f"{GOOD}OPENDIFY_API_KEYS='{keys}'\nOPENDIFY_ADMIN_KEYS_FILE=admins\n")
    leaks = "first-key-of-them second-key-of-them an-admin-of-all gpt-4"
    host.change(log_leaks=leaks, behaviour={OLD: {"trial": "crash"}})
    said = host.run("deploy", code=1).stderr
    assert "boot failed: key …them …them …-all gpt-4" in said


def test_other_secrets_are_masked_too(host: Host) -> None:
    host.configure(
        f"{GOOD}OPENWEBUI_JWT_SECRET=signs-the-users-of-all-who-come-here\nOPENDIFY_SECRET=signs-the-links-of-all\n"
        "CONVERSATION_STORE=redis://user:password-of-redis@r:6379/0\n"
        "HTTPS_PROXY=http://me:password-of-proxy@p:1\n"
    )
    leaks = (
        "signs-the-users-of-all-who-come-here signs-the-links-of-all user:password-of-redis@r "
        "password-of-proxy"
    )
    host.change(log_leaks=leaks, behaviour={OLD: {"trial": "crash"}})
    said = host.run("deploy", code=1).stderr
    assert "signs" not in said and "password" not in said and "user:" in said


def test_the_application_forgives_the_quotes_that_docker_run_leaves(tmp_path: Path) -> None:
    path = set_up(tmp_path, {"m": "app-k"})
    raw = dict(line.split("=", 1) for line in path.read_text().splitlines())
    load_environment(raw)
    assert raw["SERVER_HOST"] == "0.0.0.0" and json.loads(raw["MODEL_CONFIG"]) == {"m": "app-k"}
