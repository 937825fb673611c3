"""Puts addresses that callers can reach into what a renderer has produced. No I/O but that of the
function that makes an address."""

from collections.abc import Callable, Sequence

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


def is_resolved(deltas: Sequence[Rendered]) -> bool:
    """Whether no file is to be linked to, so that ``resolve`` has nothing to wait for."""
    return not any(isinstance(delta, Unresolved) for delta in deltas)


class FileLinkResolver:
    """``link`` gives the address under which callers reach a file, from Dify's address, a name and
    Dify's word for its kind; it may block. An empty one means that there is none."""

    def __init__(self, link: Callable[[str, str, str], str]) -> None:
        self._link = link
        self._found: dict[FileLink, str] = {}

    def resolve(self, deltas: Sequence[Rendered]) -> list[Delta]:
        """What one event was rendered as, with each link as text that is joined to its
        neighbours."""
        resolved: list[Delta] = []
        is_joined = not is_resolved(deltas)
        for delta in deltas:
            match delta:
                case TextDelta() if not is_joined:
                    resolved.append(delta)
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
