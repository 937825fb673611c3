"""Files that Dify made, given to callers under an address of our own.

Dify's links die after 300 s and may lead to a host that the caller cannot reach. So a file is
fetched while its link lives, and a link of ours stands in the answer. Fetched is only what is a
file of the model's own Dify: its address is built anew on the model's base, never taken over.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO

from opendify import errors
from opendify.config.models import Model
from opendify.files import signed_links
from opendify.files.file_cache import DoesNotFit, FileCache
from opendify.files.links import (
    DifyFile,
    absolute,
    find_dify_file,
    root,
)
from opendify.files.media import served_type
from opendify.files.names import clean_name, extension_of, name_as
from opendify.files.signed_links import Ticket
from opendify.files.signing_key import SigningKey
from opendify.upstream.client import DifyClient

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 64 * 1024 * 1024
FETCH_SECONDS = 15.0
_MAX_CACHED_SECONDS = 24 * 3600
_PROBE = 64


@dataclass(frozen=True, slots=True)
class Served:
    """A file to send; whoever gets one closes ``file``. ``is_shown`` is whether a browser may
    show it in its place, ``tag`` is another for another content, ``max_age`` is in seconds."""

    file: FileIO
    size: int
    name: str
    media_type: str
    is_shown: bool
    tag: str
    max_age: int


class FileProxy:
    """``public_base`` is our address as callers know it, empty where links stay Dify's; ``now``
    gives epoch seconds. Nothing is opened before the first link."""

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
        self._secret = secret
        self._shelf = shelf
        self._now = now

    def link(self, model: Model, url: str, name: str, kind: str) -> str:
        """The address to show for a file that Dify names by ``url``; empty where that is none.

        ``kind`` is Dify's word (``image`` ...). Fetches the file, for about FETCH_SECONDS at
        most, and where that fails gives Dify's own address, which is better than none.
        """
        address = absolute(url, model.base)
        file = find_dify_file(address) if self._public_base else None
        if file is None:
            return address
        try:
            self._keep(model, file)
            return self._sealed(model, file, _name(name, kind, file))
        except (errors.OpenDifyError, DoesNotFit, OSError) as exc:
            log.warning("a file keeps Dify's link model=%s reason=%s", model.name, _reason(exc))
            return address

    def open(self, token: str, signature: str) -> Served:
        """The file behind a link. Raises LinkRefused, FileGone and DifyError."""
        now = self._now()
        ticket = signed_links.verify(token, signature, self._secret.key(), now)
        file = self._find(ticket)
        try:
            size = file.seek(0, 2)
            file.seek(0)
            media_type, is_shown = served_type(file.read(_PROBE), extension_of(ticket.name))
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return Served(
            file=file,
            size=size,
            name=name_as(ticket.name, media_type),
            media_type=media_type,
            is_shown=is_shown,
            tag=hashlib.sha256(ticket.path.encode()).hexdigest()[:32],
            max_age=min(ticket.expires - int(now), _MAX_CACHED_SECONDS),
        )

    def _keep(self, model: Model, file: DifyFile) -> None:
        """Dify is asked also for a file that is kept: its yes proves the signature, and a text
        may hold a link that somebody made up."""
        key = _key(model, file)
        url = f"{root(model.base)}/files/{file.path}?{file.query}"
        with self._client.download(model, url, FETCH_SECONDS) as pieces:
            if not self._shelf.renew(key):
                self._shelf.put(key, pieces, MAX_FILE_BYTES)

    def _sealed(self, model: Model, file: DifyFile, name: str) -> str:
        ticket = Ticket(model.name, file.path, name, signed_links.expiry(self._now()))
        token, signature = signed_links.sign(ticket, self._secret.key())
        return f"{self._public_base}/v1/files/{token}/content?sig={signature}"

    def _find(self, ticket: Ticket) -> FileIO:
        model = self._models.get(ticket.model)
        file = DifyFile(ticket.path)
        if model is None:
            raise errors.FileExpired("The model that made this file is not served any more.")
        found = self._shelf.open(_key(model, file))
        if found is None and file.upload_id and model.key:
            self._fetch_again(model, file)
            found = self._shelf.open(_key(model, file))
        if found is None:
            raise errors.FileExpired("This file is not kept any more.")
        return found

    def _fetch_again(self, model: Model, file: DifyFile) -> None:
        """By the app's API, which gives out files of messages (Dify 1.7.2 and later)."""
        url = f"{model.base}/files/{file.upload_id}/preview"
        try:
            with self._client.download(model, url, FETCH_SECONDS, model.key) as pieces:
                self._shelf.put(_key(model, file), pieces, MAX_FILE_BYTES)
        except (errors.UpstreamUnreachable, errors.UpstreamTimeout, errors.UpstreamUnavailable):
            raise
        except (errors.DifyError, DoesNotFit, OSError) as exc:
            log.warning("a file cannot be had again model=%s reason=%s", model.name, _reason(exc))


def _key(model: Model, file: DifyFile) -> str:
    identity = file.upload_id or file.path
    return hashlib.sha256(f"{root(model.base)}\n{identity.lower()}".encode()).hexdigest()


def _name(name: str, kind: str, file: DifyFile) -> str:
    """A name to save it under, with an extension where anything tells one."""
    name = clean_name(name) or clean_name(file.name) or clean_name(kind) or "file"
    extension = extension_of(file.name)
    return name if extension_of(name) or not extension else f"{name}.{extension}"


def _reason(exc: Exception) -> str:
    """For the log; never an address, which would open the file to whoever reads it."""
    if isinstance(exc, errors.OpenDifyError):
        return str(exc.code)
    return (exc.strerror if isinstance(exc, OSError) else None) or type(exc).__name__
