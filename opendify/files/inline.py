"""Links to Dify's files inside an answer's own text. No I/O.

A chatflow writes a file that its answer mentions as markdown, ``![cat.png](/files/tools/...)``:
relative where FILES_URL is not set, and dead after 300 s. The text arrives in pieces, and a link
may be cut anywhere.
"""

import re
from collections.abc import Callable

from opendify.files.links import find_dify_file, in_markdown

MAX_ADDRESS = 2000

# Each costs a question to Dify, and a person can make a model write as many as they like.
MAX_FILES = 50

_LINK = re.compile(r'\]\(([^\s()\[\]<>"]*)(\)?)')
_LABEL = re.compile(r"(!?)\[([^\[\]]*)\]\(\Z")
_BEGINNINGS = ("/", "files/", "http://", "https://")
_MEMORY = 300


class LinkRewriter:
    """Puts addresses that callers can reach into a text as it comes.

    ``link`` gives the address for one of Dify's, from that, the link's label and ``image`` or
    ``file``; an empty one leaves Dify's. ``seen`` are the addresses of Dify's that were met,
    without their queries.
    """

    def __init__(self, link: Callable[[str, str, str], str]) -> None:
        self._link = link
        self._before = ""
        self._held = ""
        self._made = 0
        self.seen: set[str] = set()

    def is_passed_by(self, text: str) -> bool:
        """Whether this text, in whatever pieces, comes back from ``feed`` as it is: no link goes on
        or begins in it."""
        return not self._held and "](" not in self._before[-2:] + text

    def pass_on(self, text: str) -> None:
        """Takes such a text."""
        self._before = (self._before + text)[-_MEMORY:]

    def feed(self, text: str) -> str:
        """What can be said now: an address that may be one of Dify's is held until its end."""
        if self.is_passed_by(text):
            self.pass_on(text)
            return text
        text = self._before + self._held + text
        said, at, end = "", len(self._before), len(text)
        for found in _LINK.finditer(text, max(0, at - len("]("))):
            if found.start(1) < at or not _may_be_a_file(found[1]):
                continue
            if found[2]:
                label = text[max(0, found.start() - _MEMORY) : found.start(1)]
                said += text[at : found.start(1)] + self._reachable(found[1], label)
                at = found.end(1)
            elif found.end() == len(text):
                end = found.start(1)
        self._held = text[end:]
        self._before = text[:end][-_MEMORY:]
        return said + text[at:end]

    def flush(self) -> str:
        """What is held when no more comes."""
        rest, self._held = self._held, ""
        return rest

    def _reachable(self, address: str, before: str) -> str:
        if self._made == MAX_FILES or find_dify_file(address) is None:
            return address
        self._made += 1
        self.seen.add(address.partition("?")[0])
        label = _LABEL.search(before)
        name, kind = (label[2], "image" if label[1] else "file") if label else ("", "file")
        reachable = self._link(address, name, kind)
        return in_markdown(reachable) if reachable else address


def _may_be_a_file(address: str) -> bool:
    start = address.lower()
    return len(address) <= MAX_ADDRESS and any(
        start.startswith(beginning) or beginning.startswith(start) for beginning in _BEGINNINGS
    )
