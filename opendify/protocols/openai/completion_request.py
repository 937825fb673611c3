"""A request to the older completions endpoint: one text in, one text out. No I/O.

The prompt is one message of the user, so that an app gets the text and nothing around it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opendify.errors import InvalidRequest
from opendify.protocols.base import ChatPrompt, Message
from opendify.protocols.json_object import JsonObject
from opendify.protocols.openai import completion_response
from opendify.protocols.openai.completion_stream import CompletionStreamWriter
from opendify.protocols.openai.request_fields import (
    COMMON_FIELDS,
    check_count,
    parse_include_usage,
    parse_prompt,
)
from opendify.protocols.request_fields import FieldTable, parse_boolean, parse_model
from opendify.protocols.responses import WholeResponse

# Fields that Dify has no counterpart for: they are set in the Dify app.
IGNORED_FIELDS = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "best_of",
)
_DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "max_tokens": (16,),
    "best_of": (1,),
}
_FIELDS = FieldTable(COMMON_FIELDS | {"prompt", "suffix", "echo"}, IGNORED_FIELDS, _DEFAULTS)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A completion request. ``echo`` is the text that the answer begins with: the prompt where the
    caller asked for it, otherwise empty. ``ignored`` names the fields that have no effect."""

    prompt: ChatPrompt
    echo: str
    include_usage: bool
    ignored: tuple[str, ...]

    def new_writer(self) -> CompletionStreamWriter:
        """For a streamed response."""
        return CompletionStreamWriter(self.echo, self.include_usage)

    def to_json(self, response: WholeResponse) -> dict[str, Any]:
        """For a whole one."""
        return completion_response.completion(response, self.echo)


def parse_completion_request(body: JsonObject) -> CompletionRequest:
    """Checks a body. Raises InvalidRequest and RequestTooLarge, which name the field."""
    model = parse_model(body)
    check_count(body)
    _check_suffix(body.get("suffix"))
    text = _parse_text(body.get("prompt"))
    return CompletionRequest(
        parse_prompt(body, model, (Message("user", text),)),
        echo=text if parse_boolean(body, "echo") else "",
        include_usage=parse_include_usage(body),
        ignored=_FIELDS.without_effect(body),
    )


def _check_suffix(suffix: Any) -> None:
    if suffix is not None and suffix != "":
        raise InvalidRequest(
            "'suffix' is not supported: a Dify app cannot insert text before another one. Leave it "
            "out, and choose another provider for code completion in the client.",
            param="suffix",
        )


def _parse_text(raw: Any) -> str:
    """The one text of ``prompt``. OpenAI also takes several texts, and the numbers of tokens."""
    texts = [raw] if isinstance(raw, str) else raw
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
        raise InvalidRequest(
            "'prompt' must be a text, or an array with one text; numbers of tokens cannot be read.",
            param="prompt",
        )
    if len(texts) > 1:
        raise InvalidRequest(
            "'prompt' may hold one text: Dify gives one answer to a question. Send a request for "
            "each of them.",
            param="prompt",
        )
    text = texts[0].replace("\0", "")
    if not text.strip():
        raise InvalidRequest("'prompt' is empty.", param="prompt")
    return text
