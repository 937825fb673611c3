"""The short way of the commonest events says what the long way says."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opendify.dify.events import Text, Texts
from opendify.dify.payloads import NotAnEvent, parse_event, parse_payload
from opendify.dify.pieces import parse_piece, parse_pieces
from tests.fake_dify import recorded_streams, recording

NAMES = st.sampled_from(["message", "agent_message", "text_chunk", "message_file", "message_end"])
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
SELECTORS = st.none() | st.lists(st.text(), max_size=3) | ANYTHING
TEXTS = st.text() | ANYTHING
DATA = st.fixed_dictionaries({}, optional={"text": TEXTS, "from_variable_selector": SELECTORS})
EVENTS = st.fixed_dictionaries(
    {"event": NAMES | st.text()},
    optional={
        "answer": TEXTS,
        "from_variable_selector": SELECTORS,
        "data": DATA | ANYTHING,
        "id": ANYTHING,
        "conversation_id": ANYTHING,
        "created_at": ANYTHING,
    },
)


def the_long_way(raw: bytes) -> Any:
    return parse_event(parse_payload(raw))


@given(EVENTS, st.booleans(), st.randoms())
def test_a_piece_is_what_the_long_way_makes_of_it(
    event: dict[str, Any], escaped: bool, random: Any
) -> None:
    fields = list(event.items())
    random.shuffle(fields)
    raw = json.dumps(dict(fields), ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    piece = parse_piece(raw)
    if piece is not None:
        assert piece == the_long_way(raw)


@given(st.sampled_from(["message", "agent_message"]), st.text(), st.none() | st.lists(st.text()))
def test_every_plain_message_goes_the_short_way(
    name: str, text: str, selector: list[str] | None
) -> None:
    event = {"event": name, "id": "x", "answer": text, "from_variable_selector": selector}
    raw = json.dumps(event, ensure_ascii=False).encode()
    assert parse_piece(raw) == Text(text, selector[0] if selector else "", name)


ESCAPES = ["\\ud83d", "\\ude00", "\\uD83D", "\\u0041", "\\n", "\\\\", "a", "你", "\\u2028"]


@given(st.lists(st.sampled_from(ESCAPES)), st.sampled_from(["answer", "other"]))
@example(["\\ud83d", "\\u0041"], "answer")
@example(["\\ud83d", "\\ude00"], "answer")
def test_halves_of_characters_do_not_go_the_short_way_alone(parts: list[str], name: str) -> None:
    raw = f'{{"event":"message","answer":"x","{name}":"{"".join(parts)}"}}'.encode()
    piece = parse_piece(raw)
    if piece is not None:
        assert piece == the_long_way(raw)
        piece.text.encode()


@given(EVENTS, st.integers(0), st.binary(max_size=3))
def test_damaged_bytes_make_no_other_text(event: dict[str, Any], at: int, put: bytes) -> None:
    whole = json.dumps(event).encode()
    at %= len(whole) + 1
    raw = whole[:at] + put + whole[at + 1 :]
    piece = parse_piece(raw)
    if piece is not None:
        try:
            said = the_long_way(raw)
        except NotAnEvent:  # only a field that is passed over may be unreadable
            with pytest.raises(UnicodeDecodeError):
                raw.decode()
        else:
            assert piece == said


@pytest.mark.parametrize("name", recorded_streams())
def test_recorded_events_are_the_same_both_ways(name: str) -> None:
    for block in recording(name).body.split(b"\n\n"):
        if block.startswith(b"data: "):
            piece = parse_piece(block[6:])
            assert piece is None or piece == the_long_way(block[6:])


def of_each(payloads: list[bytes]) -> tuple[list[Text], bytes | None, list[bytes]]:
    """The texts of the plain pieces up to the first payload that is none, that, and the rest."""
    texts = []
    for at, raw in enumerate(payloads):
        text = parse_piece(raw)
        if text is None:
            return texts, raw, payloads[at + 1 :]
        texts.append(text)
    return texts, None, []


ALIKE = {"event": "message", "id": "1", "answer": "a", "from_variable_selector": ["llm", "text"]}
TOGETHER = st.sampled_from(
    [
        json.dumps(ALIKE | changed).encode()
        for changed in (
            {},
            {},
            {},
            {"answer": ""},
            {"answer": "\n", "event": "agent_message"},
            {"from_variable_selector": None},
            {"from_variable_selector": ["other"]},
            {"data": {"text": "b", "from_variable_selector": ["llm"]}, "event": "text_chunk"},
            {"event": "message_end"},
            {"answer": None},
        )
    ]
    # Halves, and two in one: nothing that only their neighbours complete may pass.
    + [b'{"event":"message","answer":"a","x":[{}', b'{"event":"message","answer":"b"}]}']
    + [b'{"event":"message",', b'"answer":"a"}', b'{"event":"message","answer":"a"}\n' * 2]
    + [b'{"event":"message",\n"answer":"a"}', b"", b" ", b"\xff"]
)


@given(st.lists(TOGETHER | EVENTS.map(lambda event: json.dumps(event).encode())))
def test_pieces_that_came_together_are_those_that_came_one_by_one(payloads: list[bytes]) -> None:
    rest = iter(payloads)
    together, other = parse_pieces(rest)
    texts: list[Text] = []
    for event in together:
        if isinstance(event, Texts):
            assert len(event.texts) > 1
            texts += [Text(text, event.node, event.event) for text in event.texts]
        else:
            texts.append(event)
    assert (texts, other, [*rest]) == of_each(payloads)


def test_pieces_of_one_kind_and_place_are_one_event() -> None:
    raw = json.dumps(ALIKE).encode()
    assert parse_pieces(iter([raw] * 3)) == ([Texts(("a", "a", "a"), "llm")], None)
    assert parse_pieces(iter([raw])) == ([Text("a", "llm")], None)
    assert parse_pieces(iter([])) == ([], None)
