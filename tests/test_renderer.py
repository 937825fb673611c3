"""What the caller gets of an answer's events, one story a row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.config.models import Model
from opendify.dify.events import (
    AgentStep,
    AgentThought,
    Event,
    FileGenerated,
    HumanInputNeeded,
    MessageEnded,
    NodeFinished,
    NodeStarted,
    Paused,
    Reasoning,
    Replaced,
    RunFinished,
    Text,
    Usage,
)
from opendify.rendering.deltas import (
    Completion,
    ReasoningDelta,
    Reset,
    TextDelta,
    UiEvent,
)
from opendify.rendering.file_links import FileLinkResolver, is_resolved
from opendify.rendering.renderer import ResponseRenderer
from tests.support.profiles import examples

UUID = "0ccfe981-f968-4678-80ae-335266227dac"
SIGNED = "timestamp=1&nonce=2&sign=3"
CAT = FileGenerated("f", "image", f"/files/tools/{UUID}.png?{SIGNED}", "cat.png")
CAT_IN_TEXT = f"![cat](https://other.host/files/tools/{UUID}.png?{SIGNED})"
CAT_FILE = {"type": "image", "transfer_method": "tool_file", "url": CAT.url, "filename": "cat.png"}
QUESTION_NOTE = (
    "(Dify cannot continue the agent with your answer: it will begin again, and know this chat. "
    "If it only repeats its question, its operator should remove the tool ask_human in Dify.)"
)
SHOWN_CAT = "![cat.png](our/cat.png)"


@dataclass
class Rendered:
    text: str = ""
    reasoning: str = ""
    ui_events: list[Any] = field(default_factory=list)
    streamed: str = ""
    completion: Completion = field(default_factory=Completion)


def link(url: str, name: str, kind: str) -> str:
    return f"our/{name or kind}"


def render(
    events: Sequence[Event],
    mode: str = "chat",
    stops: Sequence[str] = (),
    form: str = "auto",
    **settings: str,
) -> Rendered:
    """Renders the events as ChatService does."""
    renderer = ResponseRenderer(Model("m", "k", "b", **settings), mode, stops, form)
    links = FileLinkResolver(link)
    rendered = Rendered(completion=renderer.completion)
    for event in events:
        for delta in links.resolve(renderer.feed(event)):
            match delta:
                case TextDelta(text):
                    assert text
                    rendered.text += text
                    rendered.streamed += text
                case ReasoningDelta(text):
                    rendered.reasoning += text
                case UiEvent(shown):
                    rendered.ui_events.append(shown)
                case Reset(had_text):
                    rendered.text = rendered.reasoning = ""
                    rendered.streamed += "\n\n" if had_text else ""
    assert renderer.has_ended
    return rendered


def run(*events: Event, outputs: dict[str, Any] | None = None, status: str = "succeeded") -> Any:
    return [*events, RunFinished(status, 7, outputs or {}), MessageEnded()]


def chunk(text: str, node: str = "llm") -> Text:
    return Text(text, node, "text_chunk")


def output(text: str, variable: str, node: str = "start") -> Text:
    return Text(text, node, "text_chunk", variable)


WORKFLOWS = [
    ("one text", run(outputs={"text": "Done"}), {}, "Done"),
    ("one number", run(outputs={"score": 0}), {}, "0"),
    ("nothing", run(outputs={}), {}, ""),
    ("empty outputs", run(outputs={"text": "", "other": None, "list": []}), {}, ""),
    ("one text beside nothing", run(outputs={"x": "Done", "y": None}), {}, "Done"),
    (
        "several",
        run(outputs={"text": "猫", "score": 0.5}),
        {},
        '```json\n{\n  "text": "猫",\n  "score": 0.5\n}\n```',
    ),
    ("the configured one", run(outputs={"a": "A", "b": "B"}), {"output": "b"}, "B"),
    ("a configured one that this branch lacks", run(outputs={"a": "A"}), {"output": "b"}, "A"),
    (
        "streamed text is not repeated",
        run(chunk("Do"), chunk("ne"), outputs={"t": "Done"}),
        {},
        "Done",
    ),
    (
        "what was not streamed is not lost",
        run(chunk("Done"), outputs={"t": "Done", "language": "en"}),
        {},
        "Done\n\nen",
    ),
    (
        "two streamed at once",
        run(chunk("A1"), chunk("B1", "n"), chunk("A2"), outputs={"a": "A1A2", "b": "B1"}),
        {},
        "A1B1A2",
    ),
    (
        "two outputs of one node are told once",
        run(
            output("A", "a"),
            output("\n", "answer", "end"),
            output("B", "b"),
            outputs={"x": "A", "y": "B"},
        ),
        {},
        "A\nB",
    ),
    (
        "one variable that is two outputs",
        run(
            output("A", "a"),
            output("\n", "answer", "end"),
            output("A", "a"),
            outputs={"x": "A", "y": "A"},
        ),
        {},
        "A\nA",
    ),
    (
        "a text and an object of one node",
        run(
            output("Hi", "text"),
            output("\n", "answer", "end"),
            output('{\n  "total": 3,\n  "city": "奥斯陆"\n}', "usage"),
            outputs={"answer": "Hi", "usage": {"total": 3, "city": "奥斯陆"}},
        ),
        {},
        'Hi\n{\n  "total": 3,\n  "city": "奥斯陆"\n}',
    ),
    (
        "values of other types, as Dify streams them",
        run(
            output("True", "b"),
            output("\n", "answer", "end"),
            output("0.5", "f"),
            output("\n", "answer", "end"),
            output("- one\n- 2", "l"),
            outputs={"b": True, "f": 0.5, "l": ["one", 2]},
        ),
        {},
        "True\n0.5\n- one\n- 2",
    ),
    (
        "a text with marked thoughts beside another output",
        run(
            output("<think>Hm</think>Hi", "text"),
            output("\n", "answer", "end"),
            output("<think>", "other"),
            outputs={"t": "<think>Hm</think>Hi", "o": "<think>"},
        ),
        {},
        "Hi\n",
    ),
    (
        "only the configured one beside streamed text",
        run(chunk("Done"), outputs={"t": "Done", "x": 1, "y": 2}),
        {"output": "y"},
        "Done\n\n2",
    ),
    ("a file", run(outputs={"picture": CAT_FILE}), {}, SHOWN_CAT),
    ("files and text", run(outputs={"t": "Two", "p": [CAT_FILE]}), {}, f"Two\n\n{SHOWN_CAT}"),
    (
        "an object that is no file",
        run(outputs={"news": {"type": "link", "url": "http://a/b"}}),
        {},
        '{\n  "type": "link",\n  "url": "http://a/b"\n}',
    ),
    (
        "stopped",
        run(chunk("Do"), status="stopped"),
        {},
        "Do\n\n(The run was stopped before its end.)",
    ),
    (
        "partly",
        run(outputs={"t": "Half"}, status="partial-succeeded"),
        {},
        "Half\n\n(The run ended with errors in some of its steps.)",
    ),
    (
        "waiting for a person",
        [HumanInputNeeded("Please review", ("Approve", "Reject")), Paused(), MessageEnded()],
        {},
        "Please review\n\n(Approve / Reject)\n\n(waiting for human input in Dify)",
    ),
    (
        "moderated to nothing",
        run(chunk("Bad"), Replaced(""), outputs={"t": "Bad"}),
        {},
        "",
    ),
]


@pytest.mark.parametrize(
    ("events", "settings", "expected"),
    [row[1:] for row in WORKFLOWS],
    ids=[row[0] for row in WORKFLOWS],
)
def test_a_workflow_s_outputs_are_rendered_once(
    events: list[Event], settings: dict[str, str], expected: str
) -> None:
    assert render(events, mode="workflow", **settings).text == expected


END = MessageEnded()
CHATS: list[tuple[str, list[Event], dict[str, Any], str, str]] = [
    ("text", [Text("Hi"), Text(" 你好"), END], {}, "Hi 你好", ""),
    ("halves of a character", [Text("a"), Text("\ud83d"), Text("\ude00b"), END], {}, "a😀b", ""),
    (
        "half a character",
        [Text("a"), Text("\ud83d"), Text("b"), Text("c"), END],
        {},
        "a\ufffdbc",
        "",
    ),
    ("thinking", [Text("<thi"), Text("nk>Hm</think>Hi"), END], {}, "Hi", "Hm"),
    (
        "thinking inline",
        [Text("<think>Hm</think>Hi"), END],
        {"reasoning": "inline"},
        "<think>Hm</think>Hi",
        "",
    ),
    ("thinking dropped", [Text("<think>Hm</think>Hi"), END], {"reasoning": "drop"}, "Hi", ""),
    ("thinking apart", [Reasoning("H"), Reasoning("m"), Text("Hi"), END], {}, "Hi", "Hm"),
    (
        "thinking apart, inline",
        [Reasoning("H"), Reasoning("m"), Text("Hi"), END],
        {"reasoning": "inline"},
        "<think>\nHm\n</think>\n\nHi",
        "",
    ),
    (
        "nothing but thinking apart, inline",
        [Reasoning("Hm"), END],
        {"reasoning": "inline"},
        "<think>\nHm\n</think>\n\n",
        "",
    ),
    (
        "thinking that Dify keeps apart until the node ends",
        [Text("Hi", "llm"), NodeFinished(None, "stop", "llm", "Hm"), END],
        {},
        "Hi",
        "Hm",
    ),
    (
        "thinking that was streamed is not told again",
        [Reasoning("Hm", "llm"), Text("Hi", "llm"), NodeFinished(None, "", "llm", "Hm"), END],
        {},
        "Hi",
        "Hm",
    ),
    (
        "what a node thinks whose text nobody sees",
        [NodeFinished(None, "stop", "inner", "secret"), Text("Hi", "llm"), END],
        {},
        "Hi",
        "",
    ),
    (
        "two nodes that think side by side",
        [
            Text("<think>A", "a"),
            Text("<thi", "b"),
            Text("1</think>One", "a"),
            Text("nk>B</think>Two", "b"),
            Text("!", "a"),
            END,
        ],
        {},
        "OneTwo!",
        "A1B",
    ),
    (
        "a thought without an end, and the next round of a loop",
        [
            Text("<think>A", "a"),
            NodeFinished(None, "", "a"),
            Text("One", "a"),
            Text(" two", "b"),
            END,
        ],
        {},
        "One two",
        "A",
    ),
    (
        "white space between two nodes stays between them",
        [Text("One", "a"), Text("\n\n", "answer"), Text("Two", "b"), END],
        {},
        "One\n\nTwo",
        "",
    ),
    ("replaced", [Text("Bad"), Replaced("Better"), Text("!"), END], {}, "Better!", ""),
    ("replaced thoughts", [Text("<think>Bad</think>x"), Replaced("Better"), END], {}, "Better", ""),
    (
        "replaced while several nodes spoke, one of which then ends",
        [Text("One", "a"), Text("Two", "b"), Replaced("Better"), NodeFinished(None, "", "a"), END],
        {},
        "Better",
        "",
    ),
    ("replaced by nothing", [Text("Bad"), Replaced(""), END], {}, "", ""),
    (
        "replaced while something was held back",
        [Text("Bad EN"), Replaced("Better"), END],
        {"stops": ["END"]},
        "Better",
        "",
    ),
    ("cut", [Text("One ST"), Text("OP two"), Text("three"), END], {"stops": ["STOP"]}, "One ", ""),
    (
        "files after the end of a paragraph that came in two pieces",
        [Text("Here\n"), Text("\n"), CAT, END],
        {},
        f"Here\n\n{SHOWN_CAT}",
        "",
    ),
    ("cut, and files before it", [CAT, Text("One STOP"), END], {"stops": ["STOP"]}, "One ", ""),
    (
        "what is added is not cut",
        [Text("One"), CAT, END],
        {"stops": ["\n\n", "!["]},
        f"One\n\n{SHOWN_CAT}",
        "",
    ),
    ("a file", [Text("Here"), CAT, END], {}, f"Here\n\n{SHOWN_CAT}", ""),
    (
        "a file that is told three times",
        [
            CAT,
            Text("Here"),
            CAT,
            MessageEnded(files=(CAT, FileGenerated("other", "image", CAT.url))),
        ],
        {},
        f"Here\n\n{SHOWN_CAT}",
        "",
    ),
    ("a file in the text before", [Text(CAT_IN_TEXT), CAT, END], {}, "![cat](our/cat)", ""),
    ("a file in the text after", [CAT, Text(CAT_IN_TEXT), END], {}, "![cat](our/cat)", ""),
    (
        "a link cut anywhere",
        [*map(Text, CAT_IN_TEXT), MessageEnded(files=(CAT,))],
        {},
        "![cat](our/cat)",
        "",
    ),
    (
        "a file from elsewhere that the text shows",
        [
            Text("![x](https://cdn.example/x.png)"),
            FileGenerated("", "image", "https://cdn.example/x.png"),
            END,
        ],
        {},
        "![x](https://cdn.example/x.png)",
        "",
    ),
    ("half a link at the end", [Text("See [a](/files/too"), END], {}, "See [a](/files/too", ""),
    (
        "an answer that only the run tells",
        [RunFinished("succeeded", 0, {"answer": "Hi"}), END],
        {"mode": "advanced-chat"},
        "Hi",
        "",
    ),
    (
        "an answer of thoughts alone is not told again",
        [Text("<think>Hm"), RunFinished("succeeded", 0, {"answer": "<think>Hm"}), END],
        {"mode": "advanced-chat"},
        "",
        "Hm",
    ),
    (
        "an upload of the question among the outputs",
        [
            Text("Nice"),
            RunFinished(
                "succeeded",
                0,
                {"answer": "Nice", "files": [CAT_FILE | {"transfer_method": "local_file"}]},
            ),
            END,
        ],
        {"mode": "advanced-chat"},
        "Nice",
        "",
    ),
]


@pytest.mark.parametrize(
    ("events", "settings", "said", "thought"), [row[1:] for row in CHATS], ids=[r[0] for r in CHATS]
)
def test_an_answer_is_rendered(
    events: list[Event], settings: dict[str, Any], said: str, thought: str
) -> None:
    rendered = render(events, **settings)
    assert (rendered.text, rendered.reasoning) == (said, thought)


def spoken(text: str) -> Text:
    return Text(text, "", "agent_message")


AGENTS: list[tuple[str, list[Event], dict[str, str], str, str]] = [
    (
        "a thought that was said already",
        [
            AgentStep("1", "", "", "", ""),
            spoken("Let me look."),
            AgentStep("1", "Let me look.", "clock", "{}", ""),
            AgentStep("1", "Let me look.", "clock", "{}", "noon"),
            AgentStep("2", "", "", "", ""),
            spoken("It is noon."),
            AgentStep("2", "It is noon.", "", "", ""),
            END,
        ],
        {},
        "Let me look.It is noon.",
        "clock({})\n→ noon\n",
    ),
    (
        "a thought that was said as reasoning",
        [
            spoken("<think>Hm</think>Look"),
            AgentStep("1", "<think>Hm</think>Look", "clock", "{}", ""),
            END,
        ],
        {},
        "Look",
        "Hm\nclock({})\n",
    ),
    (
        "a thought of its own",
        [AgentStep("1", "I need the time", "clock", "{}", "noon"), spoken("Noon."), END],
        {},
        "Noon.",
        "I need the time\nclock({})\n→ noon\n",
    ),
    (
        "an answer that is a thought only",
        [AgentStep("1", "", "", "", ""), AgentStep("1", "It is 42.", "", "", ""), END],
        {},
        "It is 42.",
        "",
    ),
    (
        "a thought only, after the use of a tool",
        [AgentStep("1", "I ask", "clock", "{}", "noon"), AgentStep("2", "Noon.", "", "", ""), END],
        {},
        "Noon.",
        "I ask\nclock({})\n→ noon\n",
    ),
    (
        "a thought only, with thoughts marked in it, and steps off",
        [AgentStep("1", "<think>Hm</think>Noon.", "", "", ""), END],
        {"agent_steps": "off"},
        "Noon.",
        "Hm",
    ),
    (
        "an agent that ends with the use of a tool",
        [AgentStep("1", "x", "", "", ""), AgentStep("2", "y", "clock", "{}", "noon"), END],
        {"agent_steps": "off"},
        "",
        "",
    ),
    (
        "a thought that repeats the answer",
        [spoken("Noon."), AgentStep("1", "Noon.", "", "", ""), END],
        {},
        "Noon.",
        "",
    ),
    (
        "a thought of an answer that was replaced",
        [AgentStep("1", "Secret.", "", "", ""), Replaced("No."), END],
        {},
        "No.",
        "",
    ),
    (
        "steps off",
        [AgentStep("1", "x", "clock", "{}", "noon"), spoken("Noon."), END],
        {"agent_steps": "off"},
        "Noon.",
        "",
    ),
    (
        "a new agent says all again",
        [spoken("<think>Hm</think>No"), spoken("on."), Text("<think>Hm</think>Noon."), END],
        {},
        "Noon.",
        "Hm",
    ),
    (
        "a new agent says all again without its thoughts",
        [spoken("<think>Hm</think>No"), spoken("on.\n"), Text("Noon."), END],
        {},
        "Noon.\n",
        "Hm",
    ),
    (
        "a new agent says the last part again",
        [spoken("Let me look."), spoken(" It is noon."), Text("It is noon."), END],
        {},
        "Let me look. It is noon.",
        "",
    ),
    (
        "a new agent answers at the end only",
        [spoken("Let me look."), Text("It is "), Text("noon."), END],
        {},
        "Let me look.\n\nIt is noon.",
        "",
    ),
    ("a new agent says a blank first", [spoken(" "), Text("Noon."), END], {}, " \n\nNoon.", ""),
    ("a new agent says more at the end", [spoken("No"), Text("Noon."), END], {}, "Noon.", ""),
]


@pytest.mark.parametrize(
    ("events", "settings", "said", "thought"), [r[1:] for r in AGENTS], ids=[r[0] for r in AGENTS]
)
def test_an_agent_shows_its_steps_and_repeats_nothing(
    events: list[Event], settings: dict[str, str], said: str, thought: str
) -> None:
    rendered = render(events, mode="agent-chat", **settings)
    assert (rendered.text, rendered.reasoning) == (said, thought)


def grown(thought: str, step: str = "1") -> AgentStep:
    return AgentStep(step, thought, "", "", "")


def called(tool: str, step: str, observation: str = "") -> AgentStep:
    return AgentStep(step, "", tool, "{}", observation)


NEW_AGENTS: list[tuple[str, list[Event], dict[str, str], str, str]] = [
    (
        "thoughts that grow",
        [
            grown("\n"),
            grown("\nI am "),
            grown("\nI am thinking."),
            grown("\nI am thinking.\n"),
            grown("", "2"),
            spoken("\n\n"),
            grown("", "2"),
            spoken("Noon."),
            Text("\n\nNoon."),
            END,
        ],
        {},
        "Noon.",
        "I am thinking.",
    ),
    (
        "thoughts before and after the use of a tool",
        [
            grown("First."),
            grown("First.\n"),
            grown("", "2"),
            spoken("\n\nLet me look."),
            called("clock", "3"),
            called("clock", "3", "noon"),
            grown("\nSecond.\n", "4"),
            grown("", "5"),
            spoken("\n\nIt is noon."),
            Text("\n\nIt is noon."),
            END,
        ],
        {},
        "Let me look.\n\nIt is noon.",
        "First.\nclock({})\n→ noon\nSecond.",
    ),
    (
        "two thoughts in a row",
        [grown("\nFirst.\n"), grown("\nSecond.", "2"), spoken("Noon."), Text("Noon."), END],
        {},
        "Noon.",
        "First.\n\nSecond.",
    ),
    (
        "thoughts that are not to be shown",
        [grown("Hm"), called("clock", "2", "noon"), spoken("Noon."), Text("Noon."), END],
        {"reasoning": "drop"},
        "Noon.",
        "clock({})\n→ noon\n",
    ),
    (
        "thoughts among the text",
        [grown("\nHm\n"), grown("", "2"), spoken("\n\nNoon."), Text("\n\nNoon."), END],
        {"reasoning": "inline"},
        "<think>\nHm\n</think>\n\nNoon.",
        "",
    ),
    (
        "a last round that says less than the text before it",
        [spoken("All right, noon."), called("clock", "1", "x"), Text("noon."), END],
        {},
        "All right, noon.\n\nnoon.",
        "clock({})\n→ x\n",
    ),
    (
        "a last round of which a part was said",
        [spoken("Look. "), called("clock", "1", "x"), spoken("No"), Text("Noon."), END],
        {},
        "Look. \n\nNoon.",
        "clock({})\n→ x\n",
    ),
    (
        "a last message that has all rounds",
        [spoken("Look. "), called("clock", "1", "x"), spoken("Noon."), Text("Look. Noon."), END],
        {},
        "Look. \n\nNoon.",
        "clock({})\n→ x\n",
    ),
    (
        "nothing but a thought",
        [grown("Hm"), END],
        {},
        "",
        "Hm",
    ),
    (
        "a question to a person",
        [spoken("Let me ask."), called("ask_human", "1"), Text("May I?"), END],
        {},
        f"Let me ask.\n\nMay I?\n\n{QUESTION_NOTE}",
        "ask_human({})\n",
    ),
    (
        "a question that has an answer",
        [called("ask_human", "1"), called("ask_human", "1", "yes"), spoken("Done."), END],
        {},
        "Done.",
        "ask_human({})\n→ yes\n",
    ),
    (
        "a question that has a form",
        [called("ask_human", "1"), HumanInputNeeded("May I?", ("Yes",)), Paused(), END],
        {},
        "May I?\n\n(Yes)\n\n(waiting for human input in Dify)",
        "ask_human({})\n",
    ),
]


@pytest.mark.parametrize(
    ("events", "settings", "said", "thought"),
    [r[1:] for r in NEW_AGENTS],
    ids=[r[0] for r in NEW_AGENTS],
)
def test_a_new_agent_thinks_apart_from_its_text(
    events: list[Event], settings: dict[str, str], said: str, thought: str
) -> None:
    rendered = render(events, mode="agent", **settings)
    assert (rendered.text, rendered.reasoning) == (said, thought)


def logged(tool: str, tool_input: str = "", result: str = "", step: str = "c") -> AgentStep:
    return AgentStep(step, "", tool, tool_input, result)


AGENT_NODES: list[tuple[str, list[Event], dict[str, str], str]] = [
    (
        "arguments that come with the result",
        [AgentThought("I look."), logged("weather"), logged("weather", "{1}", "cold"), END],
        {},
        "I look.\nweather({1})\n→ cold\n",
    ),
    (
        "a call in progress",
        [AgentThought("I look."), logged("weather")],
        {},
        "I look.\nweather",
    ),
    (
        "a call without arguments",
        [logged("clock"), logged("clock", "", "noon"), END],
        {},
        "clock\n→ noon\n",
    ),
    (
        "two calls at once",
        [
            logged("weather", step="a"),
            logged("clock", step="b"),
            logged("weather", "{1}", "cold", step="a"),
            logged("clock", "{2}", "noon", step="b"),
            END,
        ],
        {},
        "weather\nclock\nweather({1})\n→ cold\nclock({2})\n→ noon\n",
    ),
    (
        "reasoning after a call",
        [logged("weather"), Reasoning("Hm", "llm"), logged("weather", "{1}", "cold"), END],
        {},
        "weather\nHm\nweather({1})\n→ cold\n",
    ),
    (
        "a thought that was said",
        [Text("I look.", "agent"), AgentThought(" I look.\n"), logged("weather", "{1}"), END],
        {},
        "weather({1})\n",
    ),
    (
        "steps off",
        [AgentThought("I look."), logged("weather", "{1}"), END],
        {"agent_steps": "off"},
        "",
    ),
    (
        "steps as progress",
        [AgentThought("I look."), logged("weather"), logged("weather", "{1}", "cold"), END],
        {"agent_steps": "progress", "progress": "reasoning"},
        "I look.\nweather\nweather({1})\n→ cold\n",
    ),
]


@pytest.mark.parametrize(
    ("events", "settings", "thought"),
    [r[1:] for r in AGENT_NODES],
    ids=[r[0] for r in AGENT_NODES],
)
def test_an_agent_node_shows_its_steps(
    events: list[Event], settings: dict[str, str], thought: str
) -> None:
    events = events if END in events else [*events, END]
    assert render(events, mode="advanced-chat", **settings).reasoning == thought


SEPARATE: list[tuple[str, list[Event], str]] = [
    (
        "line ends around it",
        [Reasoning(t, "a") for t in ("\n", "\nI", " am\n\nA.", "\n")],
        "I am\n\nA.",
    ),
    (
        "the last piece after the text",
        [Reasoning("\nHm\n", "a"), Text("Hi", "a"), Reasoning("", "a", is_final=True)],
        "Hm",
    ),
    ("two nodes", [Reasoning("\nA\n", "a"), Reasoning("\nB\n", "b")], "A\n\nB"),
    (
        "a node that runs twice",
        [Reasoning("\nA\n", "a"), Reasoning("", "a", is_final=True), Reasoning("\nB\n", "a")],
        "A\n\nB",
    ),
    ("with the node", [Text("Hi", "a"), NodeFinished(None, "", "a", "\nHm\n")], "Hm"),
    (
        "with the node again",
        [Reasoning("\nHm\n", "a"), Text("Hi", "a"), NodeFinished(None, "", "a", "\nHm\n")],
        "Hm",
    ),
]


@pytest.mark.parametrize(
    ("events", "thought"), [row[1:] for row in SEPARATE], ids=[row[0] for row in SEPARATE]
)
def test_separate_reasoning_is_told_once_and_without_line_ends_around_it(
    events: list[Event], thought: str
) -> None:
    assert render([*events, END], mode="advanced-chat").reasoning == thought


NODE = NodeFinished(Usage(10, 5, 15), "stop")
ENDINGS: list[tuple[str, list[Event], Completion]] = [
    ("what Dify sums", [NODE, MessageEnded(Usage(1, 2, 3))], Completion(usage=Usage(1, 2, 3))),
    (
        "zeros are no sum",
        [NODE, NODE, MessageEnded(Usage(0, 0, 0))],
        Completion(usage=Usage(20, 10, 30)),
    ),
    ("zeros are all there is", [MessageEnded(Usage(0, 0, 0))], Completion(usage=Usage(0, 0, 0))),
    ("no count at all", [MessageEnded()], Completion()),
    ("only a total", run(), Completion(usage=Usage(0, 7, 7), run_status="succeeded")),
    ("the nodes' sum", run(NODE), Completion(usage=Usage(10, 5, 15), run_status="succeeded")),
    ("too long", [NodeFinished(None, "length"), END], Completion("length")),
    (
        "the last node counts",
        [NodeFinished(None, "length"), NODE, MessageEnded(Usage(1, 1, 2))],
        Completion(usage=Usage(1, 1, 2)),
    ),
    ("moderated", [Replaced("x"), NodeFinished(None, "length"), END], Completion("content_filter")),
    (
        "stopped by a limit",
        [RunFinished("stopped", 0, {}, "Max steps 500 reached."), END],
        Completion("length", run_status="stopped"),
    ),
    (
        "stopped by somebody",
        [RunFinished("stopped", 0, {}, "Workflow stopped by user."), END],
        Completion(run_status="stopped"),
    ),
]


@pytest.mark.parametrize(
    ("events", "expected"), [r[1:] for r in ENDINGS], ids=[r[0] for r in ENDINGS]
)
def test_an_answer_ends(events: list[Event], expected: Completion) -> None:
    assert render(events).completion == expected


def status(text: str, done: bool) -> dict[str, Any]:
    return {"type": "status", "data": {"description": text, "done": done}}


def test_progress_is_shown_until_the_text_comes() -> None:
    nodes = [NodeStarted("Start", "start"), NodeStarted("Search", "tool"), Text("Hi"), END]
    rendered = render(nodes, progress="status")
    assert rendered.ui_events == [status("Search", False), status("", True)]
    assert render(nodes, progress="reasoning").reasoning == "Search\n"
    assert render(nodes).ui_events == []
    silent = render([NodeStarted("", "tool"), END], progress="status")
    assert silent.ui_events == [status("tool", False), status("", True)]


def test_sources_come_last_and_in_one_form() -> None:
    sources = MessageEnded(resources=({"document_name": "Manual.pdf", "content": "p"},))
    listed = "Hi\n\n**Sources**\n\n1. Manual.pdf"
    assert render([Text("Hi"), sources]).text == listed
    assert render([Text("Hi ###"), sources], stops=["###"]).text == "Hi "
    assert render([Text("Hi"), sources], form="events").ui_events[0]["type"] == "source"


PIECES = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<details>",
            "\n",
            " ",
            "a",
            "猫",
            "🐱",
            "ST",
            "OP",
            "STOP",
            "](",
            "![x",
            f"/files/tools/{UUID}.png?",
            SIGNED,
            ")",
        ]
    ),
    max_size=12,
)


@given(
    pieces=PIECES,
    size=st.integers(1, 7),
    stops=st.sampled_from([(), ("STOP",), ("\n", "a猫")]),
    reasoning=st.sampled_from(["split", "inline", "drop"]),
)
def test_how_the_text_is_cut_changes_nothing(
    pieces: list[str], size: int, stops: tuple[str, ...], reasoning: str
) -> None:
    text = "".join(pieces)
    cut = [text[at : at + size] for at in range(0, len(text), size)]
    whole, parts = (
        render([*map(Text, texts), END], stops=stops, reasoning=reasoning)
        for texts in ([text], cut)
    )
    assert parts.text == parts.streamed == whole.text
    assert whole.reasoning.startswith(parts.reasoning)
    if not stops:
        assert parts.reasoning == whole.reasoning


def test_nothing_follows_the_end_of_the_answer() -> None:
    renderer = ResponseRenderer(Model("m", "k", "b"), "chat", ("STOP",), "auto")
    assert renderer.feed(Text("a")) == [TextDelta("a")]
    assert renderer.feed(Text("bST")) == [TextDelta("b")]
    assert renderer.feed(Text("OP")) == []
    assert renderer.hit_stop_sequence
    assert renderer.has_ended
    assert renderer.feed(Text("c")) == renderer.feed(MessageEnded()) == []
    uncut = ResponseRenderer(Model("m", "k", "b"), "chat", (), "auto")
    events = [Text("a"), CAT, MessageEnded(Usage(1, 2, 3)), Text("b")]
    deltas = [delta for event in events for delta in uncut.feed(event)]
    assert FileLinkResolver(link).resolve(deltas) == [TextDelta(f"a\n\n{SHOWN_CAT}")]
    assert uncut.completion.usage == Usage(1, 2, 3)


def test_a_file_is_linked_to_while_dify_still_gives_it_out() -> None:
    asked: list[str] = []

    def asked_link(url: str, name: str, kind: str) -> str:
        asked.append(url)
        return f"our/{name}"

    links = FileLinkResolver(asked_link)
    renderer = ResponseRenderer(Model("m", "k", "b"), "chat", (), "auto")
    assert links.resolve(renderer.feed(CAT)) == []
    assert asked == [CAT.url]
    assert links.resolve(renderer.feed(MessageEnded())) == [TextDelta(SHOWN_CAT)]
    assert asked == [CAT.url]


@pytest.mark.parametrize(
    ("address", "expected"), [("", CAT_IN_TEXT), ("our/a b", "![cat](our/a%20b)")]
)
def test_a_link_that_cannot_be_made_stays_difys(address: str, expected: str) -> None:
    renderer = ResponseRenderer(Model("m", "k", "b"), "chat", (), "auto")
    links = FileLinkResolver(lambda url, name, kind: address)
    deltas = renderer.feed(Text(CAT_IN_TEXT))
    assert not is_resolved(deltas)
    assert links.resolve(deltas) == [TextDelta(expected)]


LINK_PARTS = ["]", "(", "](", ")", f"/files/tools/{UUID}.png?", SIGNED, CAT_IN_TEXT]
OTHER_PARTS = [
    "<think>",
    "</think>",
    "<think ",
    ">",
    "<",
    "\n",
    "ST",
    "OP",
    "a",
    "\ud83d",
    "\ude00",
]
TEXT = st.lists(st.sampled_from(LINK_PARTS + OTHER_PARTS), max_size=4).map("".join) | st.text()
NODES = st.sampled_from(["", "", "", "node"])
EVENT_NAMES = st.sampled_from(["message", "message", "message", "agent_message", "message_file"])
ANY_EVENT: st.SearchStrategy[Event] = st.one_of(
    st.builds(Text, TEXT, NODES, EVENT_NAMES),
    st.sampled_from(
        [
            Reasoning("](", "node"),
            NodeFinished(Usage(1, 1, 2), "", "node", "Hm"),
            NodeStarted("Search", "tool"),
            AgentStep("1", "a", "clock", "{}", "noon"),
            CAT,
            Replaced("]("),
            RunFinished("succeeded", 7, {"a": "a", "p": CAT_FILE}),
            MessageEnded(),
        ]
    ),
)
EVENTS = st.lists(ANY_EVENT, max_size=20)
SETTINGS = st.fixed_dictionaries(
    {
        "reasoning": st.sampled_from(["split", "inline", "drop"]),
        "progress": st.sampled_from(["off", "status", "reasoning"]),
    }
)
STOPS = st.sampled_from([(), ("STOP",), ("](/", "<"), ("\n\n",)])
APPS = st.sampled_from(["chat", "workflow"])


@given(events=EVENTS, mode=APPS, stops=STOPS, settings=SETTINGS)
@hypothesis.settings(max_examples=examples(500))
def test_any_events_give_an_answer_that_ends(
    events: list[Event], mode: str, stops: tuple[str, ...], settings: dict[str, str]
) -> None:
    rendered = render([*events, END], mode, stops, **settings)
    assert rendered.streamed.endswith(rendered.text)
    rendered.text.encode()
    rendered.reasoning.encode()
    if settings["progress"] == "status" and rendered.ui_events:
        assert rendered.ui_events[-1]["data"]["done"]
