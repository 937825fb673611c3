"""Addresses of Dify's files: absolute, in markdown, and their identity. No I/O."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlencode, urlsplit

MAX_SHOWN_NAME = 200

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
# UUIDs in all known releases; Dify decides whether the file exists.
_ID = r"[\w-]{1,64}"
_DIFY_FILE = re.compile(
    rf"/files/(tools/{_ID}\.[a-z0-9]{{1,16}}|{_ID}/(?:file|image)-preview)",
    re.IGNORECASE | re.ASCII,
)
_SIGNATURE_PARAMETERS = ("timestamp", "nonce", "sign")
_SAFE_IN_MARKDOWN = "%/:=&?~#+!$,;@[]'*"
_MARKDOWN_SPECIAL = re.compile(r"([\\\[\]<>`*])")


@dataclass(frozen=True, slots=True)
class DifyFile:
    """A file as identified by Dify's signed links.

    ``path`` is the part after ``/files/``: ``tools/<id>.png`` for files made by tools or models,
    ``<id>/file-preview`` for uploads. ``query`` is the signature, which does not cover the host and
    is valid for 300 s (FILES_ACCESS_TIMEOUT).
    """

    path: str
    query: str = ""

    @property
    def upload_id(self) -> str:
        """The id of an upload, under which the app's API serves it again; empty for a tool's
        file."""
        first = self.path.partition("/")[0]
        return "" if first == "tools" else first

    @property
    def name(self) -> str:
        """The fallback name of the file; empty for an upload."""
        return "" if self.upload_id else self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class FileLink:
    """A file that an answer links to: its Dify address, its name (may be empty) and Dify's file
    type (``image``, ``document`` ...)."""

    url: str
    name: str
    kind: str

    @property
    def shown_name(self) -> str:
        """The display name."""
        return self.name or self.url.partition("?")[0].rpartition("/")[2]


def server_root(base: str) -> str:
    """The base of Dify's own links: the API base without ``/v1``."""
    return base.removesuffix("/v1")


def absolute(url: str, base: str) -> str:
    """The absolute address of a file from Dify; its links are relative without FILES_URL.

    Empty for other schemes, such as ``javascript:``.
    """
    url = url.strip()
    if url.lower().startswith(("http://", "https://")):
        return url
    if not url or _SCHEME.match(url):
        return ""
    return f"{server_root(base)}/{url.removeprefix('/')}"


def to_markdown(name: str, url: str, is_image: bool) -> str:
    """A file as markdown: an image, a link, or only its name if ``url`` is empty."""
    shown = " ".join(name.split())[:MAX_SHOWN_NAME] or ("image" if is_image else "file")
    shown = _MARKDOWN_SPECIAL.sub(r"\\\1", shown)
    if not url:
        return shown
    return f"{'!' if is_image else ''}[{shown}]({escape_for_markdown(url)})"


def escape_for_markdown(url: str) -> str:
    """Escapes an address so that it cannot end the link or the line in markdown."""
    return quote(url, safe=_SAFE_IN_MARKDOWN, errors="replace")


def find_dify_file(url: str) -> DifyFile | None:
    """The Dify file of a signed link; None for any other address."""
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query, max_num_fields=20)
    except ValueError:
        return None
    match = _DIFY_FILE.search(parts.path)
    signature = [(name, query[name][0]) for name in _SIGNATURE_PARAMETERS if query.get(name)]
    if (
        match is None
        or match.end() != len(parts.path)
        or len(signature) < len(_SIGNATURE_PARAMETERS)
    ):
        return None
    return DifyFile(match[1], urlencode(signature))


def file_identity(url: str) -> str:
    """The part that all links to one Dify file share, whatever their host, name and signature."""
    path = url.partition("?")[0]
    match = _DIFY_FILE.search(path)
    return match[1].lower() if match else path
