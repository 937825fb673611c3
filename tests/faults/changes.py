"""Small changes of a program, each made in the syntax tree of one function, class or constant.

A place is "module:Class.method", "module:function", "module:NAME" or "module:" for all of a module.
What a change looks for is counted from 0 within its place, in the order of the source.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Stale(Exception):
    """The place, or what the change looks for in it, is not there."""


@dataclass(frozen=True)
class Condition:
    """The ``number``-th condition (if, elif, while or ternary) is ``new``: "True", say."""

    number: int
    new: str

    def make(self, place: ast.AST) -> None:
        kinds = (ast.If, ast.While, ast.IfExp)
        node = _pick([n for n in _nodes(place) if isinstance(n, kinds)], self.number)
        node.test = _expression(self.new)


@dataclass(frozen=True)
class Catch:
    """The ``number``-th except clause catches ``new`` instead."""

    number: int
    new: str = "ZeroDivisionError"

    def make(self, place: ast.AST) -> None:
        handlers = [n for n in _nodes(place) if isinstance(n, ast.ExceptHandler)]
        _pick(handlers, self.number).type = _expression(self.new)


@dataclass(frozen=True)
class Constant:
    """The constant ``old``, the ``number``-th of its kind, is ``new``."""

    old: object
    new: object
    number: int = 0

    def make(self, place: ast.AST) -> None:
        found = [n for n in _nodes(place) if isinstance(n, ast.Constant) and self._is_old(n.value)]
        _pick(found, self.number).value = self.new  # type: ignore[assignment]

    def _is_old(self, value: object) -> bool:
        return type(value) is type(self.old) and value == self.old


@dataclass(frozen=True)
class Drop:
    """The statement that calls ``name`` (a function, or a method of anything) does nothing."""

    name: str
    number: int = 0

    def make(self, place: ast.AST) -> None:
        found = [s for s in _statements(place) if _calls(s, self.name)]
        _replace(place, _pick(found, self.number), [ast.Pass()])


@dataclass(frozen=True)
class WithoutOperand:
    """The ``number``-th chain of ``and`` or ``or`` lacks its ``operand``-th part."""

    number: int
    operand: int

    def make(self, place: ast.AST) -> None:
        node = _pick([n for n in _nodes(place) if isinstance(n, ast.BoolOp)], self.number)
        _pick(node.values, self.operand)
        del node.values[self.operand]
        if len(node.values) == 1:
            _replace(place, node, [node.values[0]])


@dataclass(frozen=True)
class Returned:
    """The ``number``-th return gives ``new``."""

    new: str
    number: int = 0

    def make(self, place: ast.AST) -> None:
        found = [n for n in _nodes(place) if isinstance(n, ast.Return)]
        _pick(found, self.number).value = _expression(self.new)


@dataclass(frozen=True)
class Assigned:
    """The ``number``-th assignment to ``name`` (a variable, or an attribute of anything) gives it
    the value ``new``."""

    name: str
    new: str
    number: int = 0

    def make(self, place: ast.AST) -> None:
        kinds = (ast.Assign, ast.AnnAssign)
        every = [place, *_nodes(place)]
        found = [n for n in every if isinstance(n, kinds) and self.name in _targets(n)]
        _pick(found, self.number).value = _expression(self.new)


@dataclass(frozen=True)
class Argument:
    """The ``position``-th argument of the ``number``-th call of ``name`` is ``new``."""

    name: str
    position: int
    new: str
    number: int = 0

    def make(self, place: ast.AST) -> None:
        calls = [n for n in _nodes(place) if isinstance(n, ast.Call)]
        call = _pick([n for n in calls if _called(n) == self.name], self.number)
        _pick(call.args, self.position)
        call.args[self.position] = _expression(self.new)


@dataclass(frozen=True)
class Replace:
    """``new`` stands for the ``number``-th expression or statement that reads ``old``, however
    that is formatted."""

    old: str
    new: str
    number: int = 0

    def make(self, place: ast.AST) -> None:
        found = [n for n in _nodes(place) if isinstance(n, ast.expr | ast.stmt)]
        old = ast.unparse(ast.parse(self.old))
        node = _pick([n for n in found if ast.unparse(n) == old], self.number)
        is_statement = isinstance(node, ast.stmt) and not isinstance(node, ast.Expr)
        is_statement = is_statement or (isinstance(node, ast.Expr) and not _is_expression(self.new))
        if isinstance(node, ast.Expr) and not is_statement:
            node.value = _expression(self.new)
        else:
            _replace(place, node, _body(self.new) if is_statement else [_expression(self.new)])


@dataclass(frozen=True)
class Insert:
    """``new`` stands before the ``number``-th statement of all in the place."""

    number: int
    new: str

    def make(self, place: ast.AST) -> None:
        statement = _pick(list(_statements(place)), self.number)
        _replace(place, statement, [*_body(self.new), statement])


Change = (
    Condition
    | Catch
    | Constant
    | Drop
    | WithoutOperand
    | Returned
    | Assigned
    | Argument
    | Replace
    | Insert
)


def file_of(where: str, root: Path) -> Path:
    """The file of the module of a place."""
    path = root.joinpath(*where.partition(":")[0].split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def changed(text: str, where: str, change: Change) -> str:
    """The source of the module with the change.

    Raises:
        Stale: the place is not there, or nothing in it to change, or the change changes nothing.
        SyntaxError: what comes of it is no Python.
    """
    tree = ast.parse(text)
    before = ast.unparse(tree)
    change.make(_resolve(tree, where.partition(":")[2]))
    after = ast.unparse(ast.fix_missing_locations(tree))
    if after == before:
        raise Stale(f"{change} changes nothing in {where}")
    compile(after, where, "exec")
    return after


def _resolve(tree: ast.Module, path: str) -> ast.AST:
    place: ast.AST = tree
    for name in filter(None, path.split(".")):
        found = [s for s in _statements(place) if name in _names(s)]
        if not found:
            raise Stale(f"there is no {path}")
        place = found[0]
    return place


def _names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    return _targets(statement) if isinstance(statement, ast.Assign | ast.AnnAssign) else []


def _targets(statement: ast.Assign | ast.AnnAssign) -> list[str]:
    """The variables and attributes that an assignment sets."""
    is_plain = isinstance(statement, ast.Assign)
    targets = statement.targets if is_plain else [statement.target]
    nodes = [node for target in targets for node in ast.walk(target)]
    attributes = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    return [*attributes, *(node.id for node in nodes if isinstance(node, ast.Name))]


def _nodes(place: ast.AST) -> Iterator[ast.AST]:
    """All nodes below a place, in the order of the source."""
    for child in ast.iter_child_nodes(place):
        yield child
        yield from _nodes(child)


def _statements(place: ast.AST) -> Iterator[ast.stmt]:
    return (node for node in _nodes(place) if isinstance(node, ast.stmt))


def _calls(statement: ast.stmt, name: str) -> bool:
    """Whether this is a call of ``name``, alone or with its result assigned."""
    if not isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign | ast.AugAssign):
        return False
    return isinstance(statement.value, ast.Call) and _called(statement.value) == name


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else _name(function)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _pick(found: list[Any], number: int) -> Any:
    if number >= len(found):
        raise Stale(f"there are {len(found)} of them, and none has the number {number}")
    return found[number]


def _replace(place: ast.AST, old: ast.AST, new: list[ast.AST]) -> None:
    for parent in (place, *_nodes(place)):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new[0])
                return
            if isinstance(value, list) and any(item is old for item in value):
                at = next(index for index, item in enumerate(value) if item is old)
                value[at : at + 1] = new
                return
    raise Stale("what is to be replaced is the place itself")


def _expression(source: str) -> ast.expr:
    return ast.parse(source, mode="eval").body


def _is_expression(source: str) -> bool:
    statements = ast.parse(source).body
    return len(statements) == 1 and isinstance(statements[0], ast.Expr)


def _body(source: str) -> list[ast.AST]:
    return [*ast.parse(source).body] or [ast.Pass()]
