"""Which keys are set, and whether one of them was shown."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.auth.api_keys import ApiKeys, parse_bearer, parse_keys

HASH = hashlib.sha256(b"hashed key").hexdigest()


@pytest.mark.parametrize(
    ("text", "key", "held"),
    [
        pytest.param("one", "one", True, id="the only one"),
        pytest.param("one", "two", False, id="another"),
        pytest.param("one", "", False, id="none shown"),
        pytest.param("one", "One", False, id="capitals count"),
        pytest.param(" one , two,", "two", True, id="blanks and commas do not"),
        pytest.param("one", "one\u00e9\ud800", False, id="any text can be shown"),
        pytest.param(f"sha256:{HASH}", "hashed", False, id="hashed, another"),
        pytest.param(f"one,SHA256:{HASH.upper()}", "one", True, id="both forms"),
        pytest.param("", "", False, id="none set, none shown"),
        pytest.param(",", "", False, id="only a comma"),
        pytest.param("one\r\ntwo\n", "two", True, id="lines of a file"),
    ],
)
def test_a_key_is_held_or_not(text: str, key: str, held: bool) -> None:
    assert parse_keys(text).contains(key) is held


def test_a_key_that_is_set_by_its_hash_is_held() -> None:
    keys = parse_keys(f"sha256:{hashlib.sha256(b'hashed-key').hexdigest()}")
    assert keys.contains("hashed-key")
    assert not keys.contains(keys.digests[0])
    assert not keys.contains(f"sha256:{keys.digests[0]}")


@given(st.lists(st.from_regex(r"[!#-&(-+\--Z\\^-z|~]{1,30}", fullmatch=True)), st.text())
def test_exactly_the_keys_that_are_set_are_held(written: list[str], shown: str) -> None:
    written = [key for key in written if not key.lower().startswith("sha256:")]
    keys = parse_keys(",".join(written))
    assert all(keys.contains(key) for key in written)
    assert keys.contains(shown) == (shown in written)
    assert bool(keys) == bool(written)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("good,se cret", "key 2 contains spaces"),
        ("se\u00e9cret", "key 1 contains spaces or non-ASCII characters"),
        ("se\tcret", "key 1 contains spaces"),
        ("good\nse cret", "key 2 contains spaces"),
        ('["good","secret"]', "key 1 contains quotes or brackets"),
        ("good,'secret'", "key 2 contains quotes or brackets"),
        ("sha256:secret", "key 1: 'sha256:' must be followed by 64 hexadecimal digits"),
        (f"sha256:{HASH}0", "key 1: 'sha256:' must"),
        (f"sha256:{hashlib.sha256().hexdigest()}", "key 1 is the hash of an empty key"),
    ],
)
def test_a_wrong_key_is_named_by_its_number_alone(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_keys(text)
    assert problem in str(caught.value)
    assert "cret" not in str(caught.value)


def test_no_key_shows() -> None:
    keys = parse_keys("my-secret")
    assert "my-secret" not in repr(keys)
    assert keys.digests[0] not in repr(keys)
    assert keys != ApiKeys()


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer one", "one"),
        ("bearer  one ", "one"),
        ("BEARER a b", "a b"),
        ("Bearer \tone\t ", "one"),
        ("Bearer one\xa0", "one\xa0"),
        ("Bearer one\x85", "one\x85"),
        ("Bearer \u2003one\x1f", "\u2003one\x1f"),
        ("Basic one", ""),
        ("one", ""),
        ("Bearer", ""),
        ("", ""),
    ],
)
def test_the_key_of_a_header(header: str, key: str) -> None:
    assert parse_bearer(header) == key
