"""The two deployment guides tell the same, and only what is true of the scripts and files."""

import re

import pytest

from opendify.deploy.messages import MESSAGES

from .conftest import ROOT

PAGES = {
    name: (ROOT / "docs" / name).read_text() for name in ("deployment.md", "deployment.zh-CN.md")
}
SCRIPT = (ROOT / "deploy.sh").read_text()


def commands(text: str) -> list[str]:
    """The lines of bash blocks, without comments and without words for people."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [re.sub(r"\s+#.*|^#.*", "", line) for block in blocks for line in block.splitlines()]
    return [re.sub(r'echo "[^"]*"', "echo", line) for line in lines if line.strip()]


def test_both_guides_have_the_same_commands() -> None:
    assert commands(PAGES["deployment.md"]) == commands(PAGES["deployment.zh-CN.md"])


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_and_option_exists(page: str) -> None:
    verbs = re.search(r"readonly VERBS='([^']+)'", SCRIPT)
    options = " ".join(re.findall(r"readonly (?:VALUE|FLAG)_OPTIONS='([^']+)'", SCRIPT))
    assert verbs
    for line in commands(PAGES[page]):
        for verb, rest in re.findall(r"\./deploy\.sh (\w+)([^|&\n]*)", line):
            assert verb in verbs[1].split(), line
            for option in re.findall(r"--([a-z-]+)", rest):
                assert f" {option}:" in f" {options}", line


@pytest.mark.parametrize("page", PAGES)
def test_the_exit_codes_are_those_of_the_script(page: str) -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGES[page], re.MULTILINE)}
    kept = re.search(r"case \$code in\n\s+([\d |]+)\)", SCRIPT)
    assert kept and told == {int(code) for code in kept[1].split("|")}


def test_the_dialogue_is_that_of_setup() -> None:
    rows = re.findall(r"^message \w+ (['\"])(.*?)\1 (['\"])(.*?)\3$", SCRIPT, re.MULTILINE)
    for page, index in (("deployment.md", 1), ("deployment.zh-CN.md", 0)):
        texts = [(row[1], row[3])[index] for row in rows]
        texts += [message[index] for message in MESSAGES.values()]
        said = {text.replace("%s", ".env.production").strip() for text in texts}
        block = re.search(r"```text\n(.*?)```", PAGES[page], re.DOTALL)
        assert block
        for line in filter(None, block[1].splitlines()):
            assert any(line.startswith(words) for words in said if words), line


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_is_there(page: str) -> None:
    for target in re.findall(r"\]\((\.\./[^)#]+|[a-zA-Z][^):#]*\.md)\)", PAGES[page]):
        assert (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`((?:deploy/|docker-compose|start_)[\w./-]+)`", PAGES[page]):
        assert (ROOT / path).exists(), path
