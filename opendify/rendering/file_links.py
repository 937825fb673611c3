"""Inserts client-reachable addresses of files into rendered deltas. No I/O except in the function
that creates an address."""

from collections.abc import Callable, Sequence
from typing import TypeGuard, get_args

from opendify.files import links
from opendify.files.links import FileLink
from opendify.rendering.deltas import (
    Delta,
    FileFound,
    FileMarkdown,
    LinkTarget,
    Rendered,
    TextDelta,
    Unresolved,
)

_UNRESOLVED = frozenset(get_args(Unresolved))


def is_resolved(deltas: Sequence[Rendered]) -> TypeGuard[Sequence[Delta]]:
    """Whether no delta refers to a file, so that ``resolve`` does not block."""
    return _UNRESOLVED.isdisjoint(map(type, deltas))


class FileLinkResolver:
    """``link`` takes a file's Dify address, its name and Dify's name for its kind, and returns the
    address for clients, or an empty string if there is none. It may block."""

    def __init__(self, link: Callable[[str, str, str], str]) -> None:
        self._link = link
        self._found: dict[FileLink, str] = {}

    def resolve(self, deltas: Sequence[Rendered]) -> Sequence[Delta]:
        """Turns the deltas into deltas with links as text, merged with neighbouring text."""
        resolved: list[Delta] = []
        for delta in deltas:
            match delta:
                case TextDelta(text):
                    _add_text(resolved, text)
                case LinkTarget(link):
                    address = self._address(link)
                    _add_text(resolved, links.escape_for_markdown(address) if address else link.url)
                case FileMarkdown(link):
                    is_image = link.kind == "image"
                    shown = links.to_markdown(link.shown_name, self._address(link), is_image)
                    _add_text(resolved, shown)
                case FileFound(link):
                    self._found[link] = self._address(link)
                case _:
                    resolved.append(delta)
        return resolved

    def _address(self, link: FileLink) -> str:
        found = self._found.get(link)
        return self._link(link.url, link.name, link.kind) if found is None else found


def _add_text(deltas: list[Delta], text: str) -> None:
    if deltas and isinstance(last := deltas[-1], TextDelta):
        deltas[-1] = TextDelta(last.text + text)
    else:
        deltas.append(TextDelta(text))
