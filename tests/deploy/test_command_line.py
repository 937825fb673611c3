"""What deploy.sh makes of its arguments, and how it answers."""

import re
import subprocess

import pytest

from .conftest import GOOD, ROOT, Host

SCRIPT = (ROOT / "deploy.sh").read_text()
VERBS = re.search(r"readonly VERBS='([^']+)'", SCRIPT)
assert VERBS


@pytest.mark.parametrize("words", [["help"], ["-h"], ["--help"], ["deploy", "--help"]])
def test_help_goes_to_standard_output(host: Host, words: list[str]) -> None:
    done = host.run(*words)
    assert done.stderr == ""
    for verb in VERBS[1].split():
        assert verb in done.stdout
    assert "#zh" not in done.stdout


def test_a_call_without_arguments_shows_the_usage(host: Host) -> None:
    done = host.run(code=64)
    assert done.stdout == "" and "用法" in done.stderr


def test_both_languages_tell_the_same_options(host: Host) -> None:
    def options(text: str) -> set[str]:
        return set(re.findall(r"--[a-z-]+", text))

    chinese, english = host.run("help").stdout, host.run("help", "--lang", "en").stdout
    assert options(chinese) == options(english)


def test_every_option_is_in_the_help(host: Host) -> None:
    tables = re.findall(r"readonly (?:VALUE|FLAG)_OPTIONS='([^']+)'", SCRIPT)
    names = {entry.split(":")[0] for table in tables for entry in table.split()}
    told = host.run("help", "--lang", "en").stdout
    short = {"tail": "-n", "follow": "-f"}
    assert not [name for name in names if short.get(name, f"--{name}") not in told]


@pytest.mark.parametrize(
    ("locale", "chinese"),
    [
        ({"LC_ALL": "zh_CN.UTF-8"}, True),
        ({"LC_ALL": "en_US.UTF-8"}, False),
        ({"LC_ALL": "C"}, True),
        ({"LC_ALL": "", "LANG": "en_GB.UTF-8"}, False),
        ({"LC_ALL": "", "LC_MESSAGES": "zh_TW", "LANG": "en_GB"}, True),
        ({"LC_ALL": "", "LANG": ""}, True),
        ({"LC_ALL": "", "LANG": "fr_FR.UTF-8"}, False),
    ],
    ids=str,
)
def test_the_language_is_that_of_the_locale(
    host: Host, locale: dict[str, str], chinese: bool
) -> None:
    done = host.run("nonsense", code=64, **locale)
    assert ("未知命令" in done.stderr) == chinese


def test_lang_wins_over_the_locale(host: Host) -> None:
    assert "Unknown verb" in host.run("nonsense", "--lang", "en", code=64).stderr
    assert "未知命令" in host.run("nonsense", "--lang=zh", code=64, LC_ALL="en_US").stderr


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["setup check"],
        ["deploy", "--nonsense"],
        ["deploy", "-x"],
        ["deploy", "-yes"],
        ["logs", "-n"],
        ["logs", "-n=5"],
        ["deploy", "extra"],
        ["deploy", "--env-file"],
        ["deploy", "--env-file", "--yes"],
        ["deploy", "--env-file="],
        ["deploy", "--yes=1"],
        ["deploy", "--port", "0"],
        ["deploy", "--port", "65536"],
        ["deploy", "--port", "5e3"],
        ["deploy", "--timeout", "-1"],
        ["deploy", "--bind", "a b"],
        ["deploy", "--name", "Upper"],
        ["deploy", "--name", "opendify-prev"],
        ["deploy", "--env-file", ".env.next"],
        ["deploy", "--env-file", ".env.生产"],
        ["deploy", "--image", "-x"],
        ["deploy", "--data", "rel/ative"],
        ["deploy", "--memory", "lots"],
        ["deploy", "--lang", "fr"],
        ["deploy", "--engine", "runc"],
        ["stop", "--follow"],
        ["deploy", "--all"],
        ["restore"],
        ["restore", "one", "two"],
        ["logs", "-n", "many"],
        ["setup", "--env-file", "-"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_64_and_one_sentence(host: Host, words: list[str]) -> None:
    host.configure()
    done = host.run(*words, code=64)
    assert done.stdout == "" and done.stderr.startswith("❌ ")
    assert host.calls() == []


@pytest.mark.parametrize(
    "words",
    [
        ["--env-file", ".env.production", "check"],
        ["check", "--env-file=.env.production", "-q"],
        ["check", "--", "--quiet"],
    ],
    ids=" ".join,
)
def test_options_go_before_or_after(host: Host, words: list[str]) -> None:
    host.configure()
    host.run(*words, code=64 if "--" in words else 0)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (".env.production", "opendify"),
        (".env", "opendify"),
        (".env.staging", "opendify-staging"),
        (".env.Team_B", "opendify-team-b"),
        ("customer.env", "opendify-customer-env"),
    ],
)
def test_the_name_comes_from_the_file(host: Host, file: str, name: str) -> None:
    host.configure(GOOD, file)
    assert f"--name {name}-new" in host.run("deploy", "--env-file", file, "--dry-run").stderr


def test_default_files_lie_beside_the_script(host: Host, tmp_path) -> None:
    host.configure()
    done = subprocess.run(
        ["bash", str(host.folder / "deploy.sh"), "check"],
        cwd=tmp_path,
        env=host.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and str(host.env_file) in done.stdout


def test_no_colours_in_a_pipe(host: Host) -> None:
    assert "\033" not in host.run("nonsense", code=64, TERM="xterm").stderr


def test_a_half_copied_script_does_nothing(host: Host) -> None:
    whole = (host.folder / "deploy.sh").read_bytes()
    for share in (0.3, 0.6, 0.9, 0.999):
        (host.folder / "deploy.sh").write_bytes(whole[: int(len(whole) * share)])
        done = host.run("setup", code=None, stdin="https://a.example/v1\nm\napp-k\ndone\n")
        assert "🔧" not in done.stdout
    assert not host.env_file.exists() and host.calls() == []


def test_sh_finds_bash(host: Host) -> None:
    done = subprocess.run(
        ["sh", str(host.folder / "deploy.sh"), "--version"],
        env=host.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("deploy.sh ")


def test_sourcing_it_runs_nothing(host: Host) -> None:
    script = 'source "$1" && derive_name .env.staging && echo "$NAME"'
    done = subprocess.run(
        ["bash", "-c", script, "_", str(host.folder / "deploy.sh")],
        env=host.environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "opendify-staging\n" and host.calls() == []


def test_every_message_exists_in_both_languages_with_the_same_placeholders() -> None:
    rows = re.findall(r"^message (\w+) (['\"])(.*?)\2 (['\"])(.*?)\4$", SCRIPT, re.MULTILINE)
    assert len(rows) == len(re.findall(r"^message ", SCRIPT, re.MULTILINE)) > 100
    for key, _, chinese, _, english in rows:
        assert chinese.count("%s") == english.count("%s"), key
        assert len(re.findall(rf"\b{key}\b", SCRIPT)) > 1, f"{key} is never said"


def test_functions_stay_small() -> None:
    name, start = "", 0
    for number, line in enumerate(SCRIPT.splitlines()):
        if match := re.match(r"(\w+)\(\) \{$", line):
            name, start = match[1], number
        if line == "}":
            assert number - start <= 30, f"{name} has {number - start} lines"
