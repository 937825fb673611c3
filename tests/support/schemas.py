"""OpenAI's own schemas (their OpenAPI document 2.3.0), to hold every answer against."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

_FILE = Path(__file__).parent.parent / "data" / "openai-chat-schemas.json"


def assert_completion(value: Any) -> None:
    _assert_valid("CreateChatCompletionResponse", value)


def assert_chunk(value: Any) -> None:
    _assert_valid("CreateChatCompletionStreamResponse", value)


def assert_error(value: Any) -> None:
    _assert_valid("ErrorResponse", value)


def assert_model(value: Any) -> None:
    _assert_valid("Model", value)


def assert_model_list(value: Any) -> None:
    _assert_valid("ListModelsResponse", value)


def _assert_valid(name: str, value: Any) -> None:
    problems = [f"{e.json_path}: {e.message}" for e in _validator(name).iter_errors(value)]
    assert not problems, f"not a valid {name}: {problems}\n{value!r}"


@cache
def _validator(name: str) -> Draft202012Validator:
    components = _without_nullable(json.loads(_FILE.read_text()))["components"]
    schema = {"$ref": f"#/components/schemas/{name}", "components": components}
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def _without_nullable(schema: Any) -> Any:
    """The document says ``nullable`` in places, which is no word of its own JSON Schema dialect."""
    if isinstance(schema, list):
        return [_without_nullable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _without_nullable(value) for name, value in schema.items()}
    if plain.get("nullable") is True:
        del plain["nullable"]
        return {"anyOf": [plain, {"type": "null"}]}
    return plain
