"""What a file is, and the names that are safe to pass on."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.files.media import (
    dify_kind,
    extension_for,
    kind_by_extension,
    media_type_for,
    sniff,
)
from opendify.files.names import (
    MAX_NAME,
    clean_name,
    extension_of,
    file_name,
)

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF"
WEBP = b"RIFF\x24\0\0\0WEBPVP8 "
WAV = b"RIFF\x24\0\0\0WAVEfmt "
PDF = b"%PDF-1.7\n"
MP4 = b"\0\0\0\x20ftypisom\0\0"
M4A = b"\0\0\0\x20ftypM4A \0\0"
WEBM = b"\x1a\x45\xdf\xa3\x9f"
MP3 = b"\xff\xfb\x90\x64\0"
ZIP = b"PK\x03\x04\x14\0"


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (JPEG, "image/jpeg"),
        (b"GIF89a\x01", "image/gif"),
        (WEBP, "image/webp"),
        (WAV, "audio/wav"),
        (PDF, "application/pdf"),
        (MP4, "video/mp4"),
        (M4A, "audio/mp4"),
        (b"\0\0\0\x20ftypqt  ", "video/quicktime"),
        (b"\0\0\0\x20ftypheic", "image/heic"),
        (WEBM, "video/webm"),
        (MP3, "audio/mpeg"),
        (b"ID3\x04\0", "audio/mpeg"),
        (b"OggS\0", "audio/ogg"),
        (b"#!AMR\n", "audio/amr"),
        (b"BM\x46\0\0\0\0\0\0\0", "image/bmp"),
        (b"BMW cars", ""),
        (b"\xff\xfeh\0i\0", ""),  # UTF-16, which begins a little like MP3
        (b"hello", ""),
        (b"", ""),
    ],
)
def test_first_bytes_tell_the_type(data: bytes, media_type: str) -> None:
    assert sniff(data) == media_type


@pytest.mark.parametrize(
    ("told", "data", "extension", "media_type"),
    [
        ("image/png", PNG, "", "image/png"),
        ("image/png", JPEG, "", "image/jpeg"),
        ("image/jpg", b"?", "", "image/jpeg"),
        ("text/plain", PDF, "txt", "application/pdf"),
        ("audio/mp4", MP4, "", "audio/mp4"),
        ("audio/webm", WEBM, "", "audio/webm"),
        ("audio/mp3", MP3, "", "audio/mp3"),
        ("Text/CSV", b"a;b", "", "text/csv"),
        ("", PNG, "txt", "image/png"),
        ("application/octet-stream", PNG, "", "image/png"),
        ("application/octet-stream", b"a,b", "csv", "text/csv"),
        ("", b"# Title", "md", "text/markdown"),
        (
            "",
            ZIP,
            "docx",
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        ),
        ("", b"plain words", "", "text/plain"),
        ("", "文字".encode(), "", "text/plain"),
        ("", ("x" * 4095 + "字").encode(), "", "text/plain"),
        ("", b"<!DOCTYPE html><p>", "", "text/html"),
        ("", b"<?xml version='1.0'?><svg/>", "", "image/svg+xml"),
        ("", b"\0\1\2", "", "application/octet-stream"),
        ("", ZIP, "", "application/octet-stream"),
        ("audio/../../x\r\nEvil: 1", b"\0", "", "application/octet-stream"),
        ("image", b"\0", "", "application/octet-stream"),
    ],
)
def test_the_media_type_is_declared_or_detected(
    told: str, data: bytes, extension: str, media_type: str
) -> None:
    assert media_type_for(told, data, extension) == media_type


@pytest.mark.parametrize(
    ("extension", "media_type", "kind"),
    [
        ("png", "image/png", "image"),
        ("svg", "image/svg+xml", "image"),
        ("pdf", "application/pdf", "document"),
        ("docx", "", "document"),
        ("mp3", "audio/mpeg", "audio"),
        ("ogg", "audio/ogg", "audio"),
        ("webm", "audio/webm", "video"),
        ("heic", "image/heic", "image"),
        ("py", "text/x-python", "custom"),
        ("", "", "custom"),
    ],
)
def test_the_kind_is_what_dify_takes_a_file_for(extension: str, media_type: str, kind: str) -> None:
    assert dify_kind(extension, media_type) == kind


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("report.pdf", "report.pdf"),
        ("年度报告.docx", "年度报告.docx"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a.png", "a.png"),
        ("a\r\nb\t c.png", "a b c.png"),
        ("gpj.\u202eexe.png", "gpj.exe.png"),
        ('a:b*c?"d<e>f|g.txt', "a_b_c__d_e_f_g.txt"),
        ("  .hidden. ", "hidden"),
        ("..", ""),
        ("", ""),
        ("\0", ""),
        ("x" * 300 + ".PDF", "x" * (MAX_NAME - 4) + ".pdf"),
        ("x" * 300, "x" * MAX_NAME),
    ],
)
def test_names_are_cleaned(told: str, name: str) -> None:
    assert clean_name(told) == name


@pytest.mark.parametrize(
    ("told", "media_type", "name"),
    [
        ("", "image/png", "image.png"),
        ("", "image/jpeg", "image.jpg"),
        ("", "audio/mp3", "audio.mp3"),
        ("", "video/mp4", "video.mp4"),
        ("", "application/pdf", "file.pdf"),
        ("", "application/x-unheard-of", "file.bin"),
        ("report", "application/pdf", "report.pdf"),
        ("Notes v1.2", "application/pdf", "Notes v1.2.pdf"),
        ("main.py", "text/plain", "main.py"),
        ("data.md", "text/plain", "data.md"),
        ("photo.jfif", "image/jpeg", "photo.jpg"),
        ("photo.heic", "image/heic", "photo.heic"),
        ("audio.mpeg", "audio/mpeg", "audio.mp3"),
        ("audio.webm", "audio/webm", "audio.webm"),
        ("song.MP3", "audio/mpeg", "song.MP3"),
        ("x" * 300, "image/png", "x" * (MAX_NAME - 4) + ".png"),
    ],
)
def test_a_name_gets_the_right_extension(told: str, media_type: str, name: str) -> None:
    assert file_name(told, media_type) == name


@given(st.text(), st.sampled_from(["image/png", "audio/mpeg", "text/plain", "a/b", ""]))
def test_any_name_becomes_one_that_dify_takes(told: str, media_type: str) -> None:
    name = file_name(told, media_type)
    assert 0 < len(name) <= MAX_NAME + 5
    assert not set(name) & set('/\\:*?"<>|\r\n\0')
    assert not any(unicodedata.category(char)[0] == "C" for char in name)
    assert name.strip(". ") == name
    assert extension_of(name)
    assert file_name(name, media_type) == name


@given(st.text())
def test_cleaning_twice_changes_nothing(told: str) -> None:
    assert clean_name(clean_name(told)) == clean_name(told)


@given(st.binary(max_size=64), st.text(max_size=20))
def test_any_content_has_a_type_that_a_header_can_hold(data: bytes, told: str) -> None:
    major, slash, minor = media_type_for(told, data, "").partition("/")
    assert slash and major.isascii() and minor.isascii()
    assert (major + minor).isprintable()


def test_the_extension_of_a_type_leads_back_to_its_kind() -> None:
    for media_type in ("image/png", "audio/mpeg", "video/mp4", "audio/wav", "image/webp"):
        assert kind_by_extension(extension_for(media_type)) == media_type.partition("/")[0]
