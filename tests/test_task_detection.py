import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.chat import task_detection, tasks
from opendify.chat.tasks import Task
from opendify.config.models import Model
from opendify.protocols.base import ChatPrompt
from tests.support.bodies import to_prompt
from tests.support.openwebui import Recorded, recorded, task_body, task_prompt

SHAPED = [
    "title_generation",
    "tags_generation",
    "follow_up_generation",
    "query_generation",
    "autocomplete_generation",
    "image_prompt_generation",
]
RETRIEVAL = (
    "### Task:\nRespond to the user query using the provided context.\n"
    '<context>\n<source id="1">{source}</source>\n</context>\n\nWhat is in it?'
)
COMPACTION = (
    "### Task:\nSummarize.\n\n### Previous Summary:\n\n"
    "### Messages Being Compacted:\nUSER: {said}\n\n### Recent Messages Kept In Context:\nUSER: b"
)


def parse(prompt: Any, **fields: Any) -> ChatPrompt:
    messages = [{"role": "user", "content": prompt}]
    return to_prompt({"model": "tiny", "messages": messages, **fields})


def detected(chat: ChatPrompt, header: str = "") -> str:
    """The kind of task, "" for a turn."""
    task = task_detection.detect(chat, header)
    return task.kind if task else ""


@pytest.mark.parametrize("one", recorded(), ids=lambda one: f"{one.scenario}-{one.task or 'turn'}")
@pytest.mark.parametrize("header", ["sent", "absent", "a template", "blank"])
def test_a_recorded_request_is_recognised(one: Recorded, header: str) -> None:
    said = {"sent": one.task, "absent": "", "a template": "{{TASK}}", "blank": " "}[header]
    assert detected(to_prompt(one.body), said) == one.task


def test_the_recordings_hold_tasks_and_turns_of_many_kinds() -> None:
    kinds = {one.task for one in recorded()}
    assert {"", "title_generation", "tags_generation", "follow_up_generation"} <= kinds


@pytest.mark.parametrize("kind", SHAPED)
def test_a_task_is_recognised_by_its_shape(kind: str) -> None:
    assert detected(to_prompt(task_body(kind))) == kind


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("title_generation", "title_generation"),
        (" tags_generation ", "tags_generation"),
        ("emoji_generation", "emoji_generation"),
        ("function_calling", "function_calling"),
        ("moa_response_generation", "moa_response_generation"),
        ("context_compaction", "context_compaction"),
        ("memory_review", "task"),
        ("", ""),
        ("  ", ""),
        ("{{TASK}}", ""),
        ("{{ TASK }}", ""),
    ],
)
def test_the_header_names_the_task_of_any_request(header: str, kind: str) -> None:
    assert detected(parse("Hi"), header) == kind
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert detected(parse("Hi", stream=True, tools=tools), header) == kind


TASK = task_prompt("title_generation")
TOOLS = [{"type": "function", "function": {"name": "f"}}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TURNS = [
    pytest.param({"stream": True}, id="streamed"),
    pytest.param({"tools": TOOLS}, id="with tools"),
    pytest.param({"tools": []}, id="with an empty list of tools"),
    pytest.param(
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": TASK},
            ]
        },
        id="after a chat",
    ),
    pytest.param(
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "system", "content": TASK}]},
        id="in a system message",
    ),
    pytest.param(
        {"messages": [{"role": "user", "content": TASK}, {"role": "assistant", "content": "A"}]},
        id="an answer to be continued",
    ),
    pytest.param(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": TASK}, PICTURE]}]},
        id="with a picture",
    ),
    pytest.param({"messages": [{"role": "user", "content": f"See: {TASK}"}]}, id="a word before"),
    pytest.param(
        {"messages": [{"role": "user", "content": "### Task:\nWrite a poem."}]}, id="no history"
    ),
    pytest.param(
        {"messages": [{"role": "user", "content": "### Task:\n<chat_history> is a tag of what?"}]},
        id="half a history",
    ),
    pytest.param(
        {"messages": [{"role": "user", "content": "### Task:\n</chat_history> <chat_history>"}]},
        id="a history upside down",
    ),
    pytest.param(
        {"messages": [{"role": "user", "content": RETRIEVAL.format(source="A lake.")}]},
        id="a retrieval prompt that is not streamed",
    ),
    pytest.param(
        {"messages": [{"role": "user", "content": RETRIEVAL.format(source=TASK)}]},
        id="a retrieval prompt about a task prompt",
    ),
    pytest.param(
        {
            "messages": [
                {"role": "user", "content": RETRIEVAL.format(source=COMPACTION.format(said="a"))}
            ]
        },
        id="a retrieval prompt about a compaction",
    ),
]


@pytest.mark.parametrize("fields", TURNS)
def test_what_has_not_the_whole_shape_is_a_turn(fields: dict[str, Any]) -> None:
    body = {**task_body("title_generation"), **fields}
    assert detected(to_prompt(body)) == ""


def test_a_compaction_is_recognised() -> None:
    prompt = COMPACTION.format(said="What is <chat_history>?")
    assert detected(parse(prompt)) == "context_compaction"


SAID = st.text() | st.sampled_from(
    ['{"tags": ["a"]}', '"title":', "<context>", "</chat_history>", "<chat_history>", "### Task:"]
)


@given(st.sampled_from(SHAPED), st.lists(SAID).map("\n".join))
def test_nothing_that_was_said_changes_what_a_task_is(kind: str, said: str) -> None:
    assert detected(parse(task_prompt(kind, said))) == kind


CONTENT = st.text(min_size=1) | st.sampled_from([TASK, RETRIEVAL, "### Task:\nHi"])
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": CONTENT}
)


@given(st.lists(MESSAGE, max_size=3), st.booleans(), st.booleans())
def test_only_requests_of_the_shape_are_tasks(
    before: list[dict[str, str]], streamed: bool, with_tools: bool
) -> None:
    messages = [*before, {"role": "user", "content": TASK}]
    body = {"model": "tiny", "messages": messages, "stream": streamed}
    request = to_prompt(body | ({"tools": TOOLS} if with_tools else {}))
    is_alone = all(message["role"] == "system" for message in before)
    is_task = is_alone and not (streamed or with_tools)
    assert detected(request) == ("title_generation" if is_task else "")


@given(st.text())
def test_what_a_person_writes_is_a_turn(text: str) -> None:
    if "<chat_history>" not in text and "### Messages Being Compacted:" not in text:
        for prompt in (text, f"### Task:\n{text}"):
            if prompt.strip("\0").strip():
                assert detected(parse(prompt)) == ""


EMPTY = [
    ("title_generation", "", {"title": ""}),
    ("tags_generation", "", {"tags": []}),
    ("follow_up_generation", "", {"follow_ups": []}),
    ("query_generation", "", {"queries": []}),
    ("autocomplete_generation", "", {"text": ""}),
    ("image_prompt_generation", "", {"prompt": ""}),
    ("function_calling", "", {"tool_calls": []}),
    ("task", task_prompt("tags_generation"), {"tags": []}),
    ("task", 'Answer with the key "queries".', {"queries": []}),
]


@pytest.mark.parametrize(("kind", "prompt", "expected"), EMPTY)
def test_an_empty_answer_has_the_shape_that_was_asked_for(
    kind: str, prompt: str, expected: Any
) -> None:
    task = task_detection.detect(parse(prompt or "Hi"), kind)
    assert task is not None
    assert json.loads(task.answer()) == expected


@pytest.mark.parametrize(
    "kind", ["emoji_generation", "context_compaction", "moa_response_generation", "task"]
)
def test_an_empty_answer_of_no_shape_is_no_text(kind: str) -> None:
    task = task_detection.detect(parse("What is this?"), kind)
    assert task is not None
    assert task.answer() == ""


def test_an_answer_keeps_every_letter() -> None:
    title = task_detection.detect(parse("Hi"), "title_generation")
    follow_ups = task_detection.detect(parse("Hi"), "follow_up_generation")
    assert title and follow_ups
    assert json.loads(title.answer('Ä "new" 会话')) == {"title": 'Ä "new" 会话'}
    assert follow_ups.answer(["为什么?"]) == '{"follow_ups":["为什么?"]}'


@pytest.mark.parametrize("system", ["system", "developer"])
@pytest.mark.parametrize("kind", SHAPED)
def test_a_task_is_recognised_behind_system_messages(kind: str, system: str) -> None:
    before = [{"role": system, "content": "Be kind."}, {"role": "system", "content": "It is May."}]
    body = task_body(kind)
    chat = to_prompt({**body, "messages": [*before, *body["messages"]]})
    assert detected(chat) == kind


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ("title_generation", "title_generation"),
        (" tags_generation ", "tags_generation"),
        ("context_compaction", "context_compaction"),
        ("memory_review", ""),
        ("summarize the invoice", ""),
        ("{{TASK}}", ""),
        ("", ""),
        (None, ""),
        (5, ""),
        (["title_generation"], ""),
        ({"type": "title_generation"}, ""),
    ],
)
def test_the_body_names_a_task_by_a_name_of_open_webui_only(named: Any, kind: str) -> None:
    assert detected(parse("Hi", metadata={"task": named})) == kind
    assert detected(parse("Hi", stream=True, tools=TOOLS, metadata={"task": named})) == kind


def test_the_header_comes_before_the_body() -> None:
    chat = parse("Hi", metadata={"task": "tags_generation"})
    assert detected(chat, "title_generation") == "title_generation"


LOCAL = [*SHAPED, "function_calling", "emoji_generation", "task"]
RUN = ["moa_response_generation", "context_compaction", "translation", "text_generation"]


@pytest.mark.parametrize(
    ("kind", "expected"), [(k, "local") for k in LOCAL] + [(k, "throwaway") for k in RUN]
)
def test_only_tasks_whose_answer_is_needed_are_run(kind: str, expected: str) -> None:
    model = Model("m", "k", "b")
    assert tasks.policy(model, Task(kind)) == expected
    for setting in ("local", "throwaway", "model:x"):
        assert tasks.policy(replace(model, tasks=setting), Task(kind)) == setting


@pytest.mark.parametrize("kind", [*LOCAL, *RUN])
def test_a_model_that_keeps_nothing_runs_tasks_unless_told_otherwise(kind: str) -> None:
    model = Model("m", "k", "b", keep=False)
    assert tasks.policy(model, Task(kind)) == "throwaway"
    assert tasks.policy(replace(model, tasks="local"), Task(kind)) == "local"


def test_a_prompt_made_to_take_long_takes_no_longer_than_others() -> None:
    """It would take minutes if each of its blocks were looked for to the end."""
    prompt = "### Task:" + "<chat_history>" * 300_000
    raw = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    assert detected(to_prompt(raw)) == ""
