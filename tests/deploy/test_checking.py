"""Keys that are masked, configurations that are checked, and words for both languages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.config.models import parse_base
from opendify.config.settings import ConfigError, load_settings
from opendify.deploy.checking import InvalidConfig, check
from opendify.deploy.env_files import parse_as_docker, write_json
from opendify.deploy.masking import find_secrets, mask, mask_key
from opendify.deploy.messages import MESSAGES, SENTENCES, problem

from .conftest import ROOT

GOOD = {"DIFY_API_BASE": "https://a.example/v1", "MODEL_CONFIG": '{"m":"app-key-of-this"}'}
KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4, max_size=40)


def no_file(path: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", path)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("app-0123456789ab12", "app-…ab12"),
        ("app-0123456", "app-…"),
        ("app-01234567", "app-…4567"),
        ("0123456789abcdef", "…cdef"),
        ("short", "…"),
        ("", "…"),
    ],
)
def test_a_masked_key_shows_four_characters_at_most(key: str, shown: str) -> None:
    assert mask_key(key) == shown


@given(st.lists(KEYS, min_size=1, max_size=4), st.text(max_size=30))
def test_no_key_comes_through(keys: list[str], around: str) -> None:
    environ = {"MODEL_CONFIG": write_json({str(n): key for n, key in enumerate(keys)})}
    shown = mask("\n".join([around, *keys]), find_secrets(environ)).replace(around, "", 1)
    for key in keys:
        assert key not in shown or key in mask_key(key) or key in "app-…"


@pytest.mark.parametrize(
    ("name", "value", "secrets"),
    [
        ("MODEL_CONFIG", '{"m":{"key":"app-one-of-many","inputs":{"a":"b"}}}', {"app-one-of-many"}),
        ("MODEL_CONFIG", "{broken", set()),
        ("OPENDIFY_API_KEYS", "first-key, other\nthird-key", {"first-key", "other", "third-key"}),
        ("OPENDIFY_API_KEYS", '{"a":{"keys":["first-key"],"models":["gpt-4"]}}', {"first-key"}),
        ("OPENDIFY_ADMIN_KEYS", "an-admin", {"an-admin"}),
        ("OPENDIFY_SECRET", "signs-the-links", {"signs-the-links"}),
        ("OPENWEBUI_JWT_SECRET", "signs-the-users", {"signs-the-users"}),
        ("CONVERSATION_STORE", "redis://u:p%40ssword@r:1/0", {"p%40ssword", "p@ssword"}),
        ("CONVERSATION_STORE", "redis://:p@ss@r:1/0", {"p@ss"}),
        ("https_proxy", "http://me:password@p:1", {"password"}),
        ("DIFY_API_BASE", "https://a.example/v1", set()),
    ],
)
def test_what_is_secret(name: str, value: str, secrets: set[str]) -> None:
    assert find_secrets({name: value}) == secrets


def test_a_key_of_dify_is_masked_wherever_it_comes_from() -> None:
    assert mask("key app-0123456789abcdefABCDEF01 refused", ()) == "key app-…EF01 refused"


def test_a_longer_key_is_masked_before_one_within_it() -> None:
    assert mask("app-abcdefgh-long", {"app-abcdefgh", "app-abcdefgh-long"}) == "app-…long"


def test_a_good_configuration_without_what_deploy_sh_decides() -> None:
    found = check(
        GOOD
        | {
            "SERVER_PORT": "5100",
            "SERVER_HOST": "127.0.0.1",
            "DATA_DIR": "/elsewhere",
            "PUBLISH_ADDRESS": "0.0.0.0",
            "GUNICORN_WORKERS": "3",
            "OPENDIFY_API_KEYS": "'one,two'",
        },
        ".env",
        no_file,
    )
    assert parse_as_docker(found.raw) == GOOD | {
        "GUNICORN_WORKERS": "3",
        "OPENDIFY_API_KEYS": "one,two",
    }
    assert found.settings.server_port == 5100 and found.values["OPENDIFY_API_KEYS"] == "one,two"


@pytest.mark.parametrize(
    ("env_file", "path", "asked"),
    [
        (".env", "m.json", "m.json"),
        ("/etc/opendify/.env", "m.json", "/etc/opendify/m.json"),
        ("here/.env", "/run/m.json", "/run/m.json"),
        ("-", "m.json", "m.json"),
    ],
)
def test_files_are_looked_for_beside_the_configuration(
    env_file: str, path: str, asked: str
) -> None:
    read: list[str] = []

    def read_file(name: str) -> str:
        read.append(name)
        return '{\n "a b": "app-it\'s" }\n'

    values = {"DIFY_API_BASE": GOOD["DIFY_API_BASE"], "MODEL_CONFIG_FILE": path}
    raw = parse_as_docker(check(values, env_file, read_file).raw)
    assert read == [asked]
    assert raw["MODEL_CONFIG"] == '{"a b":"app-it\\u0027s"}' and "MODEL_CONFIG_FILE" not in raw


def test_what_is_wrong_is_said_in_the_words_of_the_application() -> None:
    values = {"DIFY_API_BASE": "ftp://x", "MODEL_CONFIG": "{}", "LOG_LEVEL": "a\nb"}
    with pytest.raises(ConfigError) as expected:
        load_settings(values)
    with pytest.raises(InvalidConfig) as caught:
        check(values, ".env", no_file)
    assert caught.value.sentences == expected.value.problems
    assert [exc.name for exc in caught.value.unwritable] == ["LOG_LEVEL"]


# One configuration for each sentence that has Chinese words
WRONG: list[dict[str, str]] = [
    {},
    {"DIFY_API_BASE": "ftp://x", "MODEL_CONFIG": "{"},
    {"MODEL_CONFIG": "[]"},
    {"MODEL_CONFIG": '{"a":"app-k","a":"app-l"}'},
    {"MODEL_CONFIG": '{"a":{},"b":1,"c":"","d":"with blank"}'},
    {"MODEL_CONFIG": "{}", "MODEL_CONFIG_FILE": "x"},
    {"MODEL_CONFIG_FILE": "nowhere"},
    {"MODEL_CONFIG_FILE": "empty"},
    {"SERVER_PORT": "x", "LOG_LEVEL": "loud"},
]


def test_every_chinese_sentence_belongs_to_one_that_the_application_says() -> None:
    said = []
    for values in WRONG:
        with pytest.raises(InvalidConfig) as caught:
            check(values, "-", lambda path: "" if path == "empty" else no_file(path))
        said += caught.value.sentences
    for pattern, chinese in SENTENCES:
        matching = [sentence for sentence in said if re.fullmatch(pattern, sentence, re.DOTALL)]
        assert matching, pattern
        assert problem("en", matching[0]) == matching[0]
        assert re.search("[\u4e00-\u9fff]", problem("zh", matching[0])), chinese
    assert not [sentence for sentence in said if problem("zh", sentence) == sentence]


def test_other_sentences_stay_as_they_are() -> None:
    assert problem("zh", "CORS_ORIGINS is odd.") == "CORS_ORIGINS is odd."


def test_every_message_is_used_and_has_the_same_placeholders_in_both_languages() -> None:
    source = "".join(path.read_text() for path in sorted((ROOT / "opendify/deploy").glob("*.py")))
    for key, (chinese, english) in MESSAGES.items():
        assert chinese.count("%s") == english.count("%s"), key
        assert source.count(f'"{key}"') > 1 or key.startswith("online_"), f"{key} is never said"


@pytest.mark.parametrize("verb", ["setup", "check", "doctor"])
def test_a_script_that_ends_ends_the_conversation(tmp_path: Path, verb: str) -> None:
    words = ["-m", "opendify.deploy", verb, "--env-file=x", "--shown-as=x"]
    done = subprocess.run(
        [sys.executable, *words],
        input=b"",
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize(
    "url", ["https://a.example/v1", "http://[::1]:80/v1", "https://a.example/a%20b/~c"]
)
def test_an_address_is_taken_as_the_application_takes_it(url: str) -> None:
    assert parse_base(url) == url
