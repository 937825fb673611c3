"""Other names of models."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.config.aliases import match_rank
from opendify.config.settings import ConfigError, load_settings

BASE = {"DIFY_API_BASE": "https://dify.example.com/v1"}


def load(models: dict[str, Any], **variables: str) -> Any:
    entries = {name: {"key": "app-k", "aliases": aliases} for name, aliases in models.items()}
    return load_settings({**BASE, "MODEL_CONFIG": json.dumps(entries), **variables})


RANKS = [
    ("gpt-4", "gpt-4", (True, 5)),
    ("gpt-4", "gpt-4o", None),
    ("gpt-4", "GPT-4", None),
    ("gpt-*", "gpt-4o", (False, 4)),
    ("gpt-*", "gpt-", (False, 4)),
    ("gpt-*", "my-gpt-4", None),
    ("*", "", (False, 0)),
    ("*-mini", "gpt-5-mini", (False, 5)),
    ("gpt-*-mini", "gpt-5-mini", (False, 9)),
    ("gpt-*-mini", "gpt-mini", None),
    ("ab*ba", "aba", None),
    ("a**b", "ab", (False, 2)),
    ("gpt-?", "gpt-4", None),
    ("[ab]*", "a", None),
]


@pytest.mark.parametrize(("alias", "name", "rank"), RANKS)
def test_an_alias_fits_a_name(alias: str, name: str, rank: tuple[bool, int] | None) -> None:
    assert match_rank(alias, name) == rank


@given(st.text("ab*", max_size=8), st.text("ab", max_size=12))
def test_a_star_stands_for_any_text(alias: str, name: str) -> None:
    pattern = ".*".join(map(re.escape, alias.split("*")))
    assert (match_rank(alias, name) is not None) == bool(re.fullmatch(pattern, name))


def test_aliases_are_read() -> None:
    assert load({"a": ["gpt-*", "whisper-1"], "b": []}).models["a"].aliases == (
        "gpt-*",
        "whisper-1",
    )


WHERE = "MODEL_CONFIG: model 'b', setting 'aliases'"
BAD = [
    pytest.param({"b": "gpt-*"}, f"{WHERE} must be a list of names, like", id="a text"),
    pytest.param({"b": ["x", 5]}, f"{WHERE}: name 2 must be a text", id="a number"),
    pytest.param({"b": [""]}, f"{WHERE}: name 1 must be a text", id="an empty name"),
    pytest.param({"b": [" x"]}, f"{WHERE}: name 1 must be a text", id="a blank before it"),
    pytest.param({"b": ["x\n"]}, f"{WHERE}: name 1 must be a text", id="a line break"),
    pytest.param({"b": ["x", "x"]}, f"{WHERE}: name 2 occurs twice", id="twice"),
    pytest.param({"b": ["b"]}, f"{WHERE}: name 1 is itself the name of a model", id="its own name"),
    pytest.param(
        {"a": [], "b": ["x", "a"]}, f"{WHERE}: name 2 is itself the name of a model", id="another's"
    ),
    pytest.param(
        {"a": ["gpt-*"], "b": ["gpt-*"]},
        f"{WHERE}: name 1 is also an alias of the model 'a'",
        id="an alias of two",
    ),
]


@pytest.mark.parametrize(("models", "problem"), BAD)
def test_a_bad_alias_is_named_by_its_position(models: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(models)
    (found,) = caught.value.problems
    assert found.startswith(problem)


def test_the_default_model_is_a_model() -> None:
    assert load({"a": []}).default_model == ""
    assert load({"a": []}, DEFAULT_MODEL=" a ").default_model == "a"
    for wrong in ("b", "x"):
        with pytest.raises(ConfigError) as caught:
            load({"a": ["x"]}, DEFAULT_MODEL=wrong)
        assert caught.value.problems == [
            "DEFAULT_MODEL must be one of the names in MODEL_CONFIG, not an alias."
        ]
