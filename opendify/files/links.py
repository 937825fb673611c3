"""Addresses of files that Dify made: whole ones, in markdown, and what they are at Dify. No I/O."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlencode, urlsplit

MAX_SHOWN_NAME = 200

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
# UUIDs in every release known; whether there is such a file is Dify's to say.
_ID = r"[\w-]{1,64}"
_DIFY_FILE = re.compile(
    rf"/files/(tools/{_ID}\.[a-z0-9]{{1,16}}|{_ID}/(?:file|image)-preview)",
    re.IGNORECASE | re.ASCII,
)
_SIGNATURE = ("timestamp", "nonce", "sign")
_SAFE_IN_MARKDOWN = "%/:=&?~#+!$,;@[]'*"
_BREAKS_MARKDOWN = re.compile(r"([\\\[\]<>`*])")


@dataclass(frozen=True, slots=True)
class DifyFile:
    """A file as Dify's signed links name it.

    ``path`` is what follows ``/files/``: ``tools/<id>.png`` for what a tool or model made,
    ``<id>/file-preview`` for an upload. ``query`` is the signature, which covers no host and is
    good for 300 s (FILES_ACCESS_TIMEOUT).
    """

    path: str
    query: str = ""

    @property
    def upload_id(self) -> str:
        """The id of an upload, which the app's API gives out again; empty for a tool's file."""
        first = self.path.partition("/")[0]
        return "" if first == "tools" else first

    @property
    def name(self) -> str:
        """A name for it where nobody told one; empty for an upload."""
        return "" if self.upload_id else self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class FileLink:
    """A file that an answer links to: its address at Dify, the name that it was given (may be
    empty) and Dify's word for its kind (``image``, ``document`` ...)."""

    url: str
    name: str
    kind: str

    @property
    def shown_name(self) -> str:
        """The name to show for it."""
        return self.name or self.url.partition("?")[0].rpartition("/")[2]


def root(base: str) -> str:
    """Where Dify's own links begin: the address of its API without ``/v1``."""
    return base.removesuffix("/v1")


def absolute(url: str, base: str) -> str:
    """The whole address of a file that Dify names; its links are relative without FILES_URL.

    Empty for what is no address of the web: ``javascript:`` and its like.
    """
    url = url.strip()
    if url.lower().startswith(("http://", "https://")):
        return url
    if not url or _SCHEME.match(url):
        return ""
    return f"{root(base)}/{url.removeprefix('/')}"


def markdown(name: str, url: str, is_image: bool) -> str:
    """A file as markdown: an image to look at, a link, or its mere name where ``url`` is empty."""
    shown = " ".join(name.split())[:MAX_SHOWN_NAME] or ("image" if is_image else "file")
    shown = _BREAKS_MARKDOWN.sub(r"\\\1", shown)
    if not url:
        return shown
    return f"{'!' if is_image else ''}[{shown}]({in_markdown(url)})"


def in_markdown(url: str) -> str:
    """An address without what would end it, or the line, in markdown."""
    return quote(url, safe=_SAFE_IN_MARKDOWN, errors="replace")


def find_dify_file(url: str) -> DifyFile | None:
    """The file of Dify's that a signed link names; None for every other address."""
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query, max_num_fields=20)
    except ValueError:
        return None
    match = _DIFY_FILE.search(parts.path)
    signature = [(name, query[name][0]) for name in _SIGNATURE if query.get(name)]
    if match is None or match.end() != len(parts.path) or len(signature) < len(_SIGNATURE):
        return None
    return DifyFile(match[1], urlencode(signature))


def identity(url: str) -> str:
    """What two links to one file of Dify's share, whatever their host, name and signature are."""
    path = url.partition("?")[0]
    match = _DIFY_FILE.search(path)
    return match[1].lower() if match else path
