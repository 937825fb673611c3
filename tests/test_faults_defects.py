"""The deliberate defects of the fault suite can be made in the code of today; what is stale would
show only when all of them are run, which takes long."""

import ast
from functools import cache

import pytest

from tests.faults import changes
from tests.faults.changes import Change, Stale, changed, file_of
from tests.faults.defects import DEFECTS, Defect
from tests.support.service import ROOT

EACH = pytest.mark.parametrize("defect", DEFECTS, ids=[defect.what for defect in DEFECTS])


@cache
def names_of_tests(file: str) -> set[str]:
    """The names of the test functions of a file."""
    nodes = ast.parse((ROOT / file).read_text()).body
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("test_")}


@EACH
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_a_defect_changes_the_code_and_leaves_python(defect: Defect) -> None:
    """Any case would catch one that is no Python."""
    changed(file_of(defect.where, ROOT).read_text(), defect.where, defect.change)


@EACH
def test_the_case_of_a_defect_is_a_test(defect: Defect) -> None:
    node = defect.case.partition(" -k ")[0]
    file, _, name = node.partition("::")
    assert name in names_of_tests(file)


PROGRAM = """\
LIMIT = 3


class Box:
    kind = "box"

    def open(self, key):
        lid = self.find(key)
        if key is None and lid or self.locked:
            return False
        try:
            self.lift(lid, 1)
        except OSError:
            return None
        return True
"""
OPEN = "box:Box.open"


@pytest.mark.parametrize(
    ("where", "change", "line"),
    [
        (OPEN, changes.Condition(0, "False"), "if False:"),
        (OPEN, changes.Catch(0), "except ZeroDivisionError:"),
        ("box:LIMIT", changes.Constant(3, 4), "LIMIT = 4"),
        (OPEN, changes.Constant(True, 1), "return 1"),
        (OPEN, changes.Drop("find"), "pass"),
        (OPEN, changes.WithoutOperand(1, 0), "if lid or self.locked:"),
        (OPEN, changes.Returned("key", 2), "return key"),
        (OPEN, changes.Assigned("lid", "None"), "lid = None"),
        ("box:LIMIT", changes.Assigned("LIMIT", "0"), "LIMIT = 0"),
        (OPEN, changes.Argument("lift", 1, "2"), "self.lift(lid, 2)"),
        (OPEN, changes.Replace("self . locked", "True"), "if key is None and lid or True:"),
        (OPEN, changes.Replace("self.lift(lid,1)", "lid()"), "lid()"),
        (OPEN, changes.Replace("return  None", "raise"), "raise"),
        ("box:Box", changes.Insert(0, "locked = 1"), "locked = 1"),
    ],
)
def test_a_change_is_made_where_it_belongs(where: str, change: Change, line: str) -> None:
    before = ast.unparse(ast.parse(PROGRAM)).splitlines()
    after = changed(PROGRAM, where, change).splitlines()
    assert [text.strip() for text in after if text not in before] == [line]


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("box:Box.shut", changes.Condition(0, "False")),
        ("box:NUMBER", changes.Constant(3, 4)),
        (OPEN, changes.Condition(1, "False")),
        (OPEN, changes.Drop("lower")),
        (OPEN, changes.Constant(1, 1)),
        (OPEN, changes.Replace("self.key", "key")),
    ],
)
def test_what_is_not_there_is_stale(where: str, change: Change) -> None:
    with pytest.raises(Stale):
        changed(PROGRAM, where, change)
