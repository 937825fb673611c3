"""Reasoning and answer apart: what counts as a tag, how it is cut, and what is held back."""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.rendering.reasoning import Piece, ReasoningParser, split
from opendify.sse import Decoder
from tests.support.fake_dify import recording

DETAILS = (
    '<details style="color:gray;background-color: #f8f8f8;padding: 8px;border-radius: 4px;" open>'
    " <summary> Thinking... </summary>\n"
)

TEXTS = [
    pytest.param("", "", "", id="nothing"),
    pytest.param("Hello", "Hello", "", id="no tag"),
    pytest.param("  \n Hello \n", "  \n Hello \n", "", id="white space of an answer stays"),
    pytest.param(" \n", " \n", "", id="only white space"),
    pytest.param("<think>\nhm\n</think>\n\nHello", "Hello", "hm", id="as plugins write it"),
    pytest.param("<think>\r\nhm\r\n</think>\r\n\r\nHello", "Hello", "hm", id="carriage returns"),
    pytest.param("<think>hm</think>Hello", "Hello", "hm", id="no white space at all"),
    pytest.param("\n  <think>hm</think>Hello", "Hello", "hm", id="white space before the tag"),
    pytest.param("<think>\n\n hm \n\n</think>Hello", "Hello", "\n hm \n", id="only one line end"),
    pytest.param("<think>hm\r</think>Hello", "Hello", "hm\r", id="a lone carriage return stays"),
    pytest.param("<think>hm</think> \n\t\n    code", "    code", "hm", id="indentation stays"),
    pytest.param("<think>hm</think> Hello", " Hello", "hm", id="a space on the same line stays"),
    pytest.param(
        "<think>hm</think>\n" + " " * 65 + "\nx",
        " " * 65 + "\nx",
        "hm",
        id="a line too long to be blank",
    ),
    pytest.param("<think>\n\n</think>\n\nHello", "Hello", "", id="empty block"),
    pytest.param("<think></think>Hello", "Hello", "", id="block without a character"),
    pytest.param("<think>hm</think>\n\n", "", "hm", id="no answer"),
    pytest.param("<think>hm\nand so on", "", "hm\nand so on", id="no end"),
    pytest.param("<think>hm\n</thi", "", "hm\n</thi", id="cut within the closing tag"),
    pytest.param("<think>", "", "", id="cut after the opening tag"),
    pytest.param("<thi", "<thi", "", id="cut within the opening tag"),
    pytest.param("<thinking>hm\r\n</thinking>Hello", "Hello", "hm", id="thinking"),
    pytest.param("<thinking>hm</think>Hello", "Hello", "hm", id="closed by its other name"),
    pytest.param("<Think>hm</THINK>Hello", "Hello", "hm", id="letters in any case"),
    pytest.param('<think time="3">hm</think>Hello', "Hello", "hm", id="attributes"),
    pytest.param("<thinker>hm</thinker>", "<thinker>hm</thinker>", "", id="another tag"),
    pytest.param("<think\n>hm", "<think\n>hm", "", id="a line end within the tag"),
    pytest.param("<think " + "x" * 300 + ">hm", "<think " + "x" * 300 + ">hm", "", id="too long"),
    pytest.param(" " * 65 + "<think>hm", " " * 65 + "<think>hm", "", id="too far in"),
    pytest.param("Write <think>x</think>.", "Write <think>x</think>.", "", id="a mention"),
    pytest.param("`<think>`", "`<think>`", "", id="a mention at the start, as code"),
    pytest.param("</think>Hello", "</think>Hello", "", id="only a closing tag"),
    pytest.param(
        "<think>a</think>Hello <think>b</think>", "Hello <think>b</think>", "a", id="one block only"
    ),
    pytest.param(
        "<think>a</think>\n\n  <think>bc</think>\n\nHello", "Hello", "a\n\nbc", id="two blocks"
    ),
    pytest.param(
        "<think>\n</think><think>b</think>Hello", "Hello", "b", id="nothing before the second block"
    ),
    pytest.param(
        "<think>a<think>b</think>c</think>d", "c</think>d", "a<think>b", id="a block in a block"
    ),
    pytest.param(
        "<think>a < b </thin> </details>c</think>d",
        "d",
        "a < b </thin> </details>c",
        id="lookalikes",
    ),
    pytest.param(f"{DETAILS}hm</details>\n\nHello", "Hello", "hm", id="details of Dify 0.15"),
    pytest.param(
        "<details><summary>thinking…</summary>hm</think></details>Hello",
        "Hello",
        "hm</think>",
        id="details, closed by details only",
    ),
    pytest.param(
        "<details open><summary>More</summary>x</details>",
        "<details open><summary>More</summary>x</details>",
        "",
        id="details about something else",
    ),
    pytest.param(
        "<details><summary>Thinking of you</summary>x</details>",
        "<details><summary>Thinking of you</summary>x</details>",
        "",
        id="details that begin alike",
    ),
    pytest.param("<think>思考\n</think>\n你好", "你好", "思考", id="not ASCII"),
]


@pytest.mark.parametrize(("text", "answer", "reasoning"), TEXTS)
def test_a_whole_text_is_split(text: str, answer: str, reasoning: str) -> None:
    assert split(text) == (answer, reasoning)


@pytest.mark.parametrize(("text", "answer", "reasoning"), TEXTS)
def test_a_text_may_be_cut_anywhere(text: str, answer: str, reasoning: str) -> None:
    for cut in range(len(text) + 1):
        assert gathered(fed([text[:cut], text[cut:]])) == (answer, reasoning)
    assert gathered(fed(text)) == (answer, reasoning)


FRAGMENTS = st.sampled_from(
    [
        *("<think>", "</think>", "<thinking>", "</thinking>", "<THINK a=1>", "</Think>"),
        *(DETAILS, "<details>", "<summary>", " Thinking... ", "</summary>", "</details>"),
        *("<", "</", "<th", "ink", ">", "i", "\n", "\r\n", "\r", " ", "\t", " " * 64, "x", "思"),
    ]
)
TAGGED = st.lists(FRAGMENTS, max_size=14).map("".join)


@given(TAGGED, st.data())
def test_how_a_text_was_cut_does_not_show(text: str, data: st.DataObject) -> None:
    assert gathered(fed(cut_up(text, data))) == split(text)


@given(TAGGED)
def test_the_split_is_the_one_of_the_rules_read_as_a_whole(text: str) -> None:
    assert split(text) == by_the_rules(text)


@given(st.text(st.characters(exclude_characters="<")), st.data())
def test_a_text_without_a_tag_comes_through_unchanged(text: str, data: st.DataObject) -> None:
    assert gathered(fed(cut_up(text, data))) == (text, "")


@given(st.lists(TAGGED, min_size=1, max_size=4), st.data())
def test_sections_are_split_each_for_itself(texts: list[str], data: st.DataObject) -> None:
    splitter = ReasoningParser()
    pieces = []
    for text in texts:
        pieces += splitter.start_section()
        for chunk in cut_up(text, data):
            pieces += splitter.feed(chunk)
    pieces += splitter.close()
    answers, thoughts = zip(*map(split, texts), strict=True)
    assert gathered(pieces) == ("".join(answers), "\n\n".join(filter(None, thoughts)))


@given(TAGGED, st.data())
def test_what_is_returned_at_once_is_joined_by_kind(text: str, data: st.DataObject) -> None:
    splitter = ReasoningParser()
    for chunk in cut_up(text, data):
        pieces = splitter.feed(chunk)
        kinds = [piece.is_reasoning for piece in pieces]
        assert all(piece.text for piece in pieces)
        assert all(one is not other for one, other in pairwise(kinds))


def test_an_answer_without_a_tag_is_held_up_by_nothing() -> None:
    splitter = ReasoningParser()
    for chunk in ["H", "i <th", "ink>", "\n", "<", " \r"]:
        assert splitter.feed(chunk) == [Piece(chunk, False)]
    assert splitter.close() == []


@pytest.mark.parametrize(
    ("chunks", "pieces"),
    [
        pytest.param(["<thi", "s"], [[], [Piece("<this", False)]], id="not a tag after all"),
        pytest.param([" \n", "a"], [[], [Piece(" \na", False)]], id="only white space"),
        pytest.param(
            ["<details>", "<summary>T", "o"],
            [[], [], [Piece("<details><summary>To", False)]],
            id="another summary",
        ),
        pytest.param(
            ["<think>", "\n", "a", " <b> ", "c</b", "\n", "d"],
            [
                *([], [], [Piece("a", True)], [Piece(" <b> ", True)], [Piece("c</b", True)]),
                *([], [Piece("\nd", True)]),
            ],
            id="reasoning comes as it is written",
        ),
        pytest.param(
            ["<think>a\n</", "think", ">", "\n", " b"],
            [[Piece("a", True)], [], [], [], [Piece(" b", False)]],
            id="around the closing tag",
        ),
        pytest.param(
            ["<think>a</think>\nb"], [[Piece("a", True), Piece("b", False)]], id="all in one"
        ),
    ],
)
def test_only_what_may_be_a_tag_is_held_back(chunks: list[str], pieces: list[list[Piece]]) -> None:
    splitter = ReasoningParser()
    assert [splitter.feed(chunk) for chunk in chunks] == pieces


def test_a_new_section_gives_out_what_was_held_back() -> None:
    splitter = ReasoningParser()
    assert splitter.feed("<think") == []
    assert splitter.start_section() == [Piece("<think", False)]
    assert splitter.feed("<think>a\n") == [Piece("a", True)]
    assert splitter.start_section() == [Piece("\n", True)]
    assert splitter.feed("<think>b</think>c") == [Piece("\n\nb", True), Piece("c", False)]
    assert splitter.close() == []


@pytest.mark.parametrize("version", ["1.11.4", "1.13.2"])
@pytest.mark.parametrize(
    ("app", "answer"),
    [
        ("chat", "tok0 tok1 tok2 "),
        ("agent-chat", "tok0 tok1 tok2 "),
        ("advanced-chat", "tok0 tok1 tok2 "),
        ("workflow", "tok0 tok1 tok2 "),
        # Two answer nodes, text and a variable; Dify itself loses the last token of the stream.
        ("advanced-chat-2answers", "Header line.\n\nModel: tok0 tok1 \n-- end --"),
    ],
)
def test_the_recorded_streams_are_split(version: str, app: str, answer: str) -> None:
    splitter = ReasoningParser()
    pieces: list[Piece] = []
    speaker = None
    for selector, text in recorded_texts(f"{version}/{app}/think_stream"):
        if selector != speaker:
            pieces += splitter.start_section()
            speaker = selector
        pieces += splitter.feed(text)
    assert gathered(pieces + splitter.close()) == (answer, "First I think. ")


@pytest.mark.parametrize("version", ["1.11.4", "1.13.2"])
@pytest.mark.parametrize("app", ["chat", "advanced-chat"])
def test_the_recorded_whole_answers_are_split(version: str, app: str) -> None:
    answer = json.loads(recording(f"{version}/{app}/think_block").body)["answer"]
    assert split(answer) == ("tok0 tok1 tok2 ", "First I think. ")


def recorded_texts(name: str) -> Iterator[tuple[list[str], str]]:
    for payload in Decoder().feed(recording(name).body):
        event = json.loads(payload)
        if event["event"] in ("message", "agent_message"):
            yield event.get("from_variable_selector", []), event["answer"]
        elif event["event"] == "text_chunk":
            yield event["data"]["from_variable_selector"], event["data"]["text"]


def fed(chunks: Iterable[str]) -> list[Piece]:
    splitter = ReasoningParser()
    return [piece for chunk in chunks for piece in splitter.feed(chunk)] + splitter.close()


def gathered(pieces: Iterable[Piece]) -> tuple[str, str]:
    pieces = list(pieces)
    return (
        "".join(piece.text for piece in pieces if not piece.is_reasoning),
        "".join(piece.text for piece in pieces if piece.is_reasoning),
    )


def cut_up(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


BLOCK = re.compile(
    r"""(?isx) \s{0,64}
    (?: <think(?:ing)?(?:[ \t][^<>\n]{0,200})?> (?P<think>)
      | <details(?:[ \t][^<>\n]{0,200})?> \s{0,16} <summary(?:[ \t][^<>\n]{0,200})?>
        \s{0,16} thinking [\s.…]{0,16} </summary>
    )
    (?:\r?\n)? (?P<text>.*?)
    (?: \Z | (?:\r?\n)? (?(think) </think(?:ing)?> | </details>)
        (?:[^\S\n]{0,64}\n)* )
    """
)


def by_the_rules(text: str) -> tuple[str, str]:
    """The same split, from a whole text and with one expression."""
    thoughts = []
    while block := BLOCK.match(text):
        thoughts.append(block["text"])
        text = text[block.end() :]
    return text, "\n\n".join(filter(None, thoughts))
