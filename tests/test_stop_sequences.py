"""Stop sequences: where the text ends, and what is held back until that is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.rendering.stop_sequences import StopSequenceFilter

TEXTS = [
    pytest.param([], "abc", "abc", False, id="no stop sequence"),
    pytest.param([""], "abc", "abc", False, id="an empty sequence stops nothing"),
    pytest.param(["END"], "abc", "abc", False, id="not in the text"),
    pytest.param(["END"], "abcENDdef", "abc", True, id="in the middle"),
    pytest.param(["END"], "END", "", True, id="all of it"),
    pytest.param(["END"], "abcEN", "abcEN", False, id="cut within the sequence"),
    pytest.param(["END"], "abcEEND", "abcE", True, id="a false start before it"),
    pytest.param(["END"], "aENDbENDc", "a", True, id="twice"),
    pytest.param(["aab"], "aaaab", "aa", True, id="a sequence that overlaps itself"),
    pytest.param(["\n\n"], "a\n\n\nb", "a", True, id="line ends"),
    pytest.param(["b", "a"], "xab", "x", True, id="the earlier place wins"),
    pytest.param(["b", "abc"], "xabc", "x", True, id="begun earlier, complete later"),
    pytest.param(["b", "abc"], "xabx", "xa", True, id="begun earlier, never complete"),
    pytest.param(["b", "abc"], "xab", "xa", True, id="decided by the end of the text"),
    pytest.param(["a", "ab"], "xab", "x", True, id="one the start of the other"),
    pytest.param([".", "a*"], "xa*.", "x", True, id="no pattern"),
    pytest.param(["。再见"], "你好。再见！", "你好", True, id="not ASCII"),
]


@pytest.mark.parametrize(("stops", "text", "shown", "hit"), TEXTS)
def test_the_text_ends_before_a_stop_sequence(
    stops: list[str], text: str, shown: str, hit: bool
) -> None:
    for cut in range(len(text) + 1):
        assert cut_off(stops, [text[:cut], text[cut:]]) == (shown, hit)
    assert cut_off(stops, list(text)) == (shown, hit)


SMALL = st.text("ab\n", max_size=12)


@given(st.lists(st.text("ab\n", max_size=5), max_size=4), st.lists(SMALL, max_size=10))
def test_the_earliest_position_of_any_sequence_ends_the_text(
    stops: list[str], chunks: list[str]
) -> None:
    text = "".join(chunks)
    places = [text.find(stop) for stop in stops if stop and stop in text]
    assert cut_off(stops, chunks) == (text[: min(places, default=len(text))], bool(places))


@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.lists(SMALL, max_size=10))
def test_only_the_start_of_a_sequence_is_held_back(stops: list[str], chunks: list[str]) -> None:
    cutter = StopSequenceFilter(stops)
    text = shown = ""
    for chunk in chunks:
        text += chunk
        shown += cutter.feed(chunk)
        if cutter.hit:
            break
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_text_is_shown_as_soon_as_it_can_be() -> None:
    cutter = StopSequenceFilter(["\nUser:"])
    chunks = ["Hi", "\n", "there\nU", "ser", " x", "\nUser:", "y"]
    shown = [cutter.feed(chunk) for chunk in chunks]
    assert shown == ["Hi", "", "\nthere", "", "\nUser x", "", ""]


def test_nothing_follows_a_stop_sequence() -> None:
    cutter = StopSequenceFilter(["."])
    assert cutter.feed("a") == "a"
    assert not cutter.hit
    assert cutter.feed("b.c") == "b"
    assert cutter.hit
    assert cutter.feed("d") == ""
    assert cutter.close() == ""


def test_a_very_long_stop_sequence_is_found() -> None:
    stop = "ab" * 5000
    assert cut_off([stop], ["x", stop[:-1], "c", stop, "y"]) == (f"x{stop[:-1]}c", True)


def cut_off(stops: list[str], chunks: list[str]) -> tuple[str, bool]:
    cutter = StopSequenceFilter(stops)
    shown = "".join(map(cutter.feed, chunks)) + cutter.close()
    return shown, cutter.hit


@pytest.mark.parametrize(
    ("stops", "text", "found"),
    [
        pytest.param(["END"], "abcENDdef", "END", id="the only one"),
        pytest.param(["b", "a"], "xab", "a", id="the earlier place"),
        pytest.param(["END"], "abcEN", "", id="none"),
    ],
)
def test_the_sequence_that_was_found_is_known(stops: list[str], text: str, found: str) -> None:
    cut = StopSequenceFilter(stops)
    for character in text:
        cut.feed(character)
    cut.close()
    assert cut.found == found
