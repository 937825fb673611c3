"""Who may call, as operators write it; and values that stand in files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.config.accounts import Limits
from opendify.config.dotenv import read_file
from opendify.config.settings import ConfigError, Settings, load_settings

GOOD = {
    "DIFY_API_BASE": "https://dify.example.com/v1",
    "MODEL_CONFIG": '{"tiny":"app-k","big":"app-l"}',
}
HASH = hashlib.sha256(b"hashed").hexdigest()


def loaded(keys: Any, **more: str) -> Settings:
    text = keys if isinstance(keys, str) else json.dumps(keys)
    return load_settings({**GOOD, "OPENDIFY_API_KEYS": text, **more})


def problems(load: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load()
    return caught.value.problems


def test_without_keys_there_are_no_accounts() -> None:
    assert load_settings(GOOD).accounts == ()
    assert loaded(" ").accounts == ()


def test_keys_in_a_list_are_good_for_all_models() -> None:
    (account,) = loaded(f"one, sha256:{HASH}\ntwo").accounts
    assert all(account.keys.contains(key) for key in ("one", "two", "hashed"))
    assert (account.name, account.models) == ("", None)


def test_an_object_names_each_caller() -> None:
    first, second, third = loaded(
        {
            "team-a": "one",
            "team b": ["two", f"sha256:{HASH}"],
            "团队": {"keys": "three", "models": ["tiny"]},
        }
    ).accounts
    assert (first.name, second.name, third.name) == ("team-a", "team b", "团队")
    assert first.keys.contains("one") and not first.keys.contains("two")
    assert second.keys.contains("two") and second.keys.contains("hashed")
    assert (first.models, third.models) == (None, {"tiny"})


def test_a_caller_has_its_own_limits_or_those_of_all() -> None:
    written = {
        "one": "k1",
        "two": {"keys": "k2", "requests_per_minute": 5},
        "three": {"keys": "k3", "requests_per_minute": 0, "max_streams": 7},
    }
    settings = loaded(written, CALLER_REQUESTS_PER_MINUTE="60", CALLER_MAX_STREAMS="4")
    limits = [account.limits for account in settings.accounts]
    assert limits == [Limits(60, 4), Limits(5, 4), Limits(0, 7)]
    assert loaded("k", CALLER_MAX_STREAMS="4").accounts[0].limits == Limits(0, 4)
    assert load_settings({**GOOD, "CALLER_MAX_STREAMS": "4"}).limits == Limits(0, 4)


WRONG = [
    pytest.param(",", "contains no key", id="only a comma"),
    pytest.param("se cret", "key 1 contains spaces", id="a blank"),
    pytest.param("{", "not valid JSON", id="half of JSON"),
    pytest.param('{"a":"secret","a":"other"}', "the name 'a' occurs twice", id="twice"),
    pytest.param({}, "at least one caller", id="an object of nobody"),
    pytest.param({"a": ""}, "caller 'a', key 1 must be a string", id="an empty key"),
    pytest.param({"a": []}, "must be a key or a list of keys", id="no keys"),
    pytest.param({"a": 1}, "caller 'a' must have a key", id="a number"),
    pytest.param({"a": {"keys": None}}, "setting 'keys'", id="null"),
    pytest.param({"a": {"models": []}}, "setting 'keys'", id="an object without keys"),
    pytest.param({"a": "one,secret"}, "without commas", id="two in one"),
    pytest.param({"a": ["one", "sha256:secret"]}, "caller 'a', key 2: 'sha256:'", id="a bad hash"),
    pytest.param({"a": {"keys": "k", "modles": []}}, "unknown setting", id="a mistyped setting"),
    pytest.param({"a": {"keys": "k", "models": "tiny"}}, "list of names", id="models as a string"),
    pytest.param({"a": {"keys": "k", "models": ["x"]}}, "the model 'x'", id="an unknown model"),
    pytest.param({"a": {"keys": "k", "max_streams": -1}}, "from 0 to", id="a negative limit"),
    pytest.param({"a": {"keys": "k", "max_streams": True}}, "from 0 to", id="a limit of true"),
    pytest.param({"a": {"keys": "k", "requests_per_minute": "5"}}, "from 0", id="a limit in text"),
    pytest.param({"a": "secret", "b": ["secret"]}, "'a' and 'b' have the same key", id="shared"),
    pytest.param({"": "k"}, "the name of a caller", id="no name"),
    pytest.param({" a": "k"}, "the name of a caller", id="a blank before a name"),
    pytest.param({"a\n": "k"}, "the name of a caller", id="a line end in a name"),
    pytest.param({"a" * 101: "k"}, "the name of a caller", id="a long name"),
    pytest.param({"-": "k"}, "looks like", id="the name of nobody"),
    pytest.param({"0123456789ab": "k"}, "looks like", id="a name like the hash of a key"),
]


@pytest.mark.parametrize(("keys", "problem"), WRONG)
def test_what_is_wrong_is_named_and_shows_no_key(keys: Any, problem: str) -> None:
    (found,) = problems(lambda: loaded(keys))
    assert found.startswith("OPENDIFY_API_KEYS")
    assert problem in found
    assert "secret" not in found


def test_all_problems_are_reported_at_once() -> None:
    found = problems(lambda: loaded({"a": {"keys": "k", "models": ["x"]}, "b": []}, LOG_LEVEL="?"))
    assert len(found) == 3


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["sk-secret", "tiny"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["keys", "models", "a", "b"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(written=JSON_VALUES)
def test_no_problem_ever_shows_a_key(written: Any) -> None:
    try:
        settings = loaded({"team": written})
    except ConfigError as exc:
        shown = str(exc).replace("the model 'sk-secret'", "")
    else:
        shown = repr(settings)
    assert "sk-secret" not in shown


# --- values in files ---------------------------------------------------------------------------


def from_files(**variables: str) -> Settings:
    return load_settings({"DIFY_API_BASE": GOOD["DIFY_API_BASE"], **variables}, read_file)


def test_models_and_keys_may_stand_in_files(tmp_path: Path) -> None:
    (tmp_path / "models").write_text('\ufeff{\n  "tiny": "app-k"\n}\n', encoding="utf-8")
    (tmp_path / "keys").write_text("one\ntwo\n")
    (tmp_path / "admins").write_text("admin\n")
    settings = from_files(
        MODEL_CONFIG_FILE=str(tmp_path / "models"),
        OPENDIFY_API_KEYS_FILE=str(tmp_path / "keys"),
        OPENDIFY_ADMIN_KEYS_FILE=str(tmp_path / "admins"),
    )
    assert settings.models["tiny"].key == "app-k"
    assert settings.accounts[0].keys.contains("two")
    assert settings.admin_keys.contains("admin")


@pytest.mark.parametrize("name", ["MODEL_CONFIG", "OPENDIFY_API_KEYS", "OPENDIFY_ADMIN_KEYS"])
def test_both_forms_are_a_mistake(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    path.write_text("secret")
    environ = {**GOOD, name: GOOD.get(name, "secret"), f"{name}_FILE": str(path)}
    (found,) = problems(lambda: load_settings(environ, read_file))
    assert f"{name} and {name}_FILE are both set" in found


@pytest.mark.parametrize("name", ["MODEL_CONFIG", "OPENDIFY_API_KEYS", "OPENDIFY_ADMIN_KEYS"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(None, "cannot be read (No such file or directory)", id="not there"),
        pytest.param(b" \n", "is empty", id="empty"),
        pytest.param(b"\xff\xfe", "not UTF-8 text", id="no text"),
    ],
)
def test_a_secret_that_is_missing_is_not_one_that_is_not_wanted(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    environ = {**GOOD, f"{name}_FILE": str(path)}
    environ.pop(name, None)
    (found,) = problems(lambda: load_settings(environ, read_file))
    assert found.startswith(f"{name}_FILE: {path}")
    assert problem in found


def test_a_folder_where_a_file_should_be_is_named(tmp_path: Path) -> None:
    (found,) = problems(
        lambda: load_settings({**GOOD, "OPENDIFY_API_KEYS_FILE": str(tmp_path)}, read_file)
    )
    assert "cannot be read (Is a directory)" in found
