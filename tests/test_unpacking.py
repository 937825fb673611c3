"""Compressed answers, as they are and as they are made to do harm."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.upstream.unpacking import (
    MAX_PIECE_BYTES,
    MIN_LIMITED_BYTES,
    BadPacking,
    UnknownCoding,
    Unpacker,
    new_unpacker,
)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


CODINGS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}


def unpacked(unpacker: Unpacker, pieces: list[bytes]) -> bytes:
    found = b""
    for piece in pieces:
        unpacker.feed(piece)
        while unpacker.has_more:
            taken = unpacker.take()
            assert len(taken) <= MAX_PIECE_BYTES
            found += taken
    return found


def made(coding: str) -> Unpacker:
    unpacker = new_unpacker({"content-encoding": coding})
    assert unpacker is not None
    return unpacker


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "GZIP", "identity, gzip"])
@pytest.mark.parametrize("step", [1, 7, 10**6])
def test_what_was_packed_comes_out(coding: str, step: int) -> None:
    data = bytes(range(256)) * 20
    packed = CODINGS[coding.lower().removeprefix("identity, ")](data)
    unpacker = made(coding)
    pieces = [packed[i : i + step] for i in range(0, len(packed), step)]
    assert unpacked(unpacker, pieces) == data
    assert unpacker.is_complete


@given(data=st.binary(max_size=2000), step=st.integers(1, 50))
def test_deflate_without_a_head_comes_out(data: bytes, step: int) -> None:
    packed = raw_deflate(data)
    pieces = [packed[i : i + step] for i in range(0, len(packed), step)]
    assert unpacked(made("deflate"), pieces) == data


def test_gzip_of_several_members_and_with_rubbish_after_it() -> None:
    packed = gzip.compress(b"one ") + gzip.compress(b"two")
    assert unpacked(made("gzip"), [packed]) == b"one two"
    assert unpacked(made("gzip"), [gzip.compress(b"one"), b"rubbish", b"more"]) == b"one"


def test_what_is_flushed_comes_at_once() -> None:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    unpacker = made("gzip")
    for word in (b"one", b"two"):
        piece = packer.compress(word) + packer.flush(zlib.Z_SYNC_FLUSH)
        assert unpacked(unpacker, [piece]) == word
    assert not unpacker.is_complete


@pytest.mark.parametrize(
    "headers", [{}, {"content-encoding": ""}, {"content-encoding": "Identity"}]
)
def test_what_is_not_packed_needs_nothing(headers: dict[str, str]) -> None:
    assert new_unpacker(headers) is None


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "br, gzip", "compress"])
def test_another_coding_is_named(coding: str) -> None:
    with pytest.raises(UnknownCoding, match=coding):
        new_unpacker({"content-encoding": coding})


@pytest.mark.parametrize("told", ["<script>" * 50, "\xff\r\nx", "ü"])
def test_the_name_of_a_coding_is_shown_clean(told: str) -> None:
    with pytest.raises(UnknownCoding) as caught:
        new_unpacker({"content-encoding": told})
    shown = str(caught.value)
    assert shown.isascii()
    assert 0 < len(shown) <= 40
    assert not set("<>\r\n") & set(shown)


@pytest.mark.parametrize("coding", CODINGS)
def test_what_is_no_packing_is_bad(coding: str) -> None:
    with pytest.raises(BadPacking):
        unpacked(made(coding), [b"\x1f\x8b\x08\x00 this is nothing of the kind"])


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("byte", [b"\0", b"\n"])
def test_a_bomb_is_given_up_early(coding: str, byte: bytes) -> None:
    packed = CODINGS[coding](byte * (10 * MIN_LIMITED_BYTES))
    unpacker = made(coding)
    unpacker.feed(packed)
    given = 0
    with pytest.raises(BadPacking, match="times its size"):
        while unpacker.has_more:
            given += len(unpacker.take())
    assert given <= 3 * MIN_LIMITED_BYTES
