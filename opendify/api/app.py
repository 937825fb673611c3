"""The Flask application, with the surfaces that callers use."""

from collections.abc import Callable
from typing import Any

from flask import Flask

from opendify.api.chat_completions import add_chat_completions
from opendify.api.middleware.auth import Authorizer, require_api_key
from opendify.api.middleware.error_handlers import add_error_handlers
from opendify.api.middleware.paths import PlainPaths
from opendify.api.models import add_model_routes
from opendify.api.resources import own_resources
from opendify.api.responder import Responder
from opendify.chat.service import ChatService
from opendify.limits.capacity import ServerCapacity
from opendify.upstream.app_registry import AppRegistry


def create_app(
    service: ChatService,
    directory: AppRegistry,
    access: Authorizer,
    max_body_bytes: int,
    capacity: ServerCapacity,
    now: Callable[[], float],
    max_text_bytes: int,
    user_secret: str = "",
) -> Flask:
    """The application. ``max_text_bytes`` limits a body without the content of files.
    ``now`` gives epoch seconds; where there is a ``user_secret``, only people
    are served for whom Open WebUI vouches with it. Nothing is opened before the first
    request. The routes of other rooms are added to it."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # by a redirect; PlainPaths needs none
    app.wsgi_app = PlainPaths(app.wsgi_app)  # type: ignore[method-assign]
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.config["MAX_TEXT_BYTES"] = max_text_bytes
    app.config["MAX_CONCURRENT_STREAMS"] = capacity.max_answers
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.ensure_sync = _as_it_is  # type: ignore[method-assign]
    own_resources(app)
    require_api_key(app, access)
    responder = Responder(service, access, capacity, user_secret, now)
    add_chat_completions(app, responder)
    add_model_routes(app, directory, access)
    add_error_handlers(app, access)
    return app


def _as_it_is(func: Callable[..., Any]) -> Callable[..., Any]:
    """None of ours is asynchronous, for which Flask looks at each of them for each request."""
    return func
