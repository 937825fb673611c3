"""The list of models: OpenAI's fields, and what Open WebUI shows of a model."""

import json
from typing import Any

import pytest

from opendify.config.models import Model
from opendify.dify.apps import App, FileRules, parse_app
from opendify.files.icons import emoji_icon
from opendify.protocols.openai.model_list import (
    MAX_QUESTION_CHARS,
    MAX_QUESTIONS,
    MODEL_CREATED,
    model_entries,
    model_list,
)
from tests.support import schemas
from tests.support.fake_dify import recorded_mode, recorded_names, recording

INFOS = [name for name in recorded_names() if name.endswith("/info")]


def model(name: str = "tiny", **settings: Any) -> Model:
    return Model(name, "app-key", "http://10.1.2.3/v1", **settings)


def entry(model: Model, app: App) -> dict[str, Any]:
    return model_entries([(model, app)])[model.name]


def meta(app: App, **settings: Any) -> dict[str, Any]:
    return dict(entry(model(**settings), app)["info"]["meta"])


def test_an_unknown_app_is_a_plain_model() -> None:
    plain = entry(model("org/model"), App())
    schemas.assert_model(plain)
    assert set(plain) == {"id", "object", "created", "owned_by"}
    schemas.assert_model_list(model_list([(model(), App()), (model("org/model"), App())]))
    schemas.assert_model_list(model_list([]))


def test_a_model_was_always_created_at_the_same_time() -> None:
    assert entry(model(), App())["created"] == MODEL_CREATED == 1735689600


@pytest.mark.parametrize("name", INFOS)
def test_a_recorded_app_is_shown(name: str) -> None:
    info = json.loads(recording(name).body)
    parameters = json.loads(recording(name.replace("/info", "/parameters")).body)
    shown = entry(model(), parse_app(info, parameters))
    schemas.assert_model(shown)
    assert (shown["name"], shown["mode"]) == (info["name"], recorded_mode(name))
    about = shown["info"]["meta"]
    assert about.get("description") == (
        parameters.get("opening_statement") or info["description"] or None
    )
    questions = [{"content": text} for text in parameters.get("suggested_questions") or []]
    assert about.get("suggestion_prompts", []) == questions
    assert about["capabilities"] == {
        "vision": shown["capabilities"]["vision"],
        "file_upload": True,
        "citations": True,
        "usage": True,
        "web_search": False,
        "image_generation": False,
        "code_interpreter": False,
        "builtin_tools": False,
    }


def test_what_open_webui_offers_depends_on_app_and_settings() -> None:
    pictures = App(mode="chat", files=FileRules(frozenset({"image"})))
    assert meta(pictures)["capabilities"]["vision"] is True
    assert meta(App(mode="chat"))["capabilities"]["vision"] is False
    assert meta(pictures, citations="off")["capabilities"]["citations"] is False


def test_what_the_operator_says_wins() -> None:
    app = App("chat", "Dify's", "Dify's text", icon="data:dify", opening_statement="Hello")
    shown = entry(model(title="Ours", description="Our text", icon="🦊"), app)
    assert (shown["name"], shown["description"]) == ("Ours", "Our text")
    about = shown["info"]["meta"]
    assert about["description"] == "Our text"
    assert about["profile_image_url"] == emoji_icon("🦊")
    assert meta(app)["profile_image_url"] == "data:dify"
    address = "https://example.com/icon.png"
    assert meta(app, icon=address)["profile_image_url"] == address


def test_what_the_operator_says_is_shown_of_an_unknown_app() -> None:
    shown = entry(model(title="Ours", icon="https://example.com/i.png"), App())
    assert shown["name"] == "Ours"
    assert shown["info"] == {"meta": {"profile_image_url": "https://example.com/i.png"}}


def test_the_opening_statement_is_the_description_unless_it_has_gaps() -> None:
    app = App("chat", "A", "Text", opening_statement="Hello")
    assert meta(app)["description"] == "Hello"
    gaps = App("chat", "A", "Text", opening_statement="Hello {{name}}")
    assert meta(gaps)["description"] == "Text"
    assert entry(model(), gaps)["opening_statement"] == "Hello {{name}}"


def test_models_of_one_app_are_told_apart() -> None:
    app = App("chat", "Helper")
    models = [model("a"), model("b"), model("c", title="Helper C"), model("d", hidden=True)]
    listed = model_list([(one, app) for one in models])["data"]
    assert [one["name"] for one in listed] == ["Helper (a)", "Helper (b)", "Helper C"]
    pair = model_list([(model("a"), app), (model("d", hidden=True), app)])["data"]
    assert [one["name"] for one in pair] == ["Helper"]


def test_a_hidden_model_is_not_listed_but_known() -> None:
    apps = [(model("a"), App()), (model("b", hidden=True), App())]
    assert [one["id"] for one in model_list(apps)["data"]] == ["a"]
    assert set(model_entries(apps)) == {"a", "b"}


def test_texts_of_dify_are_bounded() -> None:
    long = "x" * 100_000
    app = App(
        "chat",
        long,
        long,
        opening_statement=long,
        suggested_questions=(" ", *[long] * 50),
    )
    shown = entry(model(), app)
    questions = shown["info"]["meta"]["suggestion_prompts"]
    assert len(questions) == MAX_QUESTIONS
    assert {len(question["content"]) for question in questions} == {MAX_QUESTION_CHARS}
    assert (len(shown["name"]), len(shown["description"])) == (200, 2000)
    assert len(shown["info"]["meta"]["description"]) == len(shown["opening_statement"]) == 2000
    assert shown["name"].endswith("x…")
    assert len(json.dumps(shown)) < 20_000
