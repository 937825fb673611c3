"""The other names of a model, in which ``*`` stands for any text. No I/O."""

from collections.abc import Collection, Mapping
from typing import Any

from opendify.config.parsing import InvalidValue

_WILDCARD = "*"


def parse_aliases(value: Any, where: str) -> tuple[str, ...]:
    """A list of names. Raises InvalidValue, which names them by their positions: one may be a key
    in the wrong place."""
    if not isinstance(value, list):
        raise InvalidValue(f'{where} must be a list of names, like ["gpt-*", "whisper-1"]')
    for number, alias in enumerate(value, start=1):
        is_text = isinstance(alias, str) and alias.strip() == alias and alias.isprintable()
        if not is_text or not alias:
            raise InvalidValue(
                f"{where}: name {number} must be a text without spaces around it and control "
                "characters in it, and not empty"
            )
        if alias in value[: number - 1]:
            raise InvalidValue(f"{where}: name {number} occurs twice")
    return tuple(value)


def alias_problems(aliases: Mapping[str, Collection[str]], names: Collection[str]) -> list[str]:
    """What is wrong with the ``aliases`` of each model together. ``names`` are those of all
    models."""
    problems = []
    owners: dict[str, str] = {}
    for model, own in aliases.items():
        for number, alias in enumerate(own, start=1):
            where = f"MODEL_CONFIG: model '{model}', setting 'aliases': name {number}"
            if alias in names:
                problems.append(f"{where} is itself the name of a model")
            elif alias in owners:
                problems.append(f"{where} is also an alias of the model '{owners[alias]}'")
            owners.setdefault(alias, model)
    return problems


def is_pattern(alias: str) -> bool:
    """Whether it stands for more than one name."""
    return _WILDCARD in alias


def match_rank(alias: str, name: str) -> tuple[bool, int] | None:
    """How well an alias fits a name; None if it does not. The greatest is the best: the name
    itself, then the pattern with the most characters besides ``*``."""
    if not is_pattern(alias):
        return (True, len(alias)) if alias == name else None
    return (False, len(alias) - alias.count(_WILDCARD)) if _matches(alias, name) else None


def _matches(pattern: str, name: str) -> bool:
    """Takes time in proportion to the length of the name, which callers choose; a regular
    expression would not."""
    start, *middle, end = pattern.split(_WILDCARD)
    if not (name.startswith(start) and name.endswith(end)):
        return False
    position, stop = len(start), len(name) - len(end)
    for part in middle:
        found = name.find(part, position, stop)
        if found < 0:
            return False
        position = found + len(part)
    return position <= stop
