"""Finds links to Dify's files in the text of an answer. No I/O.

A chatflow renders a file that its answer mentions as markdown, ``![cat.png](/files/tools/...)``:
relative if FILES_URL is not set, and expired after 300 s. The text arrives in chunks, which may
split a link anywhere.
"""

import re

from opendify.files.links import FileLink, find_dify_file

MAX_ADDRESS = 2000

# Each costs a request to Dify, and a user can make a model write any number of links.
MAX_FILES = 50

_LINK = re.compile(r'\]\(([^\s()\[\]<>"]*)(\)?)')
_LABEL = re.compile(r"(!?)\[([^\[\]]*)\]\(\Z")
_URL_PREFIXES = ("/", "files/", "http://", "https://")
_CONTEXT_CHARS = 300


class LinkRewriter:
    """Finds the links to Dify's files in a streamed text. ``seen`` are their addresses, without
    query strings."""

    def __init__(self) -> None:
        self._context = ""
        self._pending = ""
        self.seen: set[str] = set()
        self._found = 0

    def feed(self, text: str) -> list[str | FileLink]:
        """Returns what is final, in order: texts, and a FileLink in the place of each address of a
        Dify file. An address that may be one is held back until it is complete."""
        if not self._pending and "](" not in self._context[-2:] + text:
            self._context = (self._context + text)[-_CONTEXT_CHARS:]
            return [text] if text else []
        text = self._context + self._pending + text
        parts: list[str | FileLink] = []
        at, end = len(self._context), len(text)
        for match in _LINK.finditer(text, max(0, at - len("]("))):
            if match.start(1) < at or not _may_be_file_url(match[1]):
                continue
            if not match[2]:
                end = match.start(1) if match.end() == len(text) else end
            elif self._is_file(match[1]):
                label = text[max(0, match.start() - _CONTEXT_CHARS) : match.start(1)]
                parts += [text[at : match.start(1)], _link(match[1], label)]
                at = match.end(1)
        self._pending = text[end:]
        self._context = text[:end][-_CONTEXT_CHARS:]
        return [part for part in (*parts, text[at:end]) if part]

    def flush(self) -> str:
        """Ends the text; returns what was held back."""
        pending, self._pending = self._pending, ""
        return pending

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
