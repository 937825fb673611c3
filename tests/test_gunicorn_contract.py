"""What the worker relies on in Gunicorn, item by item: names, signatures and behaviour.

Gunicorn documents none of it. Each failure says what changed, who uses it, and what to do.
Gunicorn is imported by the cases, not at the top: a name that is gone fails its own case only.
"""

import ast
import errno
import importlib
import inspect
import io
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from typing import Any, NoReturn

import gunicorn
import pytest

import gunicorn_config
from tests.support.service import ROOT

WORKER = ROOT / "opendify" / "worker"
API = WORKER / "gunicorn_api.py"
ADVICE = (
    "Adapt it, and check what docs/decisions/0005-our-own-worker.md says about it; until then, pin "
    "gunicorn<{version} in requirements.txt."
)


def broken(what: str, use: str) -> NoReturn:
    version = gunicorn.__version__
    advice = ADVICE.format(version=version)
    pytest.fail(f"Gunicorn {version}: {what}. It is needed {use}. {advice}", pytrace=False)


def find(path: str, use: str) -> Any:
    """The object at "module:qualified.name"."""
    module, _, name = path.partition(":")
    try:
        return reduce(getattr, name.split("."), importlib.import_module(f"gunicorn.{module}"))
    except (ImportError, AttributeError):
        owner, _, last = name.rpartition(".")
        broken(f"{owner or module} has no {last} any more", use)


THREAD_WORKER = "workers.gthread:ThreadWorker"

# Names that gunicorn_api.py imports, and what for.
NAMES = {
    "config:Config": "by the worker and its tests, for settings by name",
    "glogging:Logger": "in access_log.py, as the base class of the logger",
    "http.body:Body": "in request_buffer.py, as the WSGI input of a collected body",
    "http.body:LengthReader": "in request_buffer.py, to read a collected body",
    "http.message:Request": "in head.py, as the parser of a request head",
    "http.unreader:IterUnreader": "in head.py, to parse a head from bytes",
    "http.unreader:Unreader": "in request_buffer.py, to read a collected body",
    "http.wsgi:Response": "in response_driver.py, to frame and send a response",
    "http.wsgi:create": "in response_driver.py, to make the WSGI environment",
    "http.wsgi:default_environ": "in worker.py, to log a request that failed",
    "workers.gthread:TConn": "in connection.py, as the base class of a connection",
    "workers.gthread:ThreadWorker": "in worker.py, as the base class of the worker",
    **{
        f"http.errors:{name}": "in opendify/worker, for the status of an error response"
        for name in (
            "ConfigurationProblem",
            "ExpectationFailed",
            "ForbiddenProxyRequest",
            "InvalidChunkSize",
            "InvalidHeader",
            "InvalidRequestLine",
            "InvalidResponseHeader",
            "InvalidResponseHeaderName",
            "LimitRequestHeaders",
            "LimitRequestLine",
            "NoMoreData",
            "ParseException",
            "UnsupportedTransferCoding",
        )
    },
}

# Functions and methods with their parameters ("self" and "cls" excluded).
OVERRIDDEN = "by opendify/worker, which overrides it"
CALLED = "by opendify/worker, which calls it"
SIGNATURES = {
    f"{THREAD_WORKER}.__init__": ("*args **kwargs", OVERRIDDEN),
    "workers.base:Worker.__init__": ("age ppid sockets app timeout cfg log", "in Worker.__new__"),
    f"{THREAD_WORKER}.check_config": ("cfg log", OVERRIDDEN),
    f"{THREAD_WORKER}.init_process": ("", OVERRIDDEN),
    f"{THREAD_WORKER}.get_thread_pool": ("", OVERRIDDEN),
    f"{THREAD_WORKER}.load_wsgi": ("", OVERRIDDEN),
    f"{THREAD_WORKER}.handle_exit": ("sig frame", OVERRIDDEN + " and is its SIGQUIT handler"),
    f"{THREAD_WORKER}.run": ("", OVERRIDDEN),
    f"{THREAD_WORKER}.accept": ("listener", OVERRIDDEN),
    f"{THREAD_WORKER}.finish_request": ("conn fs", OVERRIDDEN),
    f"{THREAD_WORKER}.handle_request": ("req conn", OVERRIDDEN),
    f"{THREAD_WORKER}._keepalive_after": ("conn keepalive", OVERRIDDEN),
    f"{THREAD_WORKER}.handle_error": ("req client addr exc", OVERRIDDEN),
    f"{THREAD_WORKER}.handle": ("conn", "in a thread, for each request that the worker enqueues"),
    f"{THREAD_WORKER}.enqueue_req": ("conn", CALLED),
    f"{THREAD_WORKER}.is_parent_alive": ("", CALLED),
    f"{THREAD_WORKER}.notify": ("", CALLED),
    f"{THREAD_WORKER}.set_accept_enabled": ("enabled", CALLED),
    f"{THREAD_WORKER}.wait_for_and_dispatch_events": ("timeout", CALLED),
    "workers.gthread:PollableMethodQueue.close": ("", CALLED),
    "workers.gthread:PollableMethodQueue.defer": ("callback *args", CALLED),
    "workers.gthread:PollableMethodQueue.fileno": ("", CALLED),
    "workers.gthread:PollableMethodQueue.run_callbacks": ("_fileobj max_callbacks=", CALLED),
    "workers.gthread:TConn.__init__": ("cfg sock client server", CALLED),
    "workers.gthread:TConn.close": ("graceful=", OVERRIDDEN),
    "http.message:Request.__init__": ("cfg unreader peer_addr req_number=", CALLED),
    "http.message:Request.force_close": ("", CALLED),
    "http.message:Request.parse_headers": ("data from_trailer=", CALLED),
    "http.message:Request.set_body_reader": ("", OVERRIDDEN),
    "http.body:Body.__init__": ("reader", CALLED),
    "http.body:LengthReader.__init__": ("unreader length", CALLED),
    "http.unreader:IterUnreader.__init__": ("iterable", CALLED),
    "http.unreader:Unreader.__init__": ("", CALLED),
    "http.unreader:Unreader.chunk": ("size_hint=", OVERRIDDEN),
    "http.wsgi:create": ("req sock client server cfg response_class= response_args=", CALLED),
    "http.wsgi:default_environ": ("req sock cfg", CALLED),
    "http.wsgi:Response.__init__": ("req sock cfg", CALLED),
    "http.wsgi:Response.close": ("", CALLED),
    "http.wsgi:Response.force_close": ("", CALLED),
    "http.wsgi:Response.should_close": ("", CALLED),
    "http.wsgi:Response.start_response": ("status headers exc_info=", CALLED),
    "http.wsgi:Response.write": ("arg", CALLED),
    "glogging:Logger.access": ("resp req environ request_time", CALLED),
    "glogging:Logger.atoms": ("resp req environ request_time", OVERRIDDEN),
    "glogging:Logger.now": ("", OVERRIDDEN),
    "glogging:Logger.setup": ("cfg", OVERRIDDEN),
    "config:Config.set": ("name value", CALLED),
}

# Attributes of objects, by their class; the fixtures below make one of each.
ATTRIBUTES = {
    "ThreadWorker": "alive cfg log max_keepalived max_requests method_queue nr poller ppid sockets"
    " tmp tpool",
    "TConn": "cfg client initialized is_http2 parser server sock",
    "Request": "_expected_100_continue body headers method must_close path query uri version",
    "Response": "chunked headers headers_sent response_length sent status",
    "Logger": "access_log atoms_wrapper_class cfg error_log",
}

# Settings that opendify/worker reads; those of gunicorn_config.py are found there.
SETTINGS = [
    "access_log_format",
    "graceful_timeout",
    "http_protocols",
    "is_ssl",
    "keepalive",
    "max_requests",
    "post_request",
    "pre_request",
    "protocol",
    "proxy_protocol",
    "sendfile",
    "threads",
    "worker_connections",
    "worker_tmp_dir",
    "workers",
]

HEAD = (
    b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
    b"Expect: 100-continue\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n"
)


@pytest.mark.parametrize("path", NAMES)
def test_gunicorn_has_the_name(path: str) -> None:
    find(path, NAMES[path])


@pytest.mark.parametrize("path", SIGNATURES)
def test_gunicorn_has_the_signature(path: str) -> None:
    expected, use = SIGNATURES[path]
    found = parameters(find(path, use))
    if found != expected:
        broken(f"{path.partition(':')[2]} takes ({found}) instead of ({expected})", use)


def parameters(function: Callable[..., Any]) -> str:
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return " ".join(
        f"{marks.get(one.kind, '')}{name}{'' if one.default is one.empty else '='}"
        for name, one in inspect.signature(function).parameters.items()
        if name not in ("self", "cls")
    )


@pytest.fixture
def cfg() -> Any:
    return find("config:Config", NAMES["config:Config"])()


@pytest.fixture
def worker(cfg: Any) -> Iterator[Any]:
    made = find(THREAD_WORKER, OVERRIDDEN)(1, 2, [], None, 30, cfg, logger(cfg))
    yield made
    made.tmp.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer = socket.socketpair()
    with ours, peer:
        yield ours, peer


def logger(cfg: Any) -> Any:
    return find("glogging:Logger", OVERRIDDEN)(cfg)


def request_of(cfg: Any, head: bytes) -> Any:
    unreader = find("http.unreader:IterUnreader", CALLED)([head])
    return find("http.message:Request", CALLED)(cfg, unreader, ("127.0.0.1", 9))


def response_of(cfg: Any, head: bytes, sock: Any) -> Any:
    return find("http.wsgi:Response", CALLED)(request_of(cfg, head), sock, cfg)


def connection(cfg: Any, sock: socket.socket) -> Any:
    return find("workers.gthread:TConn", OVERRIDDEN)(cfg, sock, ("127.0.0.1", 9), ("::1", 1))


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in ATTRIBUTES for name in ATTRIBUTES[kind].split()]
)
def test_gunicorns_objects_have_the_attribute(
    kind: str, name: str, cfg: Any, worker: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    objects: dict[str, Callable[[], Any]] = {
        "ThreadWorker": lambda: worker,
        "TConn": lambda: connection(cfg, pair[0]),
        "Request": lambda: request_of(cfg, HEAD),
        "Response": lambda: response_of(cfg, HEAD, pair[0]),
        "Logger": lambda: logger(cfg),
    }
    if not hasattr(objects[kind](), name):
        broken(f"a {kind} has no attribute {name} any more", "by opendify/worker")


def settings_in_file() -> list[str]:
    names = vars(gunicorn_config).items()
    hooks = ("on_starting", "child_exit", "post_worker_init")
    return [
        name
        for name, value in names
        if name in hooks or not (name.startswith("_") or callable(value) or inspect.ismodule(value))
    ]


@pytest.mark.parametrize("name", [*SETTINGS, *settings_in_file()])
def test_gunicorn_has_the_setting(name: str, cfg: Any) -> None:
    """Gunicorn ignores names in its configuration file that it does not know."""
    try:
        getattr(cfg, name)
    except AttributeError:
        broken(f"there is no setting {name} any more", "by gunicorn_config.py or the worker")


@dataclass
class Behaviour:
    """``holds`` is given what it needs by the names of the fixtures above."""

    sentence: str
    use: str
    holds: Callable[..., bool]


def _parses_a_head(cfg: Any) -> bool:
    made = request_of(cfg, HEAD)
    return (
        (made.method, made.uri, made.path, made.query) == ("POST", "/v1/x?y=1", "/v1/x", "y=1")
        and made.version == (1, 1)
        and [value for name, value in made.headers if name == "X-TWO"] == ["1", "2"]
        and made._expected_100_continue is True
        and made.body.reader.length == 5
    )


def _tells_of_an_incomplete_head(cfg: Any) -> bool:
    try:
        request_of(cfg, HEAD[:-9])
    except (find("http.errors:NoMoreData", CALLED), StopIteration):
        return True
    return False


def _errors_have_one_base(cfg: Any) -> bool:
    base = find("http.errors:ParseException", CALLED)
    names = [path for path in NAMES if path.startswith("http.errors:") and "NoMore" not in path]
    try:
        request_of(cfg, b"GET / HTTP/1.1\r\nbad header\r\n\r\n")
    except base:
        return all(issubclass(find(path, CALLED), base) for path in names)
    return False


def _force_close_closes(cfg: Any) -> bool:
    made = request_of(cfg, HEAD)
    before = made.should_close()
    made.force_close()
    return (before, made.should_close()) == (False, True)


def _checks_trailers(cfg: Any) -> bool:
    made = request_of(cfg, HEAD)
    made.parse_headers(b"X-Good: 1", from_trailer=True)
    try:
        made.parse_headers(b"bad trailer", from_trailer=True)
    except find("http.errors:ParseException", CALLED):
        return True
    return False


def _reads_a_body_from_an_unreader(cfg: Any) -> bool:
    class Source(find("http.unreader:Unreader", OVERRIDDEN)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.data = io.BytesIO(b"hello beyond")

        def chunk(self, size_hint: int | None = None) -> bytes:
            return self.data.read(2)

    reader = find("http.body:LengthReader", CALLED)(Source(), 5)
    body = find("http.body:Body", CALLED)(reader)
    return bool(body.read(3) + body.read() + body.read() == b"hello")


def _makes_an_environment(cfg: Any, pair: tuple[socket.socket, socket.socket]) -> bool:
    sock, peer = pair
    made = request_of(cfg, HEAD)
    made._expected_100_continue = False
    peer.setblocking(False)
    _, environ = find("http.wsgi:create", CALLED)(made, sock, ("9.9.9.9", 1), ("h", 80), cfg)
    try:
        peer.recv(1)
    except BlockingIOError:
        expected = {
            "REMOTE_ADDR": "9.9.9.9",
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/v1/x",
            "RAW_URI": "/v1/x?y=1",
            "CONTENT_LENGTH": "5",
            "HTTP_X_TWO": "1,2",
            "gunicorn.socket": sock,
            "wsgi.input": made.body,
            "wsgi.input_terminated": True,
        }
        return {name: environ.get(name) for name in expected} == expected
    return False


class Sink:
    """Has no method but ``sendall``, as the worker's buffer."""

    def __init__(self) -> None:
        self.data = b""

    def sendall(self, data: bytes) -> None:
        self.data += data


def _writes_chunks_with_sendall(cfg: Any) -> bool:
    sink = Sink()
    made = response_of(cfg, HEAD, sink)
    made.start_response("200 OK", [("X-A", "b")])
    before = (made.headers_sent, made.chunked, made.response_length)
    made.write(b"x" * 26)
    sent = made.sent
    made.close()
    head, _, body = sink.data.partition(b"\r\n\r\n")
    return (
        before == (False, True, None)
        and (made.headers_sent, sent, made.status) == (True, 26, "200 OK")
        and head.startswith(b"HTTP/1.1 200 OK\r\n")
        and b"Connection: keep-alive" in head
        and body == b"1A\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n"
        and not made.should_close()
    )


def _has_no_length_of_its_own(cfg: Any) -> bool:
    sink = Sink()
    made = response_of(cfg, HEAD, sink)
    made.start_response("200 OK", [("Content-Length", "2")])
    made.write(b"ok")
    made.force_close()
    return (made.chunked, made.response_length) == (False, 2) and bool(made.should_close())


def _initialised_is_left_alone(cfg: Any, pair: tuple[socket.socket, socket.socket]) -> bool:
    conn = connection(cfg, pair[0])
    conn.initialized = True
    conn.init()
    return conn.parser is None and conn.is_http2 is False


def _handles_what_the_parser_gives(
    cfg: Any, worker: Any, pair: tuple[socket.socket, socket.socket]
) -> bool:
    """In order: the request from `conn.parser`, a blocking socket, `handle_request`, then
    `_keepalive_after` with its result, which `handle` returns."""
    seen: list[Any] = []

    class Recorder(find(THREAD_WORKER, OVERRIDDEN)):  # type: ignore[misc]
        def handle_request(self, req: Any, conn: Any) -> Any:
            seen.append((req, conn.sock.getblocking()))
            return "outcome"

        def _keepalive_after(self, conn: Any, keepalive: Any) -> Any:
            return (keepalive, "kept")

    sock, peer = pair
    peer.sendall(b"next")  # nothing of it is read
    worker.__class__ = Recorder
    conn = connection(cfg, sock)
    conn.initialized = True
    given = request_of(cfg, HEAD)
    conn.parser = iter([given])
    outcome = worker.handle(conn)
    return (
        outcome == ("outcome", "kept")
        and seen == [(given, True)]
        and sock.recv(9, socket.MSG_DONTWAIT) == b"next"
    )


def _errors_go_to_handle_error(
    cfg: Any, worker: Any, pair: tuple[socket.socket, socket.socket]
) -> bool:
    failure, seen = ValueError("x"), []

    class Recorder(find(THREAD_WORKER, OVERRIDDEN)):  # type: ignore[misc]
        def handle_request(self, req: Any, conn: Any) -> Any:
            raise failure

        def handle_error(self, *args: Any) -> None:
            seen.append(args)

    worker.__class__ = Recorder
    conn = connection(cfg, pair[0])
    conn.initialized = True
    given = request_of(cfg, HEAD)
    conn.parser = iter([given])
    return worker.handle(conn) is False and seen == [(given, conn.sock, conn.client, failure)]


def _lost_connections_are_no_errors(
    cfg: Any, worker: Any, pair: tuple[socket.socket, socket.socket]
) -> bool:
    class Recorder(find(THREAD_WORKER, OVERRIDDEN)):  # type: ignore[misc]
        def handle_request(self, req: Any, conn: Any) -> Any:
            raise OSError(errno.EPIPE, "gone")

        def handle_error(self, *args: Any) -> NoReturn:
            raise AssertionError

    worker.__class__ = Recorder
    conn = connection(cfg, pair[0])
    conn.initialized = True
    conn.parser = iter([request_of(cfg, HEAD)])
    return worker.handle(conn) is False


def _results_come_to_the_main_loop(worker: Any) -> bool:
    """`enqueue_req` runs `handle` in the pool, and `finish_request` in whoever runs callbacks."""
    seen: list[tuple[Any, Future[Any]]] = []

    class Recorder(find(THREAD_WORKER, OVERRIDDEN)):  # type: ignore[misc]
        def handle(self, conn: Any) -> Any:
            return [conn]

        def finish_request(self, conn: Any, fs: Any) -> None:
            seen.append((conn, fs.result()))

    worker.__class__ = Recorder
    queue = worker.method_queue
    queue.init()
    with ThreadPoolExecutor(1) as worker.tpool:
        worker.enqueue_req("connection")
    before = list(seen)
    queue.run_callbacks(None)
    queue.close()
    return before == [] and seen == [("connection", ["connection"])]


def _accepts_by_its_method(worker: Any) -> bool:
    selectors = importlib.import_module("selectors")
    with socket.create_server(("127.0.0.1", 0)) as listener, selectors.DefaultSelector() as poller:
        worker.sockets, worker.poller = [listener], poller
        worker.set_accept_enabled(True)
        worker.set_accept_enabled(True)
        registered = poller.get_key(listener).data == worker.accept
        worker.set_accept_enabled(False)
        return registered and not poller.get_map()


def _dispatches_to_the_data_of_a_key(
    worker: Any, pair: tuple[socket.socket, socket.socket]
) -> bool:
    selectors = importlib.import_module("selectors")
    seen: list[Any] = []
    with selectors.DefaultSelector() as worker.poller:
        pair[1].sendall(b"x")
        worker.poller.register(pair[0], selectors.EVENT_READ, seen.append)
        worker.wait_for_and_dispatch_events(0)
    return seen == [pair[0]]


def _sigterm_ends_the_loop(worker: Any) -> bool:
    worker.method_queue.init()
    worker.handle_exit(15, None)
    woken = worker.method_queue._queue.qsize() == 1
    worker.method_queue.close()
    return worker.alive is False and woken


def _jitter_is_in_the_limit(cfg: Any) -> bool:
    cfg.set("max_requests", 10)
    cfg.set("max_requests_jitter", 0)
    made = find(THREAD_WORKER, OVERRIDDEN)(1, 2, [], None, 30, cfg, logger(cfg))
    made.tmp.close()
    return made.max_requests == 10 and made.nr == 0


def _listeners_wrap_sockets(cfg: Any) -> bool:
    cfg.set("bind", "127.0.0.1:0")
    made = find("sock:TCPSocket", "in Worker.init_process")(("127.0.0.1", 0), cfg, logger(cfg))
    found = isinstance(made.sock, socket.socket) and made.fileno() == made.sock.fileno()
    found = found and made.getsockname() == made.sock.getsockname()
    made.close()
    return found


def _atoms_of_an_access(cfg: Any) -> bool:
    class Answer:
        status, sent, headers = "200 OK", 7, ()

    environ = {"REQUEST_METHOD": "GET", "RAW_URI": "/a?b", "SERVER_PROTOCOL": "HTTP/1.1"}
    environ |= {"PATH_INFO": "/a", "REMOTE_ADDR": "9.9.9.9"}
    atoms = logger(cfg).atoms(Answer(), (), environ, timedelta(seconds=1))
    expected = {"h": "9.9.9.9", "s": "200", "U": "/a", "m": "GET", "b": "7", "u": "-", "f": "-"}
    return expected.items() <= atoms.items() and atoms["D"] == 1_000_000


def _hooks_take_the_worker(cfg: Any) -> bool:
    taken = []
    cfg.set("pre_request", lambda worker, req: taken.append((worker, req)))
    cfg.set("post_request", lambda worker, req, environ, resp: taken.append((environ, resp)))
    cfg.pre_request("worker", "request")
    cfg.post_request("worker", "request", "environ", "response")
    return taken == [("worker", "request"), ("environ", "response")]


def _loads_the_application(worker: Any) -> bool:
    class Application:
        def wsgi(self) -> str:
            return "application"

    worker.app = Application()
    worker.load_wsgi()
    return bool(worker.wsgi == "application")


BEHAVIOURS = [
    Behaviour(
        "the parser reads a head into method, uri, path, query, version, upper-case header names, "
        "_expected_100_continue and body.reader.length",
        "in head.py and connection_set.py",
        _parses_a_head,
    ),
    Behaviour(
        "an incomplete head raises NoMoreData or StopIteration",
        "in head.py, for a 400",
        _tells_of_an_incomplete_head,
    ),
    Behaviour(
        "all errors of the parser are ParseExceptions",
        "in connection_set.py and api/request_body.py, for a 400",
        _errors_have_one_base,
    ),
    Behaviour(
        "Request.force_close makes should_close true",
        "in head.py (RFC 9112, 9.3)",
        _force_close_closes,
    ),
    Behaviour(
        "parse_headers(from_trailer=True) checks trailers", "in request_buffer.py", _checks_trailers
    ),
    Behaviour(
        "a Body over a LengthReader ends at its length, from an Unreader with a `chunk` of its own",
        "in request_buffer.py",
        _reads_a_body_from_an_unreader,
    ),
    Behaviour(
        "create() makes the WSGI environment, and writes nothing when no 100-continue is expected",
        "in response_driver.py and api/request_body.py",
        _makes_an_environment,
    ),
    Behaviour(
        "a Response writes head and chunks by sendall alone, and counts what it sent",
        "in response_driver.py, which sends further chunks itself",
        _writes_chunks_with_sendall,
    ),
    Behaviour(
        "a Response with a Content-Length has response_length, and no chunks",
        "in response_driver.py",
        _has_no_length_of_its_own,
    ),
    Behaviour(
        "TConn.init does nothing where `initialized` is true",
        "in connection.py: the request is parsed before a thread has it",
        _initialised_is_left_alone,
    ),
    Behaviour(
        "ThreadWorker.handle takes the request from conn.parser, makes the socket blocking, reads "
        "nothing from it, and returns _keepalive_after(conn, handle_request(req, conn))",
        "in connection.py and worker.py",
        _handles_what_the_parser_gives,
    ),
    Behaviour(
        "ThreadWorker.handle gives exceptions to handle_error(req, sock, client, exc)",
        "in worker.py, for error responses in OpenAI's form",
        _errors_go_to_handle_error,
    ),
    Behaviour(
        "ThreadWorker.handle treats a closed connection as no error",
        "in worker.py",
        _lost_connections_are_no_errors,
    ),
    Behaviour(
        "enqueue_req runs handle in tpool and defers finish_request(conn, future) to the main loop",
        "in worker.py",
        _results_come_to_the_main_loop,
    ),
    Behaviour(
        "set_accept_enabled registers `accept` for each listener, once",
        "in worker.py, which switches it at each turn of its loop",
        _accepts_by_its_method,
    ),
    Behaviour(
        "wait_for_and_dispatch_events calls the data of each ready key with its file object",
        "in worker.py and connection_set.py",
        _dispatches_to_the_data_of_a_key,
    ),
    Behaviour(
        "handle_exit clears `alive` and wakes the main loop", "in worker.py", _sigterm_ends_the_loop
    ),
    Behaviour(
        "max_requests of a worker includes its jitter, and nr counts from 0",
        "in recycling.py",
        _jitter_is_in_the_limit,
    ),
    Behaviour(
        "a listener of a worker has its socket as `sock`, and the methods of that",
        "in worker.py, for TCP_DEFER_ACCEPT and the names of sockets",
        _listeners_wrap_sockets,
    ),
    Behaviour(
        "Logger.atoms makes its values from environ variables and from status, sent and headers",
        "in access_log.py, which gives it only these",
        _atoms_of_an_access,
    ),
    Behaviour(
        "pre_request takes (worker, request), post_request (worker, request, environ, response)",
        "in worker.py",
        _hooks_take_the_worker,
    ),
    Behaviour(
        "load_wsgi puts the application into `wsgi`",
        "in worker.py, which reads its limits and wraps it",
        _loads_the_application,
    ),
]


@pytest.mark.parametrize("case", BEHAVIOURS, ids=lambda case: case.holds.__name__.strip("_"))
def test_gunicorn_behaves_as_expected(case: Behaviour, request: pytest.FixtureRequest) -> None:
    needed = inspect.signature(case.holds).parameters
    given = {name: request.getfixturevalue(name) for name in needed}
    try:
        holds = case.holds(**given)
    except Exception as exc:  # noqa: BLE001 whatever it is, the case must say what it means
        broken(f"this no longer holds: {case.sentence} ({exc!r})", case.use)
    if not holds:
        broken(f"this no longer holds: {case.sentence}", case.use)


def test_a_missing_name_is_reported_with_the_remedy() -> None:
    with pytest.raises(pytest.fail.Exception) as failure:
        find(f"{THREAD_WORKER}.finish_all_requests", OVERRIDDEN)
    text = str(failure.value)
    assert "ThreadWorker has no finish_all_requests any more" in text
    assert f"pin gunicorn<{gunicorn.__version__}" in text


def test_every_imported_name_has_a_case() -> None:
    imported = {
        f"{str(node.module).removeprefix('gunicorn.')}:{alias.name}"
        for node in ast.walk(ast.parse(API.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == set(NAMES)


@pytest.mark.parametrize(
    ("ours", "base"),
    [
        ("worker:Worker", "workers.gthread:ThreadWorker"),
        ("connection:Connection", "workers.gthread:TConn"),
        ("head:RequestHead", "http.message:Request"),
        ("request_buffer:_BodyUnreader", "http.unreader:Unreader"),
        ("access_log:Log", "glogging:Logger"),
    ],
)
def test_every_overridden_method_has_a_case(ours: str, base: str) -> None:
    module, _, name = ours.partition(":")
    theirs = find(base, OVERRIDDEN)
    mine = vars(getattr(importlib.import_module(f"opendify.worker.{module}"), name))
    overridden = {
        f"{base}.{method}"
        for method in mine
        if callable(getattr(theirs, method, None))
        and callable(getattr(mine[method], "__func__", mine[method]))
    } - {f"{base}.__new__", f"{base}.atoms_wrapper_class"}
    assert overridden <= set(SIGNATURES), overridden - set(SIGNATURES)


def names_after(variable: str, tree: ast.AST) -> set[str]:
    """The attributes that a module takes of `variable` or of an attribute of that name."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and getattr(node.value, "id", getattr(node.value, "attr", "")) == variable
    }


@pytest.mark.parametrize(
    ("variable", "kind", "class_path"),
    [
        ("cfg", "", "config:Config"),
        ("resp", "Response", "http.wsgi:Response"),
        ("method_queue", "", "workers.gthread:PollableMethodQueue"),
    ],
)
def test_everything_that_is_used_of_an_object_has_a_case(
    variable: str, kind: str, class_path: str
) -> None:
    used = set().union(
        *(names_after(variable, ast.parse(path.read_text())) for path in WORKER.glob("*.py"))
    )
    known = {*ATTRIBUTES.get(kind, "").split(), *(SETTINGS if variable == "cfg" else ())}
    known |= {path.rpartition(".")[2] for path in SIGNATURES if path.startswith(f"{class_path}.")}
    assert used <= known, used - known


def test_everything_that_the_worker_takes_from_its_base_has_a_case() -> None:
    worker = importlib.import_module("opendify.worker.worker").Worker
    tree = ast.parse((WORKER / "worker.py").read_text())
    (body,) = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Worker"
    ]
    stored = {
        node.attr
        for node in ast.walk(body)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    used = names_after("self", body) - set(vars(worker)) - stored
    known = {path.rpartition(".")[2] for path in SIGNATURES if path.startswith(THREAD_WORKER)}
    assert used <= known | {"wsgi"} | set(ATTRIBUTES["ThreadWorker"].split()), used
    assert sys.modules[worker.__base__.__module__].ThreadWorker is worker.__base__
