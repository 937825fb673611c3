"""The deliberate defects of the fault suite can be made in the code of today; what is stale would
show only when all of them are run, which takes long."""

import ast
from functools import cache

import pytest

from tests.faults.defects import DEFECTS, Defect
from tests.service import ROOT

EACH = pytest.mark.parametrize("defect", DEFECTS, ids=[defect.what for defect in DEFECTS])


@cache
def text_of(file: str) -> str:
    return (ROOT / file).read_text()


@cache
def names_of_tests(file: str) -> set[str]:
    """The names of the test functions of a file."""
    nodes = ast.parse(text_of(file)).body
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("test_")}


@EACH
def test_what_a_defect_replaces_is_there_once(defect: Defect) -> None:
    times = text_of(defect.file).count(defect.old)
    assert times == 1
    assert defect.new != defect.old


@EACH
def test_a_defect_leaves_python_that_can_be_read(defect: Defect) -> None:
    """Any case would catch one that cannot."""
    ast.parse(text_of(defect.file).replace(defect.old, defect.new))


@EACH
def test_the_case_of_a_defect_is_a_test(defect: Defect) -> None:
    node = defect.case.partition(" -k ")[0]
    file, _, name = node.partition("::")
    assert name in names_of_tests(file)
