"""An estimate of the tokens of a prompt, without the tokenizer of the app's model. No I/O."""

from typing import Any

from opendify.protocols.anthropic.message_request import CountRequest

# Averages of the usual tokenizers: English words and code, and text in other scripts, where a
# character is about a token.
_ASCII_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
# What Anthropic counts at most for a picture; a document's pages are unknown here.
_TOKENS_PER_FILE = 1600


def token_count(request: CountRequest) -> dict[str, Any]:
    """The answer of ``count_tokens``, which says that it is an estimate."""
    texts = sum(_tokens(message.text) for message in request.messages)
    files = sum(len(message.attachments) for message in request.messages)
    tokens = (
        texts
        + _TOKENS_PER_MESSAGE * len(request.messages)
        + _TOKENS_PER_FILE * files
        + request.tools_size // _ASCII_CHARACTERS_PER_TOKEN
    )
    return {"input_tokens": tokens, "is_estimate": True}


def _tokens(text: str) -> int:
    others = 0 if text.isascii() else len(text) - len(text.encode("ascii", "ignore"))
    return others + -(-(len(text) - others) // _ASCII_CHARACTERS_PER_TOKEN)
