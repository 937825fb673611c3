"""Links to Dify's files in a text that comes in pieces."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.files.link_rewriter import MAX_ADDRESS, MAX_FILES, LinkRewriter
from opendify.files.links import FileLink, escape_for_markdown

UUID = "0ccfe981-f968-4678-80ae-335266227dac"
SIGNED = "timestamp=1795460797&nonce=05d3&sign=a6CT-Ew0b%3D"
TOOL = f"/files/tools/{UUID}.png?{SIGNED}"
UPLOAD = f"https://dify.example/files/{UUID}/file-preview?{SIGNED}"


def resolved(parts: Sequence[str | FileLink]) -> str:
    """The text with each file under an address of ours."""
    return "".join(
        part
        if isinstance(part, str)
        else escape_for_markdown(f"https://ai.example/{part.name} {part.kind}")
        for part in parts
    )


def rewritten(*pieces: str) -> str:
    one = LinkRewriter()
    return "".join(resolved(one.feed(piece)) for piece in pieces) + one.flush()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"Here: ![cat.png]({TOOL}).", "Here: ![cat.png](https://ai.example/cat.png%20image)."),
        (f"[a.pdf]({UPLOAD})", "[a.pdf](https://ai.example/a.pdf%20file)"),
        (f"![]({TOOL})", "![](https://ai.example/%20image)"),
        (f"x](/a)![cat]({TOOL})", "x](/a)![cat](https://ai.example/cat%20image)"),
        (f"]({TOOL})", "](https://ai.example/%20file)"),
        (f"[a](b[c]({TOOL})", "[a](b[c](https://ai.example/c%20file)"),
        (f"[a](/b[c]({TOOL})", "[a](/b[c](https://ai.example/c%20file)"),
        (f"[a]([b]({TOOL})", "[a]([b](https://ai.example/b%20file)"),
        (f"[a](]({TOOL})", "[a](](https://ai.example/%20file)"),
    ],
)
def test_a_link_to_difys_file_is_rewritten(text: str, said: str) -> None:
    assert rewritten(text) == said
    assert rewritten(*text) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "](",
        "[a](b",
        "[a](/files/",
        "[a](https://x.example/a?b=c) and [b](./c.md) and a[0](1)",
        f"the address {TOOL} in words",
        f"[a]({TOOL}",
        f"[a](<{TOOL}>)",
        f'[a]({TOOL} "title")',
        f"[a](/files/tools/{UUID}.png)",
        f"[a](data:{TOOL})",
        f"[a](/{'x' * MAX_ADDRESS}{TOOL})",
        "[a]]((/]()](",
    ],
)
def test_every_other_text_stays_as_it_is(text: str) -> None:
    assert rewritten(text) == text
    assert rewritten(*text) == text


def test_the_files_are_found_with_their_names() -> None:
    one = LinkRewriter()
    parts = one.feed(f"![cat.png]({TOOL}) [a.pdf]({UPLOAD}) [b](https://x.example/)")
    files = [part for part in parts if isinstance(part, FileLink)]
    assert files == [FileLink(TOOL, "cat.png", "image"), FileLink(UPLOAD, "a.pdf", "file")]
    assert one.seen == {TOOL.partition("?")[0], UPLOAD.partition("?")[0]}


def test_a_text_has_so_many_files_and_no_more() -> None:
    link = f"[a]({TOOL})"
    assert rewritten(link * (MAX_FILES + 2)).endswith("[a](https://ai.example/a%20file)" + link * 2)


@pytest.mark.parametrize("text", ["Hello [a]", "x = a[0](1)", "[a](mailto:", "[a](hello", "](x"])
def test_nothing_is_held_but_what_may_be_a_file(text: str) -> None:
    assert LinkRewriter().feed(text) == [text]


def test_only_the_address_is_held() -> None:
    one = LinkRewriter()
    assert one.feed("see [a](https://x.exam") == ["see [a]("]
    assert one.feed("ple/b) and") == ["https://x.example/b) and"]


_TEXTS = st.lists(
    st.sampled_from(
        ["](", "[", "]", "(", ")", "!", "/", "h", "https://x", "a b", TOOL, UPLOAD, "é\n", "files/"]
    ),
    max_size=12,
).map("".join)


@given(_TEXTS, st.data())
def test_where_the_text_is_cut_does_not_matter(text: str, data: st.DataObject) -> None:
    pieces, rest = [], text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        pieces.append(rest[:size])
        rest = rest[size:]
    assert rewritten(*pieces) == rewritten(text) == rewritten(*text)


@given(_TEXTS)
def test_nothing_but_addresses_is_taken_out_of_the_text(text: str) -> None:
    one = LinkRewriter()
    parts = [*one.feed(text), one.flush()]
    assert "".join(part if isinstance(part, str) else part.url for part in parts) == text
