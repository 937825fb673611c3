"""The icon of an app, fetched from Dify."""

import logging

from opendify import errors
from opendify.config.models import Model
from opendify.dify.apps import AppIcon
from opendify.files.icons import MAX_ICON_BYTES, emoji_icon, image_icon
from opendify.files.links import absolute, find_dify_file, server_root
from opendify.upstream.client import DifyClient

log = logging.getLogger(__name__)

ICON_SECONDS = 5.0


def fetch_icon(client: DifyClient, model: Model, icon: AppIcon) -> str:
    """The icon as a ``data:`` URL, empty where there is none that can be shown.

    An image is only ever fetched from the model's own Dify: its address is rebuilt on the model's
    base. Raises UpstreamUnreachable and UpstreamTimeout.
    """
    if not icon.image_url:
        return emoji_icon(icon.emoji, icon.background)
    file = find_dify_file(absolute(icon.image_url, model.base))
    if file is None:
        return ""
    data = bytearray()
    try:
        url = f"{server_root(model.base)}/files/{file.path}?{file.query}"
        with client.download(model, url, ICON_SECONDS) as pieces:
            for piece in pieces:
                data += piece
                if len(data) > MAX_ICON_BYTES:
                    break
    except (errors.UpstreamUnreachable, errors.UpstreamTimeout):
        raise
    except errors.OpenDifyError as exc:
        log.info("the icon of an app cannot be fetched model=%s code=%s", model.name, exc.code)
        return ""
    if not (shown := image_icon(bytes(data))):
        log.info(
            "the icon of an app is not shown model=%s: it must be a PNG, JPEG, GIF or WebP "
            "of %d kB at most",
            model.name,
            MAX_ICON_BYTES // 1024,
        )
    return shown
