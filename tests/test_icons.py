"""Icons of models as addresses that need nobody's server."""

import base64
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.files.icons import DEFAULT_BACKGROUND, MAX_ICON_BYTES, emoji_icon, image_icon

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"


def drawing(url: str) -> ElementTree.Element:
    kind, _, data = url.partition(",")
    assert kind == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(data))


@pytest.mark.parametrize("emoji", ["🤖", "👩🏽‍💻", "1️⃣", "问"])
def test_an_emoji_is_drawn_on_its_background(emoji: str) -> None:
    rect, text = drawing(emoji_icon(emoji, "#d1E9ff"))
    assert (rect.get("fill"), text.text) == ("#d1E9ff", emoji)
    assert len(emoji_icon(emoji)) < 600


@pytest.mark.parametrize("color", ["", "red", "url(http://10.0.0.1/x)", '#fff"/><script>', "#ff"])
def test_a_background_that_is_no_colour_is_difys_own(color: str) -> None:
    rect, _ = drawing(emoji_icon("🤖", color))
    assert rect.get("fill") == DEFAULT_BACKGROUND


@pytest.mark.parametrize("text", ["", "x", "robot_face", "https://x/", "问" * 17])
def test_what_is_no_emoji_is_no_icon(text: str) -> None:
    assert emoji_icon(text) == ""


@given(emoji=st.text(max_size=20), background=st.text(max_size=20))
def test_any_text_makes_a_drawing_of_two_parts_or_none(emoji: str, background: str) -> None:
    if url := emoji_icon(emoji, background):
        assert [part.tag.rpartition("}")[2] for part in drawing(url)] == ["rect", "text"]


def test_an_image_has_the_type_of_its_content() -> None:
    assert image_icon(PNG) == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert image_icon(b"\xff\xd8\xffdata").startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    "data", [b"", b"<svg/>", b"<html>", b"%PDF-1.4", PNG.ljust(MAX_ICON_BYTES + 1)]
)
def test_what_is_no_small_image_is_no_icon(data: bytes) -> None:
    assert image_icon(data) == ""


def test_the_largest_image_is_an_icon() -> None:
    assert image_icon(PNG.ljust(MAX_ICON_BYTES))
