import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from opendify.auth.api_keys import ApiKeys, parse_keys
from opendify.config.accounts import Limits
from opendify.config.dotenv import check_certificates, load_environment, read_file
from opendify.config.history_words import CHINESE, ENGLISH, WordsByLanguage
from opendify.config.id_headers import IdHeaders
from opendify.config.models import (
    SETTINGS,
    Model,
    parse_base,
    parse_models,
)
from opendify.config.parsing import InvalidValue
from opendify.config.settings import (
    SERVER_NUMBERS,
    ConfigError,
    Settings,
    load_settings,
)
from tests.support.service import ROOT, environment

KEY = "app-AbCdEfGhIjKlMnOpQrStUvWx"
BASE = "https://dify.example.com/v1"
GOOD = {"DIFY_API_BASE": BASE, "MODEL_CONFIG": json.dumps({"tiny": KEY})}


def problems(**variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings({**GOOD, **variables})
    assert KEY not in str(caught.value)
    return caught.value.problems


def test_two_variables_are_enough() -> None:
    assert load_settings(GOOD) == Settings(
        models={"tiny": Model("tiny", KEY, BASE)},
        default_model="",
        data_dir="data",
        conversation_store="",
        accounts=(),
        limits=Limits(),
        key_passthrough=False,
        cors_origins=frozenset(),
        admin_keys=ApiKeys(),
        read_timeout=35,
        max_body_bytes=64 * 1024 * 1024,
        max_text_bytes=8 * 1024 * 1024,
        mapping_max_age_days=0,
        mapping_max_entries=100_000,
        public_base_url="",
        secret="",
        file_cache_bytes=256 * 1024 * 1024,
        files_only_query="Please look at what is attached.",
        log_level="info",
        log_file="",
        log_format="text",
        server_host="0.0.0.0",
        publish_address="",
        server_port=5000,
        openwebui_jwt_secret="",
        id_headers=IdHeaders(
            chat=(
                "HTTP_X_CHAT_ID",
                "HTTP_X_CONVERSATION_ID",
                "HTTP_X_SESSION_ID",
                "HTTP_X_THREAD_ID",
            ),
            user=("HTTP_X_USER_ID",),
            message=("HTTP_X_MESSAGE_ID",),
            parent=(),
        ),
        max_concurrent_streams=112,
        max_answer_chars=16 * 1024 * 1024,
        ca_certificates="",
    )


@pytest.mark.parametrize(
    ("server_host", "published", "reachable"),
    [
        ("0.0.0.0", "", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1", "127.0.0.1"),
        ("::", "[::1]", "::1"),
        ("0.0.0.0", "192.0.2.5", "192.0.2.5"),
        ("127.0.0.1", "0.0.0.0", "127.0.0.1"),
    ],
)
def test_where_others_find_it(server_host: str, published: str, reachable: str) -> None:
    environ = {**GOOD, "SERVER_HOST": server_host, "PUBLISH_ADDRESS": published}
    assert load_settings(environ).reachable_host == reachable


VALUES = [
    pytest.param({"DATA_DIR": "/var/lib/x"}, "data_dir", "/var/lib/x", id="DATA_DIR"),
    pytest.param(
        {"CONVERSATION_STORE": " redis://:p@r:1/2 "},
        "conversation_store",
        "redis://:p@r:1/2",
        id="CONVERSATION_STORE",
    ),
    pytest.param({"CONVERSATION_STORE": "file"}, "conversation_store", "", id="file"),
    pytest.param(
        {"OPENDIFY_ADMIN_KEYS": "a,b"}, "admin_keys", parse_keys("a,b"), id="OPENDIFY_ADMIN_KEYS"
    ),
    pytest.param({"DIFY_READ_TIMEOUT": "60"}, "read_timeout", 60, id="DIFY_READ_TIMEOUT"),
    pytest.param({"GUNICORN_THREADS": "512"}, "max_concurrent_streams", 496, id="of many threads"),
    pytest.param({"GUNICORN_THREADS": "16"}, "max_concurrent_streams", 14, id="of few threads"),
    pytest.param({"GUNICORN_THREADS": "2"}, "max_concurrent_streams", 1, id="of two threads"),
    pytest.param({"GUNICORN_THREADS": "1"}, "max_concurrent_streams", 1, id="of one thread"),
    pytest.param(
        {"MAX_CONCURRENT_STREAMS": "127"},
        "max_concurrent_streams",
        127,
        id="MAX_CONCURRENT_STREAMS",
    ),
    pytest.param({"MAX_BODY_MB": "2"}, "max_body_bytes", 2 * 1024 * 1024, id="MAX_BODY_MB"),
    pytest.param({"MAX_TEXT_MB": "2"}, "max_text_bytes", 2 * 1024 * 1024, id="MAX_TEXT_MB"),
    pytest.param(
        {"MAPPING_MAX_AGE_DAYS": "30"}, "mapping_max_age_days", 30, id="MAPPING_MAX_AGE_DAYS"
    ),
    pytest.param({"MAPPING_MAX_ENTRIES": "5"}, "mapping_max_entries", 5, id="MAPPING_MAX_ENTRIES"),
    pytest.param(
        {"PUBLIC_BASE_URL": " https://ai.example.com/ "},
        "public_base_url",
        "https://ai.example.com",
        id="PUBLIC_BASE_URL",
    ),
    pytest.param(
        {"PUBLIC_BASE_URL": "http://[::1]:5000/opendify/v1"},
        "public_base_url",
        "http://[::1]:5000/opendify",
        id="PUBLIC_BASE_URL as clients have it",
    ),
    pytest.param({"OPENDIFY_SECRET": " " + "x" * 16}, "secret", "x" * 16, id="OPENDIFY_SECRET"),
    pytest.param({"FILE_CACHE_MB": "1"}, "file_cache_bytes", 1024 * 1024, id="FILE_CACHE_MB"),
    pytest.param(
        {"FILES_ONLY_QUERY": " 请看附件。 "},
        "files_only_query",
        "请看附件。",
        id="FILES_ONLY_QUERY",
    ),
    pytest.param({"LOG_LEVEL": "warning"}, "log_level", "warning", id="LOG_LEVEL"),
    pytest.param({"LOG_LEVEL": "WARNING"}, "log_level", "warning", id="LOG_LEVEL in capitals"),
    pytest.param({"ENVIRONMENT": "development"}, "log_level", "debug", id="development logs more"),
    pytest.param(
        {"ENVIRONMENT": "Development", "LOG_LEVEL": "error"},
        "log_level",
        "error",
        id="development changes only the default",
    ),
    pytest.param({"ENVIRONMENT": "production"}, "log_level", "info", id="production"),
    pytest.param({"LOG_FILE": "logs/x.log"}, "log_file", "logs/x.log", id="LOG_FILE"),
    pytest.param({"LOG_FORMAT": "JSON"}, "log_format", "json", id="LOG_FORMAT"),
    pytest.param({"SERVER_HOST": "127.0.0.1"}, "server_host", "127.0.0.1", id="SERVER_HOST"),
    pytest.param({"SERVER_PORT": " 80 "}, "server_port", 80, id="SERVER_PORT with blanks"),
    pytest.param({"SERVER_PORT": ""}, "server_port", 5000, id="an empty value is none"),
]


@pytest.mark.parametrize(("variables", "name", "value"), VALUES)
def test_a_variable_is_read(variables: dict[str, str], name: str, value: Any) -> None:
    assert getattr(load_settings({**GOOD, **variables}), name) == value


NUMBERS = {
    **SERVER_NUMBERS,
    "DIFY_READ_TIMEOUT": (1, 3600),
    "MAX_BODY_MB": (1, 1024),
    "MAX_TEXT_MB": (1, 1024),
    "MAPPING_MAX_AGE_DAYS": (0, 36500),
    "MAPPING_MAX_ENTRIES": (1, 10_000_000),
    "FILE_CACHE_MB": (1, 1_000_000),
    "HISTORY_MAX_CHARS": (0, 10_000_000),
}


@pytest.mark.parametrize(("name", "limits"), NUMBERS.items(), ids=NUMBERS)
def test_a_number_has_limits(name: str, limits: tuple[int, int]) -> None:
    least, most = limits
    for value in (least, most):
        load_settings({**GOOD, name: str(value)})
    for bad in (str(least - 1), str(most + 1), "many", "1.5", "-1", "1e3", "٣", "9" * 5000):
        assert problems(**{name: bad}) == [f"{name} must be a whole number from {least} to {most}."]


BAD = [
    pytest.param(
        "MAX_CONCURRENT_STREAMS", "128", "must be below GUNICORN_THREADS (128)", id="no reserve"
    ),
    pytest.param("MAX_CONCURRENT_STREAMS", "0", "a whole number from 1", id="no streams"),
    pytest.param("DIFY_API_BASE", "", "DIFY_API_BASE is not set", id="no base"),
    pytest.param("DIFY_API_BASE", " ", "DIFY_API_BASE is not set", id="a blank base"),
    pytest.param("DIFY_API_BASE", "dify.example.com", "DIFY_API_BASE must be", id="no scheme"),
    pytest.param("DIFY_API_BASE", "ftp://x/v1", "DIFY_API_BASE must be", id="another scheme"),
    pytest.param("DIFY_API_BASE", "http://", "DIFY_API_BASE must be", id="no host"),
    pytest.param("DIFY_API_BASE", "http://x:y/v1", "DIFY_API_BASE must be", id="no port"),
    pytest.param("DIFY_API_BASE", "http://x:70000", "DIFY_API_BASE must be", id="a large port"),
    pytest.param("DIFY_API_BASE", "http://1.2.3.999/v1", "DIFY_API_BASE must be", id="no IPv4"),
    pytest.param("DIFY_API_BASE", "http://1.2.3/v1", "DIFY_API_BASE must be", id="half of IPv4"),
    pytest.param("DIFY_API_BASE", "http://a b/v1", "DIFY_API_BASE must be", id="a blank"),
    pytest.param(
        "DIFY_API_BASE", "http://u:secret@x/v1", "DIFY_API_BASE must be a plain", id="a password"
    ),
    pytest.param("DIFY_API_BASE", "http://x/?a=b", "DIFY_API_BASE must be a plain", id="a query"),
    pytest.param("DIFY_API_BASE", "http://x/#a", "DIFY_API_BASE must be a plain", id="a fragment"),
    pytest.param("PUBLIC_BASE_URL", "ai.example.com", "PUBLIC_BASE_URL must be", id="a bare name"),
    pytest.param("PUBLIC_BASE_URL", "https://u@x", "PUBLIC_BASE_URL must be", id="public user"),
    pytest.param("PUBLIC_BASE_URL", "https://x/?a", "PUBLIC_BASE_URL must be", id="public query"),
    pytest.param("PUBLIC_BASE_URL", "javascript:x", "PUBLIC_BASE_URL must be", id="no address"),
    pytest.param("OPENDIFY_SECRET", "x" * 15, "OPENDIFY_SECRET must have 16", id="OPENDIFY_SECRET"),
    pytest.param("ENVIRONMENT", "staging", "ENVIRONMENT must be one of", id="ENVIRONMENT"),
    pytest.param("LOG_LEVEL", "loud", "LOG_LEVEL must be one of", id="LOG_LEVEL"),
    pytest.param("GUNICORN_RELOAD", "yes", "GUNICORN_RELOAD must be one of", id="GUNICORN_RELOAD"),
    pytest.param("HTTP_PROXY", "ftp://x", "HTTP_PROXY must be the address", id="HTTP_PROXY"),
    pytest.param("https_proxy", "http://", "https_proxy must be the address", id="lower case"),
    pytest.param("ALL_PROXY", "socks4://x:1", "ALL_PROXY must be the address", id="SOCKS 4"),
    pytest.param("ALL_PROXY", "http://x:port", "ALL_PROXY must be the address", id="no port"),
    pytest.param("ALL_PROXY", "http://[::1", "ALL_PROXY must be the address", id="half a host"),
    pytest.param("HISTORY_WORDS", "pt", "HISTORY_WORDS must be auto, en, zh", id="a language"),
    pytest.param("HISTORY_WORDS", "{", "HISTORY_WORDS is not valid JSON", id="words, no JSON"),
    pytest.param("HISTORY_WORDS", "{}", "HISTORY_WORDS must be a JSON object", id="no words"),
    pytest.param(
        "HISTORY_WORDS", '{"user":""}', "HISTORY_WORDS: 'user' must be a text", id="no word"
    ),
    pytest.param(
        "HISTORY_WORDS", '{"x":"y"}', "HISTORY_WORDS has an unknown text 'x'", id="another word"
    ),
    pytest.param("MODEL_CONFIG", "", "MODEL_CONFIG is not set", id="no models"),
    pytest.param("MODEL_CONFIG", "{", "MODEL_CONFIG is not valid JSON", id="no JSON"),
    pytest.param("MODEL_CONFIG", "{'a':'b'}", "MODEL_CONFIG is not valid JSON", id="Python"),
    pytest.param("MODEL_CONFIG", "[" * 99_999, "MODEL_CONFIG is not valid JSON", id="nesting"),
    pytest.param("MODEL_CONFIG", "[]", "MODEL_CONFIG must be a JSON object", id="an array"),
    pytest.param("MODEL_CONFIG", "{}", "MODEL_CONFIG must be a JSON object", id="an empty object"),
    pytest.param("MODEL_CONFIG", '"x"', "MODEL_CONFIG must be a JSON object", id="a string"),
    pytest.param(
        "MODEL_CONFIG", '{"a":"k","a":"l"}', "the name 'a' occurs twice", id="a name twice"
    ),
    pytest.param(
        "CHAT_ID_HEADERS", "X Chat", "CHAT_ID_HEADERS must be names of headers", id="a blank"
    ),
    pytest.param(
        "CHAT_ID_HEADERS", "X_Chat_Id", "In them are letters, digits and '-' only", id="underlines"
    ),
    pytest.param(
        "USER_ID_HEADERS", "X-User: a", "USER_ID_HEADERS must be names of headers", id="a value"
    ),
    pytest.param(
        "USER_ID_HEADERS", "authorization", "must not name authorization", id="a secret header"
    ),
    pytest.param("PARENT_ID_HEADERS", "Cookie", "must not name Cookie", id="cookies"),
    pytest.param("CHAT_ID_HEADERS", "Api-Key", "must not name Api-Key", id="Azure's key"),
    pytest.param("CHAT_ID_HEADERS", "x-api-key", "must not name x-api-key", id="Anthropic's key"),
    pytest.param("MESSAGE_ID_HEADERS", "é", "MESSAGE_ID_HEADERS must be names", id="an accent"),
]


ID_HEADERS = [
    ("X-Chat, x-talk-id", ("HTTP_X_CHAT", "HTTP_X_TALK_ID")),
    (" X-Chat ,, ", ("HTTP_X_CHAT",)),
    ("none", ()),
    ("None", ()),
]


@pytest.mark.parametrize(("value", "names"), ID_HEADERS)
def test_the_headers_with_ids_can_be_named(value: str, names: tuple[str, ...]) -> None:
    for variable, field in (
        ("CHAT_ID_HEADERS", "chat"),
        ("USER_ID_HEADERS", "user"),
        ("MESSAGE_ID_HEADERS", "message"),
        ("PARENT_ID_HEADERS", "parent"),
    ):
        headers = load_settings({**GOOD, variable: value}).id_headers
        assert getattr(headers, field) == names


def test_an_empty_list_of_headers_is_the_usual_one() -> None:
    assert load_settings({**GOOD, "USER_ID_HEADERS": " "}) == load_settings(GOOD)


@pytest.mark.parametrize(("name", "value", "problem"), BAD)
def test_a_bad_value_is_named_with_its_remedy(name: str, value: str, problem: str) -> None:
    found = problems(**{name: value})
    assert any(problem in line for line in found)
    assert "secret" not in "".join(found)
    assert all(line.startswith((name, "MODEL_CONFIG", "DIFY_API_BASE")) for line in found)


IN_CHINESE = replace(CHINESE, user="Usuário:")
IN_ENGLISH = replace(ENGLISH, user="Usuário:")

MODELS = [
    pytest.param("app-k", {"key": "app-k"}, id="a key"),
    pytest.param({"key": "app-k"}, {"key": "app-k"}, id="an object"),
    pytest.param(
        {"key": "k", "base": "http://other/v1/"}, {"base": "http://other/v1"}, id="its own base"
    ),
    pytest.param({"key": "k", "inputs": {"a": [1]}}, {"inputs": {"a": [1]}}, id="inputs"),
    pytest.param({"key": "k", "system": "input:rules"}, {"system": "input:rules"}, id="system"),
    pytest.param({"key": "k", "history": "drop"}, {"history": "drop"}, id="history"),
    pytest.param({"key": "k"}, {"history": "", "history_max_chars": 100_000}, id="no history"),
    pytest.param(
        {"key": "k", "history_max_chars": 0}, {"history_max_chars": 0}, id="history_max_chars"
    ),
    pytest.param(
        {"key": "k", "history_words": "zh"},
        {"history_words": WordsByLanguage(CHINESE, CHINESE)},
        id="history_words",
    ),
    pytest.param(
        {"key": "k", "history_words": {"user": " Usuário: "}},
        {"history_words": WordsByLanguage(IN_CHINESE, IN_ENGLISH)},
        id="history_words of one's own",
    ),
    pytest.param({"key": "k", "keep": False}, {"keep": False}, id="keep"),
    pytest.param(
        {
            "key": "k",
            "type": "advanced-chat",
            "text_input": "q",
            "output": "text",
            "continuity": "off",
            "tasks": "local",
            "keep": True,
            "reasoning": "drop",
            "agent_steps": "off",
            "progress": "status",
            "citations": "markdown",
            "max_streams": 5,
        },
        {"key": "k"},
        id="every name that is reserved",
    ),
]


def test_the_history_is_the_same_for_all_models_that_say_nothing_else() -> None:
    config = {"a": "k", "b": {"key": "k", "history_max_chars": 5, "history_words": "en"}}
    environ = {
        **GOOD,
        "MODEL_CONFIG": json.dumps(config),
        "HISTORY_MAX_CHARS": "7",
        "HISTORY_WORDS": ' {"user": "Usuário:"} ',
    }
    models = load_settings(environ).models
    assert (models["a"].history_max_chars, models["b"].history_max_chars) == (7, 5)
    assert models["a"].history_words == WordsByLanguage(IN_CHINESE, IN_ENGLISH)
    assert models["b"].history_words == WordsByLanguage(ENGLISH, ENGLISH)
    environ["HISTORY_WORDS"] = "ZH"
    assert load_settings(environ).models["a"].history_words == WordsByLanguage(CHINESE, CHINESE)


def test_the_tasks_of_a_model_may_be_given_to_another() -> None:
    found: list[str] = []
    config = {"a": {"key": "k", "tasks": "model:b"}, "b": {"key": "l", "tasks": "throwaway"}}
    models = parse_models(json.dumps(config), BASE, found)
    assert found == []
    assert (models["a"].tasks, models["b"].tasks) == ("model:b", "throwaway")


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        pytest.param(
            {"a": {"key": "k", "tasks": "model:b"}},
            "MODEL_CONFIG: model 'a', setting 'tasks' refers to the model 'b', "
            "which does not exist",
            id="no such model",
        ),
        pytest.param(
            {"a": {"key": "k", "tasks": "model:a"}},
            "MODEL_CONFIG: model 'a', setting 'tasks' must name a different model, "
            "or be 'throwaway'",
            id="itself",
        ),
        pytest.param(
            {"a": {"key": "k", "tasks": "model:b"}, "b": {"key": ""}},
            "MODEL_CONFIG: model 'b', setting 'key' must be the API key of a Dify app",
            id="one that is wrong itself is told of once",
        ),
    ],
)
def test_tasks_are_given_to_somebody_who_is_there(config: dict[str, Any], problem: str) -> None:
    assert problems(MODEL_CONFIG=json.dumps(config)) == [problem]


def test_the_secret_of_open_webui_is_long_and_never_shown() -> None:
    secret = "0123456789abcdef" * 2
    settings = load_settings({**GOOD, "OPENWEBUI_JWT_SECRET": f" {secret} "})
    assert settings.openwebui_jwt_secret == secret
    assert secret not in repr(settings)
    (problem,) = problems(OPENWEBUI_JWT_SECRET=secret[1:])
    assert problem.startswith("OPENWEBUI_JWT_SECRET must have 32 characters or more")
    assert secret[1:] not in problem


@pytest.mark.parametrize(("entry", "expected"), MODELS)
def test_a_model_is_a_key_or_an_object(entry: Any, expected: dict[str, Any]) -> None:
    found: list[str] = []
    model = parse_models(json.dumps({"tiny": entry}), BASE, found)["tiny"]
    assert found == []
    assert model.name == "tiny"
    for name, value in expected.items():
        assert getattr(model, name) == value


def test_a_model_name_may_hold_a_slash_and_any_script() -> None:
    names = ["org/model", "模型 一", "a:b@c"]
    assert list(parse_models(json.dumps(dict.fromkeys(names, KEY)), BASE, [])) == names


BAD_ICONS = [
    "",
    "robot",
    5,
    "/static/icon.png",
    "//example.com/icon.png",
    "javascript:alert(1)",
    "https://",
    "data:text/html;base64,PGI+",
    "data:image/png;base64," + "A" * 100_000,
    "问" * 17,
]

BAD_MODELS = [
    pytest.param({"": KEY}, "a model name is empty", id="an empty name"),
    pytest.param({" a": KEY}, "a model name", id="a name with a blank before it"),
    pytest.param({"a\nb": KEY}, "a model name", id="a name with a line break"),
    pytest.param({"a": 5}, "model 'a' must have a key", id="a number"),
    pytest.param({"a": None}, "model 'a' must have a key", id="null"),
    pytest.param({"a": [KEY]}, "model 'a' must have a key", id="a list"),
    pytest.param({"a": {}}, "model 'a' has no 'key'", id="no key"),
    pytest.param({"a": ""}, "setting 'key' must be the API key", id="an empty key"),
    pytest.param(
        {"a": {"key": 5}}, "setting 'key' must be the API key", id="a key of another type"
    ),
    pytest.param({"a": f"{KEY} "}, "setting 'key' contains characters", id="a key with a blank"),
    pytest.param(
        {"a": f"{KEY}\n"}, "setting 'key' contains characters", id="a key with a line break"
    ),
    pytest.param({"a": f"{KEY}é"}, "setting 'key' contains characters", id="a key with an accent"),
    pytest.param({"a": {"key": KEY, "kee": 1}}, "an unknown setting 'kee'", id="an unknown name"),
    pytest.param({"a": {"key": KEY, "type": "bot"}}, "'type' must be one of", id="type"),
    pytest.param({"a": {"key": KEY, "base": "x"}}, "'base' must be an address", id="base"),
    pytest.param({"a": {"key": KEY, "base": 5}}, "'base' must be an address", id="base, a number"),
    pytest.param({"a": {"key": KEY, "inputs": []}}, "'inputs' must be an object", id="inputs"),
    pytest.param({"a": {"key": KEY, "system": "x"}}, "'system' must be one of", id="system"),
    pytest.param({"a": {"key": KEY, "system": "input:"}}, "input:<name>", id="an input, no name"),
    pytest.param({"a": {"key": KEY, "history": ["x"]}}, "'history' must be one of", id="history"),
    pytest.param(
        {"a": {"key": KEY, "history_max_chars": -1}},
        "'history_max_chars' must be a whole number from 0 to 10000000",
        id="history_max_chars",
    ),
    pytest.param(
        {"a": {"key": KEY, "history_max_chars": True}}, "'history_max_chars' must be", id="a bool"
    ),
    pytest.param(
        {"a": {"key": KEY, "history_words": "pt"}},
        "'history_words' must be auto, en, zh, or an object",
        id="a language that is not known",
    ),
    pytest.param(
        {"a": {"key": KEY, "history_words": ["zh"]}}, "'history_words' must be auto", id="a list"
    ),
    pytest.param(
        {"a": {"key": KEY, "history_words": {"usr": "x"}}},
        "'history_words' has an unknown text 'usr'; known are history_heading, ",
        id="a text that is not known",
    ),
    pytest.param(
        {"a": {"key": KEY, "history_words": {"user": " "}}},
        "'history_words': 'user' must be a text of 1 to 500 characters",
        id="a blank text",
    ),
    pytest.param(
        {"a": {"key": KEY, "history_words": {"user": 5}}}, "'user' must be a text", id="no text"
    ),
    pytest.param({"a": {"key": KEY, "tasks": "model:"}}, "model:<name>", id="tasks"),
    pytest.param({"a": {"key": KEY, "keep": "no"}}, "'keep' must be true or false", id="keep"),
    pytest.param({"a": {"key": KEY, "keep": 0}}, "'keep' must be true or false", id="keep, 0"),
    pytest.param(
        {"a": {"key": KEY, "keep": False, "continuity": "auto"}},
        "with 'keep' false no conversation is continued: remove one of them",
        id="continuity without keep",
    ),
    pytest.param({"a": {"key": KEY, "max_streams": 0}}, "'max_streams' must be", id="max_streams"),
    pytest.param({"a": {"key": KEY, "max_streams": True}}, "'max_streams' must be", id="true"),
    pytest.param({"a": {"key": KEY, "name": " "}}, "'name' must be a text of 1 to 200", id="name"),
    pytest.param({"a": {"key": KEY, "name": "x" * 201}}, "'name' must be", id="a long name"),
    pytest.param({"a": {"key": KEY, "description": 5}}, "'description' must be", id="description"),
    pytest.param({"a": {"key": KEY, "hidden": "yes"}}, "'hidden' must be true or", id="hidden"),
    *(
        pytest.param({"a": {"key": KEY, "icon": icon}}, "'icon' must be an emoji", id=f"icon {n}")
        for n, icon in enumerate(BAD_ICONS)
    ),
    pytest.param({"a": {"key": KEY, "output": ""}}, "'output' must be", id="output"),
]


ICON = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize("icon", ["🤖", "https://example.com/icon.png", ICON])
def test_what_a_model_shows_can_be_set(icon: str) -> None:
    shown = {"name": " Ours ", "description": "Text", "icon": icon, "hidden": True}
    config = {"a": {"key": KEY, **shown}}
    model = load_settings({**GOOD, "MODEL_CONFIG": json.dumps(config)}).models["a"]
    assert (model.name, model.title, model.description) == ("a", "Ours", "Text")
    assert (model.icon, model.hidden) == (icon, True)


@pytest.mark.parametrize(("models", "problem"), BAD_MODELS)
def test_a_bad_model_is_named_with_what_is_wrong(models: dict[str, Any], problem: str) -> None:
    (found,) = problems(MODEL_CONFIG=json.dumps(models))
    assert found.startswith("MODEL_CONFIG: ")
    assert problem in found


def test_the_settings_of_a_model_are_those_of_the_product() -> None:
    assert list(SETTINGS) == [
        "key",
        "base",
        "aliases",
        "type",
        "inputs",
        "text_input",
        "output",
        "system",
        "history",
        "history_max_chars",
        "history_words",
        "continuity",
        "conversation_ids",
        "tasks",
        "keep",
        "reasoning",
        "agent_steps",
        "progress",
        "citations",
        "max_streams",
        "name",
        "description",
        "icon",
        "hidden",
    ]


def test_no_common_base_is_needed_where_every_model_has_its_own() -> None:
    own = {"a": {"key": KEY, "base": "http://x/v1"}}
    models = load_settings({"MODEL_CONFIG": json.dumps(own)}).models
    assert models["a"].base == "http://x/v1"
    found = problems(DIFY_API_BASE="", MODEL_CONFIG=json.dumps({**own, "b": KEY}))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://x", "http://x"),
        ("http://x/v1/", "http://x/v1"),
        ("https://x.example:8443/a/v1", "https://x.example:8443/a/v1"),
        ("http://[::1]:5001/v1", "http://[::1]:5001/v1"),
        ("HTTP://X/v1", "HTTP://X/v1"),
    ],
)
def test_an_address_loses_its_last_slash_and_nothing_else(url: str, base: str) -> None:
    assert parse_base(url) == base


@given(url=st.text() | st.text(alphabet="htps:/@[]?#x1.").map("http://".__add__))
def test_any_text_is_an_address_or_a_bad_value(url: str) -> None:
    try:
        assert parse_base(url).startswith(("http", "HTTP"))
    except InvalidValue as exc:
        assert str(exc).startswith("must be")


def test_all_problems_are_reported_at_once() -> None:
    bad = {
        "DIFY_API_BASE": "dify.example.com",
        "MODEL_CONFIG": json.dumps({"a": 5, "b": {"key": KEY, "kee": 1}, "c": KEY}),
        "SERVER_PORT": "http",
        "GUNICORN_WORKERS": "many",
        "GUNICORN_RELOAD": "maybe",
        "ENVIRONMENT": "test",
        "LOG_LEVEL": "loud",
        "MAX_BODY_MB": "0",
        "ALL_PROXY": "proxy://user:secret@x",
    }
    found = problems(**bad)
    for name in bad:
        assert any(line.startswith(name) for line in found)
    assert sum(line.startswith("MODEL_CONFIG") for line in found) == 2
    assert len(set(found)) == len(found) == len(bad) + 1
    assert "secret" not in "".join(found)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(KEY) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*SETTINGS, "a", "b"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(config=JSON_VALUES)
def test_no_problem_ever_shows_a_value_that_may_be_a_key(config: Any) -> None:
    environ = {**GOOD, "MODEL_CONFIG": json.dumps(config)}
    try:
        settings = load_settings(environ)
    except ConfigError as exc:
        assert KEY not in str(exc) + repr(exc)
    else:
        assert KEY not in repr(settings)


def test_a_model_config_cut_anywhere_shows_no_part_of_its_key() -> None:
    whole = json.dumps({"tiny": {"key": KEY, "base": BASE}, "other": KEY})
    for position in range(1, len(whole)):
        found = problems(MODEL_CONFIG=whole[:position])
        assert "app-" not in "".join(found).replace("app-...", "")


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch, **environ: str) -> dict[str, str]:
    monkeypatch.chdir(folder)
    load_environment(environ)
    return environ


DOTENV = [
    pytest.param("A=1", {"A": "1"}, id="plain"),
    pytest.param('A="1"', {"A": "1"}, id="double quotes"),
    pytest.param('A=\'{"m":"k"}\'', {"A": '{"m":"k"}'}, id="JSON in single quotes"),
    pytest.param('A={"m":"k"}', {"A": '{"m":"k"}'}, id="JSON bare"),
    pytest.param("export A=1", {"A": "1"}, id="export"),
    pytest.param("# A=1", {}, id="a comment"),
    pytest.param("A", {}, id="a name alone"),
    pytest.param("A=", {"A": ""}, id="an empty value"),
    pytest.param("A='$HOME ${B}'", {"A": "$HOME ${B}"}, id="nothing is filled in"),
    pytest.param("A=你好", {"A": "你好"}, id="any script"),
]


@pytest.mark.parametrize(("text", "expected"), DOTENV)
def test_dotenv_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: dict[str, str]
) -> None:
    (tmp_path / ".env").write_text(text)
    assert loaded(tmp_path, monkeypatch) == expected


def test_the_environment_wins_over_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("A=file\nB=file")
    assert loaded(tmp_path, monkeypatch, A="set") == {"A": "set", "B": "file"}


def test_dotenv_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(tmp_path, monkeypatch, A="set") == {"A": "set"}


@pytest.mark.parametrize("encoding", ["utf-16", "gbk"])
def test_a_dotenv_in_another_encoding_is_a_problem_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    (tmp_path / ".env").write_bytes(f"# 模型\nMODEL_CONFIG={KEY}\n".encode(encoding))
    with pytest.raises(ConfigError, match="is not UTF-8 text") as caught:
        loaded(tmp_path, monkeypatch)
    assert KEY not in str(caught.value)


def test_a_dotenv_as_windows_editors_write_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfA='1'\r\nB=2\r\nC=3")
    assert loaded(tmp_path, monkeypatch) == {"A": "1", "B": "2", "C": "3"}


QUOTED = [
    pytest.param('"x"', "x", id="double"),
    pytest.param("'x'", "x", id="single"),
    pytest.param("""'{"m":"k"}'""", '{"m":"k"}', id="JSON in single quotes"),
    pytest.param("""'"x"'""", '"x"', id="only one pair"),
    pytest.param('"x', '"x', id="only at the start"),
    pytest.param("\"x'", "\"x'", id="two kinds"),
    pytest.param('"', '"', id="a quote alone"),
    pytest.param('""', "", id="a pair and nothing in it"),
    pytest.param('"x" ', "x", id="a blank behind"),
    pytest.param('"x"\r', "x", id="a line end of Windows behind"),
    pytest.param(" x ", " x ", id="blanks alone"),
    pytest.param('{"m":"k"}', '{"m":"k"}', id="JSON"),
]


@pytest.mark.parametrize(("value", "expected"), QUOTED)
def test_the_quotes_that_docker_leaves_on_are_taken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, expected: str
) -> None:
    assert loaded(tmp_path, monkeypatch, A=value) == {"A": expected}


def said(folder: Path, variables: Mapping[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "opendify.config"],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_the_check_before_the_start_names_all_that_is_missing(tmp_path: Path) -> None:
    code, text = said(
        tmp_path, {"SERVER_PORT": "x", "SERVER_HOST": "http://x", "MODEL_CONFIG": f'{{"a":"{KEY}"'}
    )
    assert code == 78
    for name in ("MODEL_CONFIG", "DIFY_API_BASE", "SERVER_PORT", "SERVER_HOST", ".env.example"):
        assert name in text
    assert KEY not in text


def test_the_check_before_the_start_is_silent_when_all_is_well(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("".join(f"{name}='{value}'\n" for name, value in GOOD.items()))
    assert said(tmp_path, {}) == (0, "")


class Recorder(dict[str, str]):
    """An environment that notes which variables are asked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)


def named_in_the_example() -> set[str]:
    text = (ROOT / ".env.example").read_text()
    return set(re.findall(r"^#?([A-Z][A-Z_]+)=", text, re.MULTILINE))


def test_the_example_names_every_variable_that_is_read_and_no_other() -> None:
    environ = Recorder(GOOD)
    load_settings(environ)
    asked = {name for name in environ.asked if name.isupper()}
    assert asked | {"NO_PROXY"} == named_in_the_example()


def test_the_example_is_a_configuration_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / ".env.example").read_text()
    (tmp_path / ".env").write_text(text)
    load_settings(loaded(tmp_path, monkeypatch))
    (tmp_path / ".env").write_text(re.sub(r"^#([A-Z][A-Z_]+=)", r"\1", text, flags=re.MULTILINE))
    load_settings(loaded(tmp_path, monkeypatch))


def test_the_application_by_itself_says_what_is_wrong_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("The configuration is not complete:\nMODEL_CONFIG is not set.")


# --- files of authorities ----------------------------------------------------------------------

AUTHORITY = trustme.CA().cert_pem.bytes().decode()
DAMAGED = AUTHORITY[:200] + AUTHORITY[210:]


def with_file(variable: str, path: Path) -> Settings:
    return load_settings({**GOOD, variable: str(path)}, read_file, check_certificates)


def test_the_authorities_of_the_operator_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(f"# 我们的机构\n{AUTHORITY}\n# another\n{AUTHORITY}")
    assert with_file("DIFY_CA_FILE", path).ca_certificates == AUTHORITY * 2
    assert with_file("SSL_CERT_FILE", path).ca_certificates == ""


BAD_FILES = [
    pytest.param(None, "cannot be read (No such file", id="missing"),
    pytest.param(b"", "contains no certificate", id="empty"),
    pytest.param(b"hello", "contains no certificate", id="something else"),
    pytest.param(b"\x30\x82\x01\xff\xfe", "openssl x509 -inform der", id="DER"),
    pytest.param(AUTHORITY[:300].encode(), "contains no certificate", id="half of one"),
    pytest.param(DAMAGED.encode(), "damaged", id="damaged"),
    pytest.param((AUTHORITY + DAMAGED).encode(), "damaged", id="the second damaged"),
]


@pytest.mark.parametrize(("content", "words"), BAD_FILES)
@pytest.mark.parametrize("variable", ["DIFY_CA_FILE", "SSL_CERT_FILE"])
def test_a_bad_file_of_authorities_is_named_at_the_start(
    tmp_path: Path, variable: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        with_file(variable, path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{variable}: {path} ")
    assert words in problem


@pytest.mark.parametrize("variable", ["DIFY_CA_FILE", "SSL_CERT_FILE"])
@pytest.mark.parametrize("command", [["-m", "opendify.config"], ["-c", "import main"]])
def test_a_bad_file_of_authorities_stops_the_start(
    tmp_path: Path, variable: str, command: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={**environment(**GOOD), variable: "/nowhere/ca.pem"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert f"{variable}: /nowhere/ca.pem cannot be read" in done.stderr
