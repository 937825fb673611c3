"""OpenDify: OpenAI-style clients talk to Dify apps through this one Flask application.

The way of a request: ``web`` reads it, ``openai.requests`` checks it, ``chat`` looks up its
conversation, ``translate`` makes Dify's question of it, ``upstream.client`` sends that over the
connection pool of ``upstream.transport``, whose response ``sse`` and ``dify.payloads`` turn into
events, of which ``chat`` and ``openai.answers`` make what the caller gets. docs/architecture.md
tells more.
"""

import atexit
import logging
import os
import secrets
import sys
import time
from pathlib import Path
from typing import TypedDict

import httpx

import gunicorn_config
from opendify.api.admin import add_operator_routes
from opendify.api.app import create_app
from opendify.api.files import add_file_routes
from opendify.api.health import add_monitoring_routes
from opendify.api.middleware.auth import Authorizer, warn_if_unauthenticated
from opendify.api.middleware.cors import add_cors
from opendify.api.middleware.origins import Address, refuse_other_sites
from opendify.api.middleware.request_log import record_requests
from opendify.api.openapi import add_description
from opendify.auth.accounts import AccountRegistry
from opendify.chat.service import ChatService
from opendify.chat.turn import Services
from opendify.config.dotenv import check_certificates, load_environment, read_file
from opendify.config.proxies import proxies_for
from opendify.config.settings import ConfigError, load_settings
from opendify.conversations.admin import ConversationAdmin
from opendify.conversations.store.factory import new_conversations, new_link
from opendify.files.file_cache import FileCache
from opendify.files.signed_links import VALID_SECONDS
from opendify.files.signing_key import SigningKey
from opendify.limits.capacity import ServerCapacity, files_take_answers, max_files
from opendify.limits.concurrency import ConcurrencyLimiter
from opendify.limits.limiter import CallerLimiter
from opendify.limits.rate import RateLimiter
from opendify.observability.logs import configure_logging
from opendify.observability.metrics import LogCounter, Metrics
from opendify.observability.readiness import Readiness
from opendify.storage.data_dir import warn_if_foreign
from opendify.upstream import background_reader
from opendify.upstream.app_registry import AppRegistry
from opendify.upstream.client import DifyClient
from opendify.upstream.file_proxy import FileProxy
from opendify.upstream.tls import new_ssl_context
from opendify.upstream.transport.transport import PooledClient, PooledTransport
from opendify.upstream.uploads import Uploads


class HttpClientConfig(TypedDict):
    """How the one client to Dify is made."""

    timeout: httpx.Timeout
    limits: httpx.Limits


def _new_id() -> str:
    """A name that nobody can guess."""
    return secrets.token_hex(16)


try:
    load_environment()
    settings = load_settings(os.environ, read_file, check_certificates, gunicorn_config.parse_host)
except ConfigError as exc:
    if __name__ == "__main__":
        sys.exit(str(exc))
    raise  # Gunicorn says what it says
configure_logging(settings.log_level, settings.log_file, settings.log_format, settings.secrets())

# Every thread can have a stream open, and while it ends a run a second connection; the watcher
# reads some that callers left, and a few more ask for the rest. An idle connection makes room where
# one to another address is needed.
# Dify without nginx before it closes a connection that was idle for 2 s: one kept longer is dead.
_connections = 2 * gunicorn_config.threads + background_reader.MOST + 16
HTTP_CLIENT_CONFIG: HttpClientConfig = {
    "timeout": httpx.Timeout(60.0, connect=5.0),
    "limits": httpx.Limits(
        max_connections=_connections,
        max_keepalive_connections=_connections,
        keepalive_expiry=1.5,
    ),
}
http = PooledClient(
    PooledTransport(
        HTTP_CLIENT_CONFIG["limits"],
        proxies_for({model.base for model in settings.models.values()}, os.environ),
        new_ssl_context(settings.authorities),
    ),
    timeout=HTTP_CLIENT_CONFIG["timeout"],
    follow_redirects=False,
    trust_env=False,
)
data = Path(settings.data_folder)
link = new_link(settings.conversation_store)
conversations, turn_locks = new_conversations(
    link,
    data,
    clock=time.time,
    max_age_days=settings.mapping_max_age_days or None,
    max_entries=settings.mapping_max_entries,
)
atexit.register(conversations.close)
metrics = Metrics(len(settings.models))
logging.getLogger("opendify").addHandler(LogCounter(metrics))
client = DifyClient(
    http, settings.read_timeout, on_stop=metrics.run_stopped, max_answer=settings.max_answer
)
directory = AppRegistry(client, settings.models)
readiness = Readiness(conversations, directory)
relay = FileProxy(
    client,
    settings.models,
    settings.public_base_url,
    SigningKey(settings.secret, data),
    FileCache(data / "files", settings.file_cache_bytes, VALID_SECONDS),
    now=time.time,
)
service = ChatService(
    Services(
        client,
        directory,
        conversations,
        Uploads(client),
        turn_locks,
        relay,
        now=time.time,
        files_only_query=settings.files_only_query,
    ),
    now=time.time,
    new_id=_new_id,
)
callers = AccountRegistry(
    settings.accounts,
    settings.admin_keys,
    settings.models,
    settings.limits,
    settings.callers_bring_dify_key,
)
warn_if_foreign(data)
warn_if_unauthenticated(callers, settings.reachable_host)
access = Authorizer(
    callers,
    CallerLimiter(
        RateLimiter(link, gunicorn_config.workers),
        ConcurrencyLimiter(link, gunicorn_config.workers),
    ),
)
capacity = ServerCapacity(
    settings.max_concurrent_streams,
    {name: model.max_streams for name, model in settings.models.items() if model.max_streams},
    max_files(gunicorn_config.threads, settings.max_concurrent_streams),
    files_take_answers(gunicorn_config.threads, settings.max_concurrent_streams),
)
app = create_app(
    service,
    directory,
    access,
    settings.max_body_bytes,
    capacity,
    now=time.time,
    max_text_bytes=settings.max_text_bytes,
    user_secret=settings.openwebui_jwt_secret,
)
refuse_other_sites(
    app,
    access,
    Address(settings.reachable_host, settings.public_base_url, settings.cors_origins),
)
add_cors(app, settings.cors_origins)
add_description(app)
add_operator_routes(
    app,
    ConversationAdmin(conversations, settings.models, client, now=time.time),
    access,
)
add_file_routes(app, relay, capacity)
add_monitoring_routes(app, readiness, metrics, access)
record_requests(app, metrics, settings.models, new_id=_new_id)

if __name__ == "__main__":
    log = logging.getLogger("opendify")
    log.info("Listening at http://%s:%d, for debugging", settings.server_host, settings.server_port)
    app.run(settings.server_host, settings.server_port, threaded=True)
