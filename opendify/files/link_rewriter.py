"""Links to Dify's files inside an answer's own text. No I/O.

A chatflow writes a file that its answer mentions as markdown, ``![cat.png](/files/tools/...)``:
relative where FILES_URL is not set, and dead after 300 s. The text arrives in pieces, and a link
may be cut anywhere.
"""

import re

from opendify.files.links import FileLink, find_dify_file

MAX_ADDRESS = 2000

# Each costs a question to Dify, and a person can make a model write as many as they like.
MAX_FILES = 50

_LINK = re.compile(r'\]\(([^\s()\[\]<>"]*)(\)?)')
_LABEL = re.compile(r"(!?)\[([^\[\]]*)\]\(\Z")
_URL_PREFIXES = ("/", "files/", "http://", "https://")
_CONTEXT_CHARS = 300


class LinkRewriter:
    """Finds the links to Dify's files in a text as it comes. ``seen`` are their addresses, without
    the queries."""

    def __init__(self) -> None:
        self._context = ""
        self._pending = ""
        self.seen: set[str] = set()
        self._found = 0

    def feed(self, text: str) -> list[str | FileLink]:
        """What is certain by now, in order: texts, and in the place of an address of Dify's the
        file it leads to. An address that may be one of Dify's is held until its end."""
        if not self._pending and "](" not in self._context[-2:] + text:
            self._context = (self._context + text)[-_CONTEXT_CHARS:]
            return [text] if text else []
        text = self._context + self._pending + text
        parts: list[str | FileLink] = []
        at, end = len(self._context), len(text)
        for found in _LINK.finditer(text, max(0, at - len("]("))):
            if found.start(1) < at or not _may_be_file_url(found[1]):
                continue
            if not found[2]:
                end = found.start(1) if found.end() == len(text) else end
            elif self._is_file(found[1]):
                label = text[max(0, found.start() - _CONTEXT_CHARS) : found.start(1)]
                parts += [text[at : found.start(1)], _link(found[1], label)]
                at = found.end(1)
        self._pending = text[end:]
        self._context = text[:end][-_CONTEXT_CHARS:]
        return [part for part in (*parts, text[at:end]) if part]

    def flush(self) -> str:
        """What is held when no more comes."""
        rest, self._pending = self._pending, ""
        return rest

    def _is_file(self, address: str) -> bool:
        if self._found == MAX_FILES or find_dify_file(address) is None:
            return False
        self._found += 1
        self.seen.add(address.partition("?")[0])
        return True


def _link(address: str, before: str) -> FileLink:
    label = _LABEL.search(before)
    name, kind = (label[2], "image" if label[1] else "file") if label else ("", "file")
    return FileLink(address, name, kind)


def _may_be_file_url(address: str) -> bool:
    start = address.lower()
    return len(address) <= MAX_ADDRESS and any(
        start.startswith(beginning) or beginning.startswith(start) for beginning in _URL_PREFIXES
    )
