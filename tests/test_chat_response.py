from typing import Any

import pytest

from opendify.dify.events import Ids, Usage
from opendify.protocols.openai import chat_response
from opendify.protocols.openai.chat_response import ChunkMeta
from opendify.protocols.responses import ResponseMeta, WholeResponse, dify_metadata
from opendify.rendering.deltas import Completion
from tests.support import schemas

HEAD = ChunkMeta("chatcmpl-1", 1795460080, "tiny")
ASKED_FOR_USAGE = ChunkMeta("chatcmpl-1", 1795460080, "tiny", include_usage=True)

CHUNKS = [
    pytest.param({"role": "assistant", "content": ""}, None, id="the first"),
    pytest.param({"content": "你好\n\u2028"}, None, id="text"),
    pytest.param({}, "stop", id="the last"),
    pytest.param({}, "length", id="cut by its length"),
    pytest.param({}, "content_filter", id="moderated"),
]


@pytest.mark.parametrize("head", [HEAD, ASKED_FOR_USAGE], ids=["plain", "with usage"])
@pytest.mark.parametrize(("delta", "finish_reason"), CHUNKS)
def test_a_chunk_is_valid_and_says_only_what_it_is_given(
    head: ChunkMeta, delta: dict[str, str], finish_reason: str | None
) -> None:
    chunk = chat_response.chunk(head, delta, finish_reason)
    schemas.assert_chunk(chunk)
    assert (chunk["id"], chunk["created"], chunk["model"]) == ("chatcmpl-1", 1795460080, "tiny")
    (choice,) = chunk["choices"]
    assert (choice["index"], choice["delta"], choice["finish_reason"]) == (0, delta, finish_reason)


def test_usage_is_null_in_every_chunk_where_it_was_asked_for_and_absent_elsewhere() -> None:
    assert chat_response.chunk(ASKED_FOR_USAGE, {})["usage"] is None
    assert "usage" not in chat_response.chunk(HEAD, {})


def test_the_usage_chunk_has_no_choices() -> None:
    chunk = chat_response.usage_chunk(ASKED_FOR_USAGE, Usage(3, 2, 5))
    schemas.assert_chunk(chunk)
    assert chunk["choices"] == []
    assert chunk["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@pytest.mark.parametrize("finish_reason", ["stop", "length", "content_filter"])
@pytest.mark.parametrize("content", ["", "Hello", "你好"])
def test_a_whole_answer_is_valid(content: str, finish_reason: str) -> None:
    ended = Completion(finish_reason, Usage(3, 2, 5))
    meta = ResponseMeta("1", 1795460080, "tiny", Ids("c"))
    answer = chat_response.completion(WholeResponse(meta, content, "", ended))
    schemas.assert_completion(answer)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == finish_reason
    assert choice["message"] == {
        "role": "assistant",
        "content": content,
        "refusal": None,
        "annotations": [],
    }
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert answer["dify"] == {"conversation_id": "c"}


def test_usage_that_dify_did_not_send_is_zero() -> None:
    response = WholeResponse(ResponseMeta("1", 0, "m"), "", "", Completion())
    assert set(chat_response.completion(response)["usage"].values()) == {0}


def test_dify_s_names_are_given_as_far_as_they_are_known() -> None:
    def named(*ids: Any) -> Any:
        return dify_metadata(ResponseMeta("1", 0, "m", Ids(*ids)), Completion())

    assert named() == {}
    assert named("c") == {"conversation_id": "c"}
    assert named("c", "m", "t", "r", 5) == {
        "conversation_id": "c",
        "message_id": "m",
        "task_id": "t",
        "workflow_run_id": "r",
    }
