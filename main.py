"""OpenDify as a server runs it: ``main:app`` for Gunicorn, ``python main.py`` for debugging.

Reads the settings from the environment and from ``.env``; ``opendify.app`` builds the application
of them.
"""

import atexit
import logging
import os
import sys

import httpx

import gunicorn_config
from opendify.app import HttpClientConfig, create_app, new_http_client
from opendify.config.dotenv import check_certificates, load_environment, read_file
from opendify.config.settings import ConfigError, load_settings
from opendify.observability.logs import configure_logging
from opendify.upstream import background_reader

# Each thread can have a stream open, and a second connection while it ends a run; the background
# reader reads the streams that callers have left; the rest is for other calls. An idle connection
# makes room where one to another address is needed.
_max_connections = 2 * gunicorn_config.threads + background_reader.MAX_PENDING + 16
HTTP_CLIENT_CONFIG: HttpClientConfig = {
    "timeout": httpx.Timeout(60.0, connect=5.0),
    "limits": httpx.Limits(
        max_connections=_max_connections,
        max_keepalive_connections=_max_connections,
        keepalive_expiry=1.5,  # Dify without nginx closes a connection that was idle for 2 s
    ),
}

try:
    load_environment()
    settings = load_settings(os.environ, read_file, check_certificates, gunicorn_config.parse_host)
except ConfigError as exc:
    if __name__ == "__main__":
        sys.exit(str(exc))
    raise  # Gunicorn prints its message
configure_logging(settings.log_level, settings.log_file, settings.log_format, settings.secrets())

app = create_app(
    settings,
    new_http_client(settings, os.environ, HTTP_CLIENT_CONFIG),
    workers=gunicorn_config.workers,
    threads=gunicorn_config.threads,
)
atexit.register(app.extensions["opendify"].close)

if __name__ == "__main__":
    log = logging.getLogger("opendify")
    log.info("Listening at http://%s:%d, for debugging", settings.server_host, settings.server_port)
    app.run(settings.server_host, settings.server_port, threaded=True)
