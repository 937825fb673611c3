"""Addresses of files, and the tickets that links carry."""

import base64
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.errors import FileExpired, InvalidSignature
from opendify.files.links import (
    DifyFile,
    absolute,
    find_dify_file,
    server_root,
    to_markdown,
)
from opendify.files.signed_links import (
    VALID_SECONDS,
    LinkClaims,
    expiry_time,
    sign,
    verify,
)

UUID = "0ccfe981-f968-4678-80ae-335266227dac"
SIGNED = "timestamp=1795460797&nonce=05d3&sign=a6CTiN-Ew0b%3D"
SECRET = b"0123456789abcdef"
TICKET = LinkClaims("org/模型", f"tools/{UUID}.png", "猫 (1).png", 2_000_000_000)


@pytest.mark.parametrize(
    ("url", "base", "address"),
    [
        ("/files/a.png?x=1", "https://dify.example/v1", "https://dify.example/files/a.png?x=1"),
        ("files/a.png", "http://api:5001/v1", "http://api:5001/files/a.png"),
        ("/files/a.png", "https://x.example/dify/v1", "https://x.example/dify/files/a.png"),
        ("/files/a.png", "https://x.example/api", "https://x.example/api/files/a.png"),
        ("https://cdn.example/a.png", "https://dify.example/v1", "https://cdn.example/a.png"),
        (" HTTP://cdn.example/a.png\n", "https://dify.example/v1", "HTTP://cdn.example/a.png"),
        ("//evil.example/a", "https://dify.example/v1", "https://dify.example//evil.example/a"),
        (
            "\\\\evil.example\\a",
            "https://dify.example/v1",
            "https://dify.example/\\\\evil.example\\a",
        ),
        ("@evil.example/", "https://dify.example/v1", "https://dify.example/@evil.example/"),
        ("", "https://dify.example/v1", ""),
        ("javascript:alert(1)", "https://dify.example/v1", ""),
        ("JavaScript:alert(1)", "https://dify.example/v1", ""),
        ("data:text/html,x", "https://dify.example/v1", ""),
        ("file:///etc/passwd", "https://dify.example/v1", ""),
    ],
)
def test_addresses_become_whole(url: str, base: str, address: str) -> None:
    assert absolute(url, base) == address


@given(st.text(), st.sampled_from(["https://dify.example/v1", "http://[::1]:5001/v1"]))
def test_a_relative_address_never_leaves_difys_host(url: str, base: str) -> None:
    address = absolute(url, base)
    if address and not url.strip().lower().startswith(("http://", "https://")):
        assert address.startswith(f"{server_root(base)}/")
        assert urlsplit(address).netloc == urlsplit(base).netloc


@pytest.mark.parametrize(
    ("name", "url", "is_image", "text"),
    [
        ("cat.png", "https://x.example/a", True, "![cat.png](https://x.example/a)"),
        ("a.pdf", "https://x.example/a?b=1&c=%3D", False, "[a.pdf](https://x.example/a?b=1&c=%3D)"),
        ("", "https://x.example/a", True, "![image](https://x.example/a)"),
        ("", "https://x.example/a", False, "[file](https://x.example/a)"),
        ("](http://evil) [", "https://x/", False, r"[\](http://evil) \[](https://x/)"),
        ("a\n\nb", "https://x/", False, "[a b](https://x/)"),
        ("<script>`*\\", "https://x/", False, r"[\<script\>\`\*\\](https://x/)"),
        ("a", "https://x/a b(c)<d>", False, "[a](https://x/a%20b%28c%29%3Cd%3E)"),
        ("a", "https://x/\r\n猫", False, "[a](https://x/%0D%0A%E7%8C%AB)"),
        ("a", "http://[::1]:80/a", False, "[a](http://[::1]:80/a)"),
        ("a.pdf", "", False, "a.pdf"),
    ],
)
def test_a_file_is_written_as_markdown(name: str, url: str, is_image: bool, text: str) -> None:
    assert to_markdown(name, url, is_image) == text


@given(st.text(max_size=30), st.text(max_size=30), st.booleans())
def test_markdown_is_one_link_on_one_line(name: str, path: str, is_image: bool) -> None:
    text = to_markdown(name, f"https://x/{path}", is_image)
    shown, _, address = text.rpartition("](https://x/")
    assert text.endswith(")") and not set(address[:-1]) & set(" ()<>\n\r\t\\")
    assert len(text.splitlines()) == 1
    shown = shown.removeprefix("!").removeprefix("[")
    for escaped in ("\\\\", "\\[", "\\]", "\\<", "\\>", "\\`", "\\*"):
        shown = shown.replace(escaped, "")
    assert not set(shown) & set("[]<>`\\")


@pytest.mark.parametrize(
    ("url", "file"),
    [
        (
            f"https://dify.example/files/tools/{UUID}.png?{SIGNED}",
            DifyFile(f"tools/{UUID}.png", SIGNED),
        ),
        (f"/files/{UUID}/file-preview?{SIGNED}", DifyFile(f"{UUID}/file-preview", SIGNED)),
        (f"/x/files/{UUID}/image-preview?{SIGNED}", DifyFile(f"{UUID}/image-preview", SIGNED)),
        (f"/files/tools/{UUID}.p?{SIGNED}&as_attachment=true", DifyFile(f"tools/{UUID}.p", SIGNED)),
        (f"/files/tools/f_1.png?{SIGNED}", DifyFile("tools/f_1.png", SIGNED)),
        (f"/files/tools/..png?{SIGNED}", None),
        (f"/files/../file-preview?{SIGNED}", None),
        (f"/files/tools/{UUID}.png", None),
        (f"/files/tools/{UUID}.png?timestamp=1&nonce=2", None),
        (f"/files/tools/{UUID}.png?timestamp=1&nonce=2&sign=", None),
        (f"/files/tools/{UUID}.png/../../console?{SIGNED}", None),
        (f"/files/tools/../{UUID}.png?{SIGNED}", None),
        (f"/files/tools/..%2f{UUID}.png?{SIGNED}", None),
        (f"/files/tools/{UUID}?{SIGNED}", None),
        (f"/files/{UUID}/preview?{SIGNED}", None),
        (f"/console/api/{UUID}?{SIGNED}", None),
        (f"/files/tools/{UUID}.png?{'&'.join(['a=1'] * 50)}&{SIGNED}", None),
        ("https://[broken/files", None),
        ("", None),
    ],
)
def test_difys_signed_links_are_known(url: str, file: DifyFile | None) -> None:
    assert find_dify_file(url) == file


def test_a_signature_cannot_carry_more_than_a_signature() -> None:
    sneaky = "timestamp=1%26x%3D2&nonce=a%23b&sign=%2F..%2F%0D%0A"
    file = find_dify_file(f"/files/tools/{UUID}.png?{sneaky}")
    assert file is not None
    assert urlsplit(f"http://x/{file.path}?{file.query}").query == file.query
    assert file.query == "timestamp=1%26x%3D2&nonce=a%23b&sign=%2F..%2F%0D%0A"


def test_only_uploads_can_be_had_again() -> None:
    assert DifyFile(f"{UUID}/file-preview").upload_id == UUID
    assert DifyFile(f"tools/{UUID}.png").upload_id == ""
    assert DifyFile(f"tools/{UUID}.png").name == f"{UUID}.png"


def test_a_ticket_survives_its_link() -> None:
    token, signature = sign(TICKET, SECRET)
    assert verify(token, signature, SECRET, now=TICKET.expires - 1) == TICKET
    assert set(token + signature) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    )


@given(st.text(max_size=20), st.text(max_size=20), st.integers(1, 2**40))
def test_any_ticket_survives_its_link(model: str, name: str, expires: int) -> None:
    ticket = LinkClaims(model, "p", name, expires)
    token, signature = sign(ticket, SECRET)
    assert verify(token, signature, SECRET, now=0) == ticket


def test_a_link_ends_when_its_time_has_come() -> None:
    token, signature = sign(TICKET, SECRET)
    with pytest.raises(FileExpired):
        verify(token, signature, SECRET, now=TICKET.expires)


def test_links_of_the_same_hour_are_the_same_and_live_a_week() -> None:
    assert expiry_time(7200) == expiry_time(10799)
    assert expiry_time(10799) < expiry_time(10800)
    for now in (0, 1, 3599, 3600.5, 1795460797):
        assert VALID_SECONDS < expiry_time(now) - now <= VALID_SECONDS + 3600


def test_every_other_signature_is_refused() -> None:
    token, signature = sign(TICKET, SECRET)
    wrong = [
        ("", ""),
        (token, ""),
        (token, signature[:-1]),
        (token, signature + "A"),
        (token, signature + "="),
        (token, signature.swapcase()),
        (token, "签名"),
        (token, "\ud800"),
        (token[:-1], signature),
        (token + "A", signature),
        ("A" + token, signature),
        ("x" * 5000, signature),
        ("\0/../..", signature),
        sign(TICKET, b"another secret!!"),
    ]
    wrong += [(token[:i] + other(token[i]) + token[i + 1 :], signature) for i in range(len(token))]
    wrong += [(token, signature[:i] + other(signature[i]) + signature[i + 1 :]) for i in range(42)]
    for bad_token, bad_signature in wrong:
        with pytest.raises(InvalidSignature):
            verify(bad_token, bad_signature, SECRET, now=0)


def other(char: str) -> str:
    return "A" if char != "A" else "B"


def test_the_last_character_of_a_signature_counts_too() -> None:
    token, signature = sign(TICKET, SECRET)
    for char in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
        if char != signature[-1]:
            with pytest.raises(InvalidSignature):
                verify(token, signature[:-1] + char, SECRET, now=0)


@given(st.text(max_size=60), st.text(max_size=60))
def test_nothing_made_up_is_accepted(token: str, signature: str) -> None:
    with pytest.raises(InvalidSignature):
        verify(token, signature, SECRET, now=0)


def test_a_ticket_cannot_be_rewritten() -> None:
    token, signature = sign(TICKET, SECRET)
    raw = base64.urlsafe_b64decode(token + "==").replace(b"2000000000", b"3000000000")
    longer = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    with pytest.raises(InvalidSignature):
        verify(longer, signature, SECRET, now=0)
