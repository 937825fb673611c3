"""Values on their way through a configuration file: written, read by Docker, and the same again."""

import json
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values
from hypothesis import given, settings
from hypothesis import strategies as st

from opendify.config.dotenv import load_environment
from opendify.deploy.env_files import (
    MAX_LINE_BYTES,
    BadLine,
    UnwritableValue,
    parse,
    parse_as_docker,
    write_assignment,
    write_for_docker,
    write_json,
)

names = st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
text = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), max_size=60)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(names, text, max_size=5))
def test_docker_reads_back_what_was_written(values: dict[str, str]) -> None:
    assert parse_as_docker(write_for_docker(values)) == values


@given(names, text)
def test_a_quoted_value_means_the_same_to_every_reader(name: str, value: str) -> None:
    for quote in "'", '"':
        try:
            line = write_assignment(name, value, quote)
        except UnwritableValue:
            continue
        assert parse(line) == {name: value}
        assert dict(dotenv_values(stream=StringIO(line), interpolate=False)) == {name: value}
        as_docker = parse_as_docker(line)  # the quotes are still on
        load_environment(as_docker)
        assert as_docker == {name: value}


@given(text)
@settings(max_examples=20, deadline=None)
def test_bash_reads_a_quoted_value_alike(value: str) -> None:
    for quote in "'", '"':
        try:
            line = write_assignment("X", value, quote)
        except UnwritableValue:
            continue
        script = f'{line}\nprintf %s "$X"'.encode()
        done = subprocess.run(["bash"], input=script, capture_output=True, check=True)
        assert done.stdout.decode() == value


@given(json_values)
def test_json_can_stand_between_any_quotes(value: Any) -> None:
    written = write_json(value)
    assert json.loads(written) == value
    assert written.isascii() and written.isprintable() and not set(written) & set("'$`#")
    line = write_assignment("MODEL_CONFIG", written)
    assert parse(line) == {"MODEL_CONFIG": written}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a\nb", "value_line_break"),
        ("a\r", "value_line_break"),
        ("a\0b", "value_line_break"),
        ("x" * MAX_LINE_BYTES, "value_too_long"),
        ("\N{CJK UNIFIED IDEOGRAPH-4E2D}" * (MAX_LINE_BYTES // 3), "value_too_long"),
    ],
)
def test_what_dockers_format_cannot_say_is_refused(value: str, reason: str) -> None:
    with pytest.raises(UnwritableValue) as caught:
        write_for_docker({"GOOD": "x", "NAME": value})
    assert (caught.value.name, caught.value.reason) == ("NAME", reason)
    assert "a\nb" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "quote"),
    [
        ("it's", "'"),
        ("a\\\\b", "'"),
        ("end\\", "'"),
        ("a\nb", "'"),
        ('a"b', '"'),
        ("$HOME", '"'),
        ("`id`", '"'),
        ("a\\b", '"'),
    ],
)
def test_what_readers_read_differently_is_refused(value: str, quote: str) -> None:
    with pytest.raises(UnwritableValue):
        write_assignment("NAME", value, quote)


# Measured with Docker 20.10 (docker run --env-file), see pkg/kvfile in docker/cli
DOCKER = [
    ('X="double"', {"X": '"double"'}),
    ('X=\'{"m":"k"}\'', {"X": '\'{"m":"k"}\''}),
    ('X={"m":"k"}', {"X": '{"m":"k"}'}),
    ("X=pa$HOME", {"X": "pa$HOME"}),
    ("X=ab #c", {"X": "ab #c"}),
    ("X=trailing  ", {"X": "trailing  "}),
    ("  X=indented", {"X": "indented"}),
    ("# X=comment\n\n  # more", {}),
    ("X=crlf\r\nY=z\r\n", {"X": "crlf", "Y": "z"}),
    ("\ufeffX=bom", {"X": "bom"}),
    ("X=", {"X": ""}),
    ("X", {}),
    ("X==y", {"X": "=y"}),
    ("X=one\nX=two", {"X": "two"}),
]


@pytest.mark.parametrize(("written", "read"), DOCKER, ids=repr)
def test_how_docker_reads(written: str, read: dict[str, str]) -> None:
    assert parse_as_docker(written) == read


@pytest.mark.parametrize("line", ["X = y", "export X=y", "=x", f"X={'y' * 70_000}"], ids=len)
def test_what_docker_refuses_the_whole_file_for(line: str) -> None:
    with pytest.raises(BadLine) as caught:
        parse_as_docker(f"A=b\n{line}\n")
    assert caught.value.number == 2


@pytest.mark.parametrize(
    ("written", "number"),
    [("A=b\nB", 2), ("A='open\nB=c'", 1), ("\ufeff\r\n\r\nA B=c", 3), ("A=x\rB=y", 1), ("1A=x", 1)],
)
def test_a_line_that_is_no_assignment_is_named_by_its_number(written: str, number: int) -> None:
    with pytest.raises(BadLine) as caught:
        parse(written)
    assert caught.value.number == number and "A" not in str(caught.value)


def test_a_file_in_the_folder_of_work_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("A=other\n")
    assert parse("A=own") == {"A": "own"}
