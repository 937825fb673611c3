"""Serves files generated in Dify under our own URLs.

Dify's links expire after 300 s and may point to a host that the caller cannot reach. So a file is
downloaded while its link is valid, and the response contains a link of ours. Only files of the
model's own Dify are downloaded: the URL is rebuilt on the model's base, never used as received.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO

from opendify import errors
from opendify.config.models import Model
from opendify.files import signed_links
from opendify.files.file_cache import FileCache, FileTooLarge
from opendify.files.links import (
    DifyFile,
    absolute,
    find_dify_file,
    server_root,
)
from opendify.files.media import served_type
from opendify.files.names import clean_name, extension_of, with_extension_for
from opendify.files.signed_links import LinkClaims
from opendify.files.signing_key import SigningKey
from opendify.upstream.client import DifyClient

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 64 * 1024 * 1024
FETCH_SECONDS = 15.0
_MAX_CACHED_SECONDS = 24 * 3600
_SNIFF_BYTES = 64


@dataclass(frozen=True, slots=True)
class ServedFile:
    """A file to send; the receiver must close ``file``. ``size`` is in bytes, ``is_shown`` is
    whether a browser may display it inline, ``tag`` is an ETag, ``max_age`` is in seconds."""

    file: FileIO
    size: int
    name: str
    media_type: str
    is_inline: bool
    tag: str
    max_age: int


class FileProxy:
    """``public_base`` is our address as seen by callers, empty where links stay Dify's; ``now``
    returns epoch seconds. Opens nothing before the first link."""

    def __init__(
        self,
        client: DifyClient,
        models: Mapping[str, Model],
        public_base: str,
        secret: SigningKey,
        shelf: FileCache,
        now: Callable[[], float],
    ) -> None:
        self._client = client
        self._models = models
        self._public_base = public_base
        self._signing_key = secret
        self._cache = shelf
        self._now = now

    def link(self, model: Model, url: str, name: str, kind: str) -> str:
        """The URL to show for the file at Dify's ``url``; empty where that is not a URL.

        ``kind`` is Dify's type (``image`` ...). Downloads the file within about FETCH_SECONDS;
        where that fails, returns Dify's own URL.
        """
        address = absolute(url, model.base)
        file = find_dify_file(address) if self._public_base else None
        if file is None:
            return address
        try:
            self._cache_file(model, file)
            return self._signed_link(model, file, _name(name, kind, file))
        except (errors.OpenDifyError, FileTooLarge, OSError) as exc:
            log.warning("a file keeps Dify's link model=%s reason=%s", model.name, _reason(exc))
            return address

    def open(self, token: str, signature: str) -> ServedFile:
        """The file of a link. Raises InvalidSignature, FileExpired and DifyError."""
        now = self._now()
        ticket = signed_links.verify(token, signature, self._signing_key.key(), now)
        file = self._find(ticket)
        try:
            size = file.seek(0, 2)
            file.seek(0)
            media_type, is_shown = served_type(file.read(_SNIFF_BYTES), extension_of(ticket.name))
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return ServedFile(
            file=file,
            size=size,
            name=with_extension_for(ticket.name, media_type),
            media_type=media_type,
            is_inline=is_shown,
            tag=hashlib.sha256(ticket.path.encode()).hexdigest()[:32],
            max_age=min(ticket.expires - int(now), _MAX_CACHED_SECONDS),
        )

    def _cache_file(self, model: Model, file: DifyFile) -> None:
        """Requests the file from Dify even if it is cached: only Dify can verify the signature, and
        a text may contain a forged link."""
        key = _key(model, file)
        url = f"{server_root(model.base)}/files/{file.path}?{file.query}"
        with self._client.download(model, url, FETCH_SECONDS) as pieces:
            if not self._cache.touch(key):
                self._cache.put(key, pieces, MAX_FILE_BYTES)

    def _signed_link(self, model: Model, file: DifyFile, name: str) -> str:
        ticket = LinkClaims(model.name, file.path, name, signed_links.expiry_time(self._now()))
        token, signature = signed_links.sign(ticket, self._signing_key.key())
        return f"{self._public_base}/v1/files/{token}/content?sig={signature}"

    def _find(self, ticket: LinkClaims) -> FileIO:
        model = self._models.get(ticket.model)
        file = DifyFile(ticket.path)
        if model is None:
            raise errors.FileExpired(
                "The model that generated this file is not available any more."
            )
        found = self._cache.open(_key(model, file))
        if found is None and file.upload_id and model.key:
            self._fetch_again(model, file)
            found = self._cache.open(_key(model, file))
        if found is None:
            raise errors.FileExpired("This file is not kept any more.")
        return found

    def _fetch_again(self, model: Model, file: DifyFile) -> None:
        """Downloads by the app API, which serves files of messages (Dify 1.7.2 and later)."""
        url = f"{model.base}/files/{file.upload_id}/preview"
        try:
            with self._client.download(model, url, FETCH_SECONDS, model.key) as pieces:
                self._cache.put(_key(model, file), pieces, MAX_FILE_BYTES)
        except (errors.UpstreamUnreachable, errors.UpstreamTimeout, errors.UpstreamUnavailable):
            raise
        except (errors.DifyError, FileTooLarge, OSError) as exc:
            log.warning(
                "a file cannot be fetched again model=%s reason=%s", model.name, _reason(exc)
            )


def _key(model: Model, file: DifyFile) -> str:
    identity = file.upload_id or file.path
    return hashlib.sha256(f"{server_root(model.base)}\n{identity.lower()}".encode()).hexdigest()


def _name(name: str, kind: str, file: DifyFile) -> str:
    """A file name for saving, with an extension if one is known."""
    name = clean_name(name) or clean_name(file.name) or clean_name(kind) or "file"
    extension = extension_of(file.name)
    return name if extension_of(name) or not extension else f"{name}.{extension}"


def _reason(exc: Exception) -> str:
    """The reason for the log; never a URL, which would give readers of the log the file."""
    if isinstance(exc, errors.OpenDifyError):
        return str(exc.code)
    return (exc.strerror if isinstance(exc, OSError) else None) or type(exc).__name__
