"""The settings of the server; each has its environment variable. Gunicorn executes this file before
it imports the application, so it must not import any of it at module level. It must also run under
``exec``, where ``__file__`` does not exist.

Invalid values are treated as not set: the application reports all of them when it starts.
"""

import errno
import math
import os
import re
import signal
import socket
import sys
from typing import Any

from dotenv import dotenv_values

try:
    _dotenv = dotenv_values(".env", interpolate=False)
except (OSError, UnicodeError):
    _dotenv = {}

for _name, _found in _dotenv.items():
    if _found is not None:
        os.environ.setdefault(_name, _found)


def _text(name: str, default: str) -> str:
    value = os.environ.get(name, "").strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1].strip()  # docker run --env-file leaves the quotes on
    return value or default


def _number(name: str, default: int) -> int:
    value = _text(name, "")
    return int(value) if re.fullmatch("[0-9]{1,18}", value) else default


def _read_words(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except OSError:
        return []


def _cpu_quota() -> int | None:
    """The CPU limit of the container (cgroup v2 or v1), in CPUs; None if there is none."""
    limit = _read_words("/sys/fs/cgroup/cpu.max") or (
        _read_words("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        + _read_words("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    )
    if len(limit) == 2 and limit[0].isdigit() and limit[1].isdigit() and int(limit[1]):
        return math.ceil(int(limit[0]) / int(limit[1])) or None
    return None


def _cores() -> int:
    """The cores that this process may use. In a container that is less than the host's cores."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(allowed or 1, _cpu_quota() or allowed or 1)


def plain_host(text: str) -> str:
    """SERVER_HOST in the form that sockets take: IPv6 addresses without the brackets of URLs."""
    text = text.strip()
    is_in_brackets = text.startswith("[") and text.endswith("]") and ":" in text
    return text[1:-1].strip() if is_in_brackets else text


def parse_host(text: str) -> str:
    """Like ``plain_host``, and checks that this machine can listen there. Raises ValueError; its
    message follows the name of the variable."""
    host = plain_host(text)
    try:
        with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except (OSError, TypeError, ValueError):  # the last two: invalid host names
        raise ValueError(
            f"must be an address or a name of this machine ({host[:100]!r} is neither), without "
            "http:// and without a port (set SERVER_PORT). Use 127.0.0.1 for callers on this "
            "machine only, 0.0.0.0 for all, :: for all with IPv6"
        ) from None
    return host


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


_development = _text("ENVIRONMENT", "production").lower() == "development"
_host = plain_host(_text("SERVER_HOST", "0.0.0.0"))
_port = _number("SERVER_PORT", 5000)

bind = f"[{_host}]:{_port}" if ":" in _host else f"{_host}:{_port}"
workers = _number("GUNICORN_WORKERS", 1 if _development else _cores() * 2 + 1)

# Flask is synchronous, one thread per request. With more than one thread Gunicorn uses its threaded
# worker for this class, where a stream occupies its thread until it ends.
worker_class = "sync"
threads = _number("GUNICORN_THREADS", 128)
# A worker accepts this many connections. Connections beyond its threads would wait for streams to
# end while other workers have free threads; the margin is for idle keep-alive connections.
worker_connections = threads + 16
# OpenDify's worker accepts no connection that it has no thread for, gives threads to complete
# requests only, so that it can hold many idle or slow connections, and needs no thread for a stream
# that waits for Dify. Without this line, the settings above apply.
worker_class, worker_connections = "opendify.worker.worker.Worker", threads + 1000

# Ignore what proxy headers say about a request: neither its path (SCRIPT_NAME and PATH_INFO, which
# could bypass rules for paths) nor its scheme, which nothing depends on.
forwarded_allow_ips, forwarder_headers = "", ""
secure_scheme_headers: dict[str, str] = {}

# With threads this does not limit a request: it ends a worker whose main loop is stuck.
timeout = _number("GUNICORN_TIMEOUT", 60)
graceful_timeout = _number("GUNICORN_GRACEFUL_TIMEOUT", 30)
keepalive = _number("GUNICORN_KEEPALIVE", 2)

# OpenDify's worker is replaced when it is idle. Gunicorn's worker, at this number of requests,
# accepts no connections until its longest stream has ended.
max_requests = _number("GUNICORN_MAX_REQUESTS", 0 if worker_class == "sync" else 2000)
max_requests_jitter = _number("GUNICORN_MAX_REQUESTS_JITTER", 100)

reload = _text("GUNICORN_RELOAD", "true" if _development else "false").lower() == "true"
preload_app = not reload  # a preloaded application is never reloaded

# Several instances of one user would share the socket path, and a read-only root file system cannot
# hold it.
control_socket_disable = True

logger_class = "opendify.worker.access_log.Log"
loglevel = _text("LOG_LEVEL", "debug" if _development else "info").lower()
if loglevel == "debug" and _text("LOG_FORMAT", "text").lower() == "json":
    loglevel = "info"  # at debug, Gunicorn logs all its settings, not as JSON
# The application logs one line per request already; these also contain User-Agent and Referer.
accesslog = "-" if _text("ACCESS_LOG", "false").lower() == "true" else None
errorlog = "-"
# Gunicorn's default format with the path in place of the request line, whose query may contain
# secrets.
access_log_format = (
    '%(h)s %(l)s %(u)s %(t)s "%(m)s %(U)s %(H)s" %(s)s %(b)s "%(f)s" "%(a)s" %(D)sμs'
)


def on_starting(server: object) -> None:
    """Creates the directory for the workers' metrics: after the preloaded application has been
    imported, and just before the workers are forked."""
    from opendify.observability.multiprocess_dir import create_dir

    _check_address()
    create_dir()


def child_exit(server: object, worker: object) -> None:
    """Preserves the counts of a worker that has exited."""
    from opendify.observability.dead_workers import merge_dead_workers

    merge_dead_workers()


def _check_address() -> None:
    """Exits with advice if the address is not local or the port is in use; Gunicorn itself would
    retry five times first."""
    if "GUNICORN_FD" in os.environ or "LISTEN_FDS" in os.environ:
        return
    try:
        parse_host(_host)
    except ValueError as exc:
        sys.exit(f"SERVER_HOST {exc}.")
    with socket.socket(_family(_host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_host, _port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                sys.exit(
                    f"Port {_port} is in use. Stop what uses it, or choose another: "
                    f"SERVER_PORT={_port + 1}"
                )


def post_worker_init(worker: Any) -> None:
    """Makes Ctrl-C and SIGQUIT end a worker as SIGTERM does.

    Gunicorn 27's handler for both takes a lock that the interrupted thread may hold while it hands
    a request to a thread; such a worker hung until it was killed. Ctrl-C in a terminal reaches the
    workers and the master; the master then sends SIGQUIT to the workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, worker.handle_exit)
