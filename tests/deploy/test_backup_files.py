"""Archives and data folders as they should not be: nothing outside is read or written."""

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.deploy import restore
from opendify.deploy.backup import (
    ROLLBACK_DIR,
    SNAPSHOT,
    InvalidBackup,
    read_archive,
    read_folder,
    write_archive,
)

OWNER = f"{os.getuid()}:{os.getgid()}"


def archive(*members: tuple[str, bytes] | tarfile.TarInfo) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                tar.addfile(entry, io.BytesIO(member[1]))
    out.seek(0)
    return out


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


part = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=8)


@given(st.dictionaries(part, st.binary(max_size=40), max_size=4))
def test_what_was_packed_is_unpacked(files: dict[str, bytes]) -> None:
    out = io.BytesIO()
    write_archive(out, {f"data/x/{name}": content for name, content in files.items()}, 0.0)
    out.seek(0)
    assert read_archive(out) == {f"x/{name}": content for name, content in files.items()}


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", b"x")],
        [("/data/evil", b"x")],
        [("data/../evil", b"x")],
        [("data//evil", b"x")],
        [("./data/evil", b"x")],
        [("data/./evil", b"x")],
        [("data/a\\..\\evil", b"x")],
        [("data/new\nline", b"x")],
        [("other/evil", b"x")],
        [(f"data/{ROLLBACK_DIR}/evil", b"x")],
        [("data/sub", b"x"), ("data/sub/evil", b"x")],
        [special("data/evil", tarfile.SYMTYPE, "/etc")],
        [special("data/evil", tarfile.LNKTYPE, "/etc/passwd")],
        [special("data/evil", tarfile.CHRTYPE)],
        [special("data/evil", tarfile.FIFOTYPE)],
        [special("data", tarfile.SYMTYPE, "/etc"), ("data/passwd", b"x")],
        [special("config/evil", tarfile.SYMTYPE, "/etc")],
        [(f"data/{SNAPSHOT}", b"{half")],
    ],
)
def test_an_archive_with_anything_else_in_it_is_refused(
    members: list[tuple[str, bytes] | tarfile.TarInfo],
) -> None:
    with pytest.raises(InvalidBackup):
        read_archive(archive(("data/good", b"x"), *members))


@pytest.mark.parametrize("damage", ["cut", "no gzip", "no tar", "empty"])
def test_an_archive_that_is_damaged_is_refused(damage: str) -> None:
    whole = archive(("data/good", os.urandom(5000))).getvalue()
    bad = {
        "cut": whole[:2000],
        "no gzip": b"x" * 600,
        "no tar": whole[:10] + b"\0" * 50,
        "empty": b"",
    }
    with pytest.raises(InvalidBackup):
        read_archive(io.BytesIO(bad[damage]))


def test_a_backup_does_not_follow_links(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / ROLLBACK_DIR).mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "sub/plain").write_text("p")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "broken").symlink_to("nowhere")
    (folder / ROLLBACK_DIR / "old").write_text("o")
    (folder / "one.lock").touch()
    os.mkfifo(folder / "pipe")
    assert read_folder(folder) == {"sub/plain": b"p"}


def test_a_restore_touches_nothing_that_links_lead_to(tmp_path: Path) -> None:
    folder, outside = tmp_path / "data", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("k")
    (folder / "sub").symlink_to(outside)
    (folder / ROLLBACK_DIR).symlink_to(outside)
    restore.apply(folder, {"sub/new": b"n"}, OWNER)
    assert os.listdir(outside) == ["kept"]
    assert (folder / "sub/new").read_bytes() == b"n" and not (folder / "sub").is_symlink()
    restore.roll_back(folder)
    assert (folder / "sub").is_symlink() and os.listdir(outside) == ["kept"]
    assert os.listdir(folder) == ["sub"]


def test_there_and_back_again(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/file").write_text("o")
    restore.apply(tmp_path, {"new/deep/file": b"n", "top": b"t"}, OWNER)
    assert (tmp_path / "new/deep/file").read_bytes() == b"n"
    assert stat.S_IMODE((tmp_path / "top").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new/deep").stat().st_mode) == 0o700
    assert not (tmp_path / "old").exists()
    restore.roll_back(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "old"]
    restore.roll_back(tmp_path)  # nothing is set aside any more: all stays
    assert (tmp_path / "old/file").exists()
    restore.apply(tmp_path, {}, OWNER)
    restore.commit(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("owner", "ids"),
    [
        ("1000:1001", (1000, 1001)),
        ("1000", (1000, 1000)),
        ("", (0, 0)),
        ("root", (0, 0)),
        ("root:7", (0, 7)),
    ],
)
def test_whose_the_files_are(owner: str, ids: tuple[int, int]) -> None:
    assert restore.find_owner(owner) == ids
