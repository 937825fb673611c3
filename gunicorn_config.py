"""Every number of the server, once; each has its variable. Read by Gunicorn before the
application is imported, so it imports nothing of it, and it must also run under ``exec``, where
``__file__`` does not exist.

Values that cannot be read count as not set here: the application names them all when it starts.
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
    """The CPUs that the container may use, by cgroup v2 or v1; None where nothing limits them."""
    limit = _read_words("/sys/fs/cgroup/cpu.max") or (
        _read_words("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        + _read_words("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    )
    if len(limit) == 2 and limit[0].isdigit() and limit[1].isdigit() and int(limit[1]):
        return math.ceil(int(limit[0]) / int(limit[1])) or None
    return None


def _cores() -> int:
    """The cores that this process may use; not those of the host, which containers also see."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(allowed or 1, _cpu_quota() or allowed or 1)


def plain_host(text: str) -> str:
    """SERVER_HOST as a socket takes it: an IPv6 address without the brackets that belong into a
    URL."""
    text = text.strip()
    is_in_brackets = text.startswith("[") and text.endswith("]") and ":" in text
    return text[1:-1].strip() if is_in_brackets else text


def parse_host(text: str) -> str:
    """The same, where this machine can listen there. Raises ValueError, which says what is wrong
    behind the name of the variable."""
    host = plain_host(text)
    try:
        with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except (OSError, TypeError, ValueError):  # the last two for what no name can be
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

# Flask is served synchronously, a thread a request: with more than one thread Gunicorn uses its
# threaded worker for this class, in which a stream holds its thread to the end.
worker_class = "sync"
threads = _number("GUNICORN_THREADS", 128)
# A worker accepts up to this many connections; those beyond its threads would wait behind whole
# streams while other workers have threads free. The rest is for idle kept-alive connections.
worker_connections = threads + 16
# A worker of ours takes no connection that it has no thread for, gives threads to whole requests
# only, so that it can hold many that are idle or slow, and needs none for a stream that waits for
# Dify. Without this line, the above serves.
worker_class, worker_connections = "opendify.worker.worker.Worker", threads + 1000

# Nothing that a proxy says of a request is obeyed: not its path (SCRIPT_NAME and PATH_INFO, which
# would go past rules for paths), nor its scheme, which nothing depends on.
forwarded_allow_ips, forwarder_headers = "", ""
secure_scheme_headers: dict[str, str] = {}

# With threads this is no limit on a request: it ends a worker whose main loop is stuck.
timeout = _number("GUNICORN_TIMEOUT", 60)
graceful_timeout = _number("GUNICORN_GRACEFUL_TIMEOUT", 30)
keepalive = _number("GUNICORN_KEEPALIVE", 2)

# Our worker is replaced when it has nothing to do. Gunicorn's own, at this number, accepts nothing
# until its longest stream has ended.
max_requests = _number("GUNICORN_MAX_REQUESTS", 0 if worker_class == "sync" else 2000)
max_requests_jitter = _number("GUNICORN_MAX_REQUESTS_JITTER", 100)

reload = _text("GUNICORN_RELOAD", "true" if _development else "false").lower() == "true"
preload_app = not reload  # a preloaded application is never loaded again

# Instances of one user would share the path of its socket; a read-only root has no place for it.
control_socket_disable = True

logger_class = "opendify.worker.access_log.Log"
loglevel = _text("LOG_LEVEL", "debug" if _development else "info").lower()
if loglevel == "debug" and _text("LOG_FORMAT", "text").lower() == "json":
    loglevel = "info"  # at debug Gunicorn begins with all its settings, in lines that are not JSON
# The application writes one line for each request already; these tell also of the User-Agent and
# of the page that a caller comes from.
accesslog = "-" if _text("ACCESS_LOG", "false").lower() == "true" else None
errorlog = "-"
# The guide's format, with the path in place of the request line, whose query may hold secrets.
access_log_format = (
    '%(h)s %(l)s %(u)s %(t)s "%(m)s %(U)s %(H)s" %(s)s %(b)s "%(f)s" "%(a)s" %(D)sμs'
)


def on_starting(server: object) -> None:
    """Makes the folder in which the workers count. It is the last moment before they are forked,
    and comes after the preloaded application was imported."""
    from opendify.observability.multiprocess_dir import create_dir

    _check_address()
    create_dir()


def child_exit(server: object, worker: object) -> None:
    """What an ended worker has counted stays counted."""
    from opendify.observability.dead_workers import merge_dead_workers

    merge_dead_workers()


def _check_address() -> None:
    """Names an address that is none of ours, or a port that is in use, with the remedy, before
    Gunicorn tries it five times."""
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
    """Lets Ctrl-C and SIGQUIT end a worker as SIGTERM does.

    Gunicorn 27's handler of both takes a lock that the thread it interrupts may hold, while it
    gives a request to a thread: such a worker hung until it was killed. Ctrl-C in a terminal
    reaches workers and master alike; the master then sends them SIGQUIT.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, worker.handle_exit)
