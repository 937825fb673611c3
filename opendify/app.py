"""Builds the application: creates the services and registers every route and middleware.

``main.py`` and the tests both call ``create_app``; nothing else connects the modules.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import httpx
from flask import Flask

from opendify.api.admin import add_admin_routes
from opendify.api.chat_completions import add_chat_completions
from opendify.api.completions import add_completions
from opendify.api.dialect import name_anthropic_requests
from opendify.api.files import add_file_routes
from opendify.api.health import add_health_routes
from opendify.api.messages import add_messages
from opendify.api.middleware.auth import Authorizer, require_api_key, warn_if_unauthenticated
from opendify.api.middleware.cors import add_cors
from opendify.api.middleware.error_handlers import add_error_handlers
from opendify.api.middleware.origins import ServiceAddress, reject_cross_site_requests
from opendify.api.middleware.paths import NormalizePaths
from opendify.api.middleware.request_log import record_requests
from opendify.api.models import add_model_routes
from opendify.api.openapi import add_openapi_route
from opendify.api.resources import track_resources
from opendify.api.responder import Responder
from opendify.auth.accounts import AccountRegistry
from opendify.chat.context import Services
from opendify.chat.service import ChatService
from opendify.config.proxies import proxies_for
from opendify.config.settings import Settings
from opendify.conversations.admin import ConversationAdmin
from opendify.conversations.processes import ProcessRegistry
from opendify.conversations.store.base import ConversationStore
from opendify.conversations.store.factory import new_redis_connection, new_store_and_locks
from opendify.files.file_cache import FileCache
from opendify.files.signed_links import VALID_SECONDS
from opendify.files.signing_key import SigningKey
from opendify.limits.capacity import ServerCapacity, files_count_as_responses, max_files
from opendify.limits.concurrency import ConcurrencyLimiter
from opendify.limits.limiter import CallerLimiter
from opendify.limits.rate import RateLimiter
from opendify.observability.metrics import LogCounter, Metrics
from opendify.observability.readiness import Readiness
from opendify.storage.data_dir import warn_if_not_owner
from opendify.storage.redis_connection import RedisConnection
from opendify.upstream.app_registry import AppRegistry
from opendify.upstream.client import DifyClient
from opendify.upstream.file_proxy import FileProxy
from opendify.upstream.shared_apps import SharedApps
from opendify.upstream.tls import new_ssl_context
from opendify.upstream.transport.transport import PooledClient, PooledTransport
from opendify.upstream.uploads import Uploads

_LOGGER = logging.getLogger("opendify")

# How long a worker that knows nothing of the apps waits for Dify before it serves.
_PREPARATION_SECONDS = 1.0


class HttpClientConfig(TypedDict):
    """Timeouts and connection limits of the HTTP client for Dify."""

    timeout: httpx.Timeout
    limits: httpx.Limits


@dataclass(frozen=True, slots=True)
class Components:
    """The services of one application, each created once; in ``app.extensions["opendify"]``.

    ``log_counter`` is the handler that counts log messages on the logger ``opendify``, and
    ``owns_store`` is false where ``conversations`` was passed to ``create_app``.
    """

    client: DifyClient
    registry: AppRegistry
    conversations: ConversationStore
    file_proxy: FileProxy
    chat: ChatService
    authorizer: Authorizer
    capacity: ServerCapacity
    metrics: Metrics
    log_counter: LogCounter
    owns_store: bool

    def close(self, patience: float = 0.0) -> None:
        """Writes and closes the conversation store and ends the background thread of the app
        registry, waiting up to ``patience`` seconds for a lookup in progress.

        The HTTP client and a store that were passed to ``create_app`` stay open.
        """
        _LOGGER.removeHandler(self.log_counter)
        if self.owns_store:
            self.conversations.close()
        self.registry.close(patience)


def _random_id() -> str:
    return secrets.token_hex(16)


def new_http_client(
    settings: Settings, environ: Mapping[str, str], config: HttpClientConfig
) -> PooledClient:
    """The HTTP client for Dify. ``environ`` is read for HTTP_PROXY and the like. Opens no
    connection.

    Raises OSError and ssl.SSLError where SSL_CERT_FILE is unreadable.
    """
    bases = {model.base for model in settings.models.values()}
    transport = PooledTransport(
        config["limits"], proxies_for(bases, environ), new_ssl_context(settings.ca_certificates)
    )
    return PooledClient(
        transport, timeout=config["timeout"], follow_redirects=False, trust_env=False
    )


def create_app(
    settings: Settings,
    http: PooledClient,
    *,
    workers: int,
    threads: int,
    clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = _random_id,
    store: ConversationStore | None = None,
) -> Flask:
    """The application with all its routes. Opens no file, socket or thread before the first
    request, so that Gunicorn can fork afterwards.

    ``workers`` processes with ``threads`` threads each serve it: they share the limits of callers
    where no Redis counts them, and bound the number of concurrent files. ``clock`` gives epoch
    seconds; ``new_id`` gives unguessable ids of requests and responses; ``store`` takes the place
    of the conversation store that ``settings`` describe. Whoever calls this closes
    ``app.extensions["opendify"]`` (see ``Components``), and afterwards ``http`` and ``store``.
    """
    components = _create_components(settings, http, workers, threads, clock, new_id, store)
    app = _new_flask(settings, components.authorizer)
    app.extensions["opendify"] = components
    app.config["BEFORE_SERVING"] = lambda: components.registry.prepare(_PREPARATION_SECONDS)
    _add_routes(app, settings, components, clock)
    record_requests(app, components.metrics, settings.models, new_id)  # outermost: counts all
    _LOGGER.addHandler(components.log_counter)
    return app


def _create_components(
    settings: Settings,
    http: PooledClient,
    workers: int,
    threads: int,
    clock: Callable[[], float],
    new_id: Callable[[], str],
    store: ConversationStore | None,
) -> Components:
    data = Path(settings.data_dir)
    redis = new_redis_connection(settings.conversation_store)
    own_store, locks = new_store_and_locks(
        redis,
        data,
        clock=clock,
        max_age_days=settings.mapping_max_age_days or None,
        max_entries=settings.mapping_max_entries,
    )
    conversations = own_store if store is None else store
    metrics = Metrics(len(settings.models))
    client = DifyClient(
        http,
        settings.read_timeout,
        on_stop=metrics.run_stopped,
        max_answer=settings.max_answer_chars,
    )
    registry = AppRegistry(client, settings.models, SharedApps(data, clock))
    file_proxy = _new_file_proxy(settings, client, data, clock)
    services = Services(
        client,
        registry,
        conversations,
        Uploads(client),
        ProcessRegistry(locks),
        file_proxy,
        now=clock,
        files_only_query=settings.files_only_query,
    )
    warn_if_not_owner(data)
    return Components(
        client=client,
        registry=registry,
        conversations=conversations,
        file_proxy=file_proxy,
        chat=ChatService(services, clock, new_id, settings.default_model),
        authorizer=_new_authorizer(settings, redis, workers),
        capacity=_new_capacity(settings, threads),
        metrics=metrics,
        log_counter=LogCounter(metrics),
        owns_store=store is None,
    )


def _new_file_proxy(
    settings: Settings, client: DifyClient, data: Path, clock: Callable[[], float]
) -> FileProxy:
    return FileProxy(
        client,
        settings.models,
        settings.public_base_url,
        SigningKey(settings.secret, data),
        FileCache(data / "files", settings.file_cache_bytes, VALID_SECONDS, clock),
        now=clock,
    )


def _new_authorizer(settings: Settings, redis: RedisConnection | None, workers: int) -> Authorizer:
    accounts = AccountRegistry(
        settings.accounts,
        settings.admin_keys,
        settings.models,
        settings.limits,
        settings.key_passthrough,
    )
    warn_if_unauthenticated(accounts, settings.reachable_host)
    limiter = CallerLimiter(RateLimiter(redis, workers), ConcurrencyLimiter(redis, workers))
    return Authorizer(accounts, limiter)


def _new_capacity(settings: Settings, threads: int) -> ServerCapacity:
    max_responses = settings.max_concurrent_streams
    return ServerCapacity(
        max_responses,
        {name: model.max_streams for name, model in settings.models.items() if model.max_streams},
        max_files(threads, max_responses),
        files_count_as_responses(threads, max_responses),
    )


def _new_flask(settings: Settings, authorizer: Authorizer) -> Flask:
    """The Flask application with what holds for every route, and no route yet."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # it would redirect; NormalizePaths does not
    app.wsgi_app = NormalizePaths(app.wsgi_app)  # type: ignore[method-assign]
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["MAX_TEXT_BYTES"] = settings.max_text_bytes
    app.config["MAX_CONCURRENT_STREAMS"] = settings.max_concurrent_streams
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.ensure_sync = _unchanged  # type: ignore[method-assign]
    track_resources(app)
    require_api_key(app, authorizer)
    address = ServiceAddress(
        settings.reachable_host, settings.public_base_url, settings.cors_origins
    )
    reject_cross_site_requests(app, authorizer, address)
    add_cors(app, settings.cors_origins)
    add_error_handlers(app, authorizer)
    name_anthropic_requests(app)
    return app


def _add_routes(
    app: Flask, settings: Settings, components: Components, clock: Callable[[], float]
) -> None:
    authorizer, capacity = components.authorizer, components.capacity
    responder = Responder(
        components.chat,
        authorizer,
        capacity,
        settings.id_headers,
        settings.openwebui_jwt_secret,
        clock,
    )
    add_chat_completions(app, responder)
    add_completions(app, responder)
    add_messages(app, responder)
    add_model_routes(app, components.registry, authorizer)
    add_file_routes(app, components.file_proxy, capacity)
    administration = ConversationAdmin(
        components.conversations, settings.models, components.client, now=clock
    )
    add_admin_routes(app, administration, authorizer)
    readiness = Readiness(components.conversations, components.registry)
    add_health_routes(app, readiness, components.metrics, authorizer)
    add_openapi_route(app)


def _unchanged(func: Callable[..., Any]) -> Callable[..., Any]:
    """Replaces Flask's check of every view, at every request, for being asynchronous: none is."""
    return func
