"""What the caller gets of an answer's events, one story a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.config.models import Model
from opendify.dify.events import (
    AgentStep,
    Event,
    FileMade,
    HumanInputNeeded,
    MessageEnded,
    NodeFinished,
    NodeStarted,
    Paused,
    Reasoning,
    Replaced,
    RunFinished,
    Text,
    Texts,
    Usage,
)
from opendify.telling.narration import Narration
from opendify.telling.tellings import Ending, Said, SaidInTurn, Shown, Telling, Thought, Voided

UUID = "0ccfe981-f968-4678-80ae-335266227dac"
SIGNED = "timestamp=1&nonce=2&sign=3"
CAT = FileMade("f", "image", f"/files/tools/{UUID}.png?{SIGNED}", "cat.png")
CAT_IN_TEXT = f"![cat](https://other.host/files/tools/{UUID}.png?{SIGNED})"
CAT_FILE = {"type": "image", "transfer_method": "tool_file", "url": CAT.url, "filename": "cat.png"}
SHOWN_CAT = "![cat.png](our/cat.png)"


@dataclass
class Told:
    said: str = ""
    thought: str = ""
    shown: list[Any] = field(default_factory=list)
    streamed: str = ""
    ending: Ending = field(default_factory=Ending)


def link(url: str, name: str, kind: str) -> str:
    return f"our/{name or kind}"


def narrate(  # noqa: C901 one match over a closed set
    events: Sequence[Event],
    mode: str = "chat",
    stops: Sequence[str] = (),
    form: str = "auto",
    **settings: str,
) -> Told:
    """Tells the events as ChatService does; the last one is a MessageEnded."""
    narration = Narration(Model("m", "k", "b", **settings), mode, link, stops, form)
    told = Told(ending=narration.ending)
    for event in events:
        if narration.is_cut:
            event = MessageEnded()
        is_last = isinstance(event, MessageEnded)
        for telling in narration.end(event) if is_last else narration.tell(event):
            match telling:
                case Said(text):
                    assert text
                    told.said += text
                    told.streamed += text
                case Thought(text):
                    told.thought += text
                case Shown(shown):
                    told.shown.append(shown)
                case Voided(was):
                    told.said = told.thought = ""
                    told.streamed += "\n\n" if was else ""
        if is_last:
            break
    return told


def run(*events: Event, outputs: dict[str, Any] | None = None, status: str = "succeeded") -> Any:
    return [*events, RunFinished(status, 7, outputs or {}), MessageEnded()]


def chunk(text: str, node: str = "llm") -> Text:
    return Text(text, node, "text_chunk")


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
def test_a_workflow_tells_its_outputs_once(
    events: list[Event], settings: dict[str, str], expected: str
) -> None:
    assert narrate(events, mode="workflow", **settings).said == expected


END = MessageEnded()
CHATS: list[tuple[str, list[Event], dict[str, Any], str, str]] = [
    ("text", [Text("Hi"), Text(" 你好"), END], {}, "Hi 你好", ""),
    ("halves of a character", [Text("a"), Texts(("\ud83d", "\ude00b")), END], {}, "a😀b", ""),
    ("half a character", [Texts(("a", "\ud83d")), Texts(("b", "c")), END], {}, "a\ufffdbc", ""),
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
        [CAT, Text("Here"), CAT, MessageEnded(files=(CAT, FileMade("other", "image", CAT.url)))],
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
            FileMade("", "image", "https://cdn.example/x.png"),
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
def test_an_answer_is_told(
    events: list[Event], settings: dict[str, Any], said: str, thought: str
) -> None:
    told = narrate(events, **settings)
    assert (told.said, told.thought) == (said, thought)


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
    told = narrate(events, mode="agent-chat", **settings)
    assert (told.said, told.thought) == (said, thought)


NODE = NodeFinished(Usage(10, 5, 15), "stop")
ENDINGS: list[tuple[str, list[Event], Ending]] = [
    ("what Dify sums", [NODE, MessageEnded(Usage(1, 2, 3))], Ending(usage=Usage(1, 2, 3))),
    (
        "zeros are no sum",
        [NODE, NODE, MessageEnded(Usage(0, 0, 0))],
        Ending(usage=Usage(20, 10, 30)),
    ),
    ("zeros are all there is", [MessageEnded(Usage(0, 0, 0))], Ending(usage=Usage(0, 0, 0))),
    ("no count at all", [MessageEnded()], Ending()),
    ("only a total", run(), Ending(usage=Usage(0, 7, 7), run_status="succeeded")),
    ("the nodes' sum", run(NODE), Ending(usage=Usage(10, 5, 15), run_status="succeeded")),
    ("too long", [NodeFinished(None, "length"), END], Ending("length")),
    (
        "the last node counts",
        [NodeFinished(None, "length"), NODE, MessageEnded(Usage(1, 1, 2))],
        Ending(usage=Usage(1, 1, 2)),
    ),
    ("moderated", [Replaced("x"), NodeFinished(None, "length"), END], Ending("content_filter")),
    (
        "stopped by a limit",
        [RunFinished("stopped", 0, {}, "Max steps 500 reached."), END],
        Ending("length", run_status="stopped"),
    ),
    (
        "stopped by somebody",
        [RunFinished("stopped", 0, {}, "Workflow stopped by user."), END],
        Ending(run_status="stopped"),
    ),
]


@pytest.mark.parametrize(
    ("events", "expected"), [r[1:] for r in ENDINGS], ids=[r[0] for r in ENDINGS]
)
def test_an_answer_ends(events: list[Event], expected: Ending) -> None:
    assert narrate(events).ending == expected


def status(text: str, done: bool) -> dict[str, Any]:
    return {"type": "status", "data": {"description": text, "done": done}}


def test_progress_is_shown_until_the_text_comes() -> None:
    nodes = [NodeStarted("Start", "start"), NodeStarted("Search", "tool"), Text("Hi"), END]
    told = narrate(nodes, progress="status")
    assert told.shown == [status("Search", False), status("", True)]
    assert narrate(nodes, progress="reasoning").thought == "Search\n"
    assert narrate(nodes).shown == []
    silent = narrate([NodeStarted("", "tool"), END], progress="status")
    assert silent.shown == [status("tool", False), status("", True)]


def test_sources_come_last_and_in_one_form() -> None:
    sources = MessageEnded(resources=({"document_name": "Manual.pdf", "content": "p"},))
    listed = "Hi\n\n**Sources**\n\n1. Manual.pdf"
    assert narrate([Text("Hi"), sources]).said == listed
    assert narrate([Text("Hi ###"), sources], stops=["###"]).said == "Hi "
    assert narrate([Text("Hi"), sources], form="events").shown[0]["type"] == "source"


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
        narrate([*map(Text, texts), END], stops=stops, reasoning=reasoning)
        for texts in ([text], cut)
    )
    assert parts.said == parts.streamed == whole.said
    assert whole.thought.startswith(parts.thought)
    if not stops:
        assert parts.thought == whole.thought


def test_what_came_together_is_told_to_the_end_of_the_answer() -> None:
    narration = Narration(Model("m", "k", "b"), "chat", link, ("STOP",), "auto")
    assert narration.tell_all([]) == []
    assert narration.tell_all([Text("a"), Text("bST")]) == [Said("a"), Said("b")]
    assert narration.tell_all([Text("OP"), Text("c")]) == []
    assert narration.is_cut
    uncut = Narration(Model("m", "k", "b"), "chat", link, (), "auto")
    told = uncut.tell_all([Text("a"), CAT, MessageEnded(Usage(1, 2, 3)), Text("b")])
    assert told == [Said("a"), Said(f"\n\n{SHOWN_CAT}")]
    assert uncut.ending.usage == Usage(1, 2, 3)


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
    st.builds(Texts, st.lists(TEXT, min_size=1, max_size=4).map(tuple), NODES, EVENT_NAMES),
    st.builds(Texts, st.lists(st.sampled_from("ab "), min_size=1, max_size=4).map(tuple)),
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
GROUPS = st.lists(st.lists(ANY_EVENT, min_size=1, max_size=3), max_size=8)
SETTINGS = st.fixed_dictionaries(
    {
        "reasoning": st.sampled_from(["split", "inline", "drop"]),
        "progress": st.sampled_from(["off", "status", "reasoning"]),
    }
)
STOPS = st.sampled_from([(), ("STOP",), ("](/", "<"), ("\n\n",)])
APPS = st.sampled_from(["chat", "workflow"])


class OneByOne(Narration):
    """The definition: each text goes through everything that may look for something in it."""

    def _is_passed_by(self, event: Text | Texts, text: str) -> bool:
        return False


def apart_from_each_other(event: Event) -> list[Event]:
    if isinstance(event, Texts):
        return [Text(text, event.node, event.event) for text in event.texts]
    return [event]


def one_by_one(tellings: Sequence[Telling]) -> list[Telling]:
    """Several pieces in turn are as many pieces."""
    pieces: list[Telling] = []
    for telling in tellings:
        if isinstance(telling, SaidInTurn):
            assert all(telling.texts)
            pieces += map(Said, telling.texts)
        else:
            pieces.append(telling)
    return pieces


def told_in_the_loop(narration: Narration, events: Sequence[Event]) -> list[Telling]:
    """What is not told at once is told by a thread."""
    told = narration.tell_at_once(events)
    return narration.tell_all(events) if told is None else told


@pytest.mark.parametrize("told", [Narration.tell_all, told_in_the_loop])
@hypothesis.example(
    groups=[[Text("a")], [Texts(("b", "\ud83d"))], [Text("c")]], mode="chat", stops=(), settings={}
)
@given(groups=GROUPS, mode=APPS, stops=STOPS, settings=SETTINGS)
@hypothesis.settings(max_examples=500)
def test_what_came_together_is_told_as_if_it_had_come_one_by_one(
    told: Callable[[Narration, Sequence[Event]], list[Telling]],
    groups: list[list[Event]],
    mode: str,
    stops: tuple[str, ...],
    settings: dict[str, str],
) -> None:
    model = Model("m", "k", "b", **settings)
    quick, general = (kind(model, mode, link, stops, "auto") for kind in (Narration, OneByOne))
    for events in groups:
        apart = [each for event in events for each in apart_from_each_other(event)]
        assert one_by_one(told(quick, events)) == general.tell_all(apart)
        if quick.is_cut or any(isinstance(event, MessageEnded) for event in events):
            break
    assert quick.ending == general.ending


@given(groups=GROUPS, mode=APPS, stops=STOPS, settings=SETTINGS)
@hypothesis.settings(max_examples=500)
def test_what_is_told_at_once_asks_for_no_link(
    groups: list[list[Event]], mode: str, stops: tuple[str, ...], settings: dict[str, str]
) -> None:
    asked: list[str] = []

    def asked_link(url: str, name: str, kind: str) -> str:
        asked.append(url)
        return link(url, name, kind)

    narration = Narration(Model("m", "k", "b", **settings), mode, asked_link, stops, "auto")
    for events in groups:
        is_told_at_once = narration.is_told_at_once(events)
        before = len(asked)
        narration.tell_all(events)
        assert not (is_told_at_once and len(asked) > before)
        if narration.is_cut or any(isinstance(event, MessageEnded) for event in events):
            break


AT_ONCE = [
    ([Text("a"), Text(" (b) [c]")], True, "text of the node that speaks"),
    ([Texts(("a", " (b)", " [c]"))], True, "texts of the node that speaks"),
    ([Texts(("[a", "]", "("))], False, "a link in texts"),
    ([], True, "nothing"),
    ([Text("[a"), Text("](")], False, "a link"),
    ([Text("[a]"), Text("(")], False, "a link in two texts"),
    ([Text("a"), CAT], False, "a file"),
    ([Text("a"), END], False, "the end"),
    ([Text("a", "other"), Text("b", "other")], True, "text of another node"),
    ([Text("a (b)", "other")], False, "what may be a link after what another node said"),
]


@pytest.mark.parametrize(
    ("events", "expected"), [r[:2] for r in AT_ONCE], ids=[r[2] for r in AT_ONCE]
)
def test_only_text_without_links_is_told_at_once(events: list[Event], expected: bool) -> None:
    narration = Narration(Model("m", "k", "b"), "chat", link, (), "auto")
    narration.tell(Text("Hi."))
    assert narration.is_told_at_once(events) is expected


def test_text_is_told_at_once_where_thoughts_stay_in_it() -> None:
    inline = Narration(Model("m", "k", "b", reasoning="inline"), "chat", link, (), "auto")
    assert inline.is_told_at_once([Text("a (b)")])


IN_BRACKETS = Text(f"(/files/tools/{UUID}.png?{SIGNED})")
NOT_AT_ONCE: list[tuple[str, list[Event], list[Event], dict[str, Any]]] = [
    ("a link that has begun", [Text("[a]")], [IN_BRACKETS], {}),
    ("a link that goes on", [Text("[a](/files/")], [Text("tools/x)")], {}),
    (
        "a link held where a tag may come",
        [Text(f"<think {CAT_IN_TEXT}")],
        [Text("<")],
        {},
    ),
    ("a link held for a stop sequence", [Text("[a]")], [IN_BRACKETS], {"stops": ["](x"]}),
    (
        "a link around a thought",
        [Text("[a]"), NodeFinished(None, "", "")],
        [Text("<think>Hm</think>"), IN_BRACKETS],
        {},
    ),
    (
        "a link around a repetition",
        [Text("Hi "), spoken("[a]")],
        [Text("a"), IN_BRACKETS],
        {},
    ),
    (
        "a link around a repetition, all at once",
        [Text("Hi ")],
        [spoken("[a]"), Text("a"), spoken(IN_BRACKETS.text)],
        {},
    ),
    (
        "a file of the run",
        [Text("Hi "), *run(outputs={"p": CAT_FILE})[:1]],
        [Text("STOP")],
        {"mode": "workflow", "stops": ["STOP"]},
    ),
]


@pytest.mark.parametrize(
    ("before", "events", "settings"), [r[1:] for r in NOT_AT_ONCE], ids=[r[0] for r in NOT_AT_ONCE]
)
def test_what_asks_for_a_link_is_not_told_at_once(
    before: list[Event], events: list[Event], settings: dict[str, Any]
) -> None:
    asked: list[str] = []
    defaults: dict[str, Any] = {"mode": "chat", "stops": (), "citation_form": "auto"}
    narration = Narration(
        Model("m", "k", "b"),
        link=lambda url, name, kind: asked.append(url) or "",
        **defaults | settings,
    )
    narration.tell_all(before)
    assert not narration.is_told_at_once(events)
    narration.tell_all(events)
    assert asked or events == [Text("tools/x)")]
