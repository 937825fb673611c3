"""nginx itself, with the shipped configuration, before real instances of the application."""

import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

import gunicorn_config
from tests.support.fake_dify import Chat, FakeDify, streamed
from tests.support.ports import free_port
from tests.support.programs import require_program
from tests.support.service import ROOT, Service, running

MAIN = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/opendify.conf;
}}
"""


def certificate(folder: Path) -> None:
    words = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(
        [require_program("openssl"), *words.split(), *files],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def write(folder: Path, name: str, instances: list[Service], plain: int, secure: int) -> None:
    """The shipped file, with this machine's ports, addresses and certificate."""
    text = (ROOT / "deploy" / "nginx" / name).read_text()
    for number, instance in enumerate(instances):
        text = text.replace(f"127.0.0.1:500{number};", f"{instance.url.removeprefix('http://')};")
    text = text.replace("listen 80;", f"listen 127.0.0.1:{plain};")
    text = text.replace("listen 443 ssl;", f"listen 127.0.0.1:{secure} ssl;")
    text = text.replace("/var/log/nginx/", f"{folder}/")
    live = "/etc/letsencrypt/live/opendify.example.com"
    text = text.replace(f"{live}/fullchain.pem", f"{folder}/cert.pem")
    text = text.replace(f"{live}/privkey.pem", f"{folder}/key.pem")
    assert "127.0.0.1:500" not in text
    # Another address of this machine stands for a stranger's.
    assert text.count("allow 127.0.0.1;") == 2
    (folder / "opendify.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))


@contextmanager
def nginx(folder: Path) -> Iterator[None]:
    words = [require_program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    checked = subprocess.run([*words, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0 and "warn" not in checked.stderr, checked.stderr
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def dify() -> Iterator[FakeDify]:
    fake = FakeDify()
    yield fake
    fake.close()


@pytest.fixture(scope="module", params=["opendify.conf", "opendify-multi.conf"])
def front(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, dify: FakeDify
) -> Iterator[tuple[httpx.Client, list[Service]]]:
    """A client that speaks TLS to nginx, and the instances behind that."""
    require_program("nginx")
    tmp_path = tmp_path_factory.mktemp("nginx")
    settings = {
        "DIFY_API_BASE": dify.base,
        "MODEL_CONFIG": '{"tiny":"app-k"}',
        "GUNICORN_WORKERS": "1",
        "GUNICORN_KEEPALIVE": "75",
    }
    certificate(tmp_path)
    plain, secure = free_port(), free_port()
    with ExitStack() as stack:
        count = 3 if "multi" in request.param else 1
        instances = [stack.enter_context(running(tmp_path, settings)) for _ in range(count)]
        write(tmp_path, request.param, instances, plain, secure)
        stack.enter_context(nginx(tmp_path))
        trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        trusted.check_hostname = False
        client = stack.enter_context(
            httpx.Client(
                base_url=f"https://127.0.0.1:{secure}", verify=trusted, timeout=30, trust_env=False
            )
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                client.get("/healthz")
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        redirect = httpx.get(f"http://127.0.0.1:{plain}/v1/models", trust_env=False)
        assert redirect.status_code == 301 and redirect.headers["location"].startswith("https://")
        yield client, instances


def question(size: int = 0) -> dict[str, object]:
    content = "Hi" + "x" * size
    return {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": content}]}


def test_each_piece_arrives_before_the_next_is_sent(
    front: tuple[httpx.Client, list[Service]], dify: FakeDify
) -> None:
    client, _ = front
    chat, received = Chat(), [threading.Event() for _ in range(5)]

    def steps() -> Iterator[object]:
        whole = streamed(*(chat.text(f"piece {n}") for n in range(5)), chat.end())
        yield whole[0]
        for piece, event in zip(whole[1:6], received, strict=True):
            yield piece
            assert event.wait(20), "nginx held a piece back"
        yield from whole[6:]

    dify.answers.append(steps())
    told = []
    with client.stream("POST", "/v1/chat/completions", json=question()) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            told.append(line)
            for number in range(5):
                if f"piece {number}" in line:
                    received[number].set()
    assert all(event.is_set() for event in received)
    assert [line for line in told if line][-1] == "data: [DONE]"


def test_an_image_is_not_too_large(
    front: tuple[httpx.Client, list[Service]], dify: FakeDify
) -> None:
    client, _ = front
    answer = client.post("/v1/chat/completions", json=question(3_000_000) | {"stream": False})
    assert answer.status_code == 200, answer.text[:200]
    assert len(json.loads(dify.asked()[-1].body)["query"]) > 3_000_000


def test_no_log_of_nginx_holds_the_query_of_a_link(
    front: tuple[httpx.Client, list[Service]],
) -> None:
    client, instances = front
    folder = instances[0].log.parent
    quoted = {"User-Agent": 'a"b\\" FAKE'}
    for path in ("/v1/files/abc/content?sig=top-secret", "/v1//files//abc/content/?sig=top-secret"):
        assert client.get(path, headers=quoted).status_code == 403
    deadline = time.monotonic() + 20
    while (folder / "opendify.log").read_text().count("/v1/files/abc/content") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    logs = [folder / name for name in ("opendify.log", "access.log", "error.log")]
    text = "".join(path.read_text() for path in logs if path.exists())
    assert "top-secret" not in text
    assert 'a"b' not in text


OPERATORS = ["/metrics", "/metrics/", "//metrics", "/%6detrics", "/v1/conversation/mappings"]
OPERATORS += ["/v1//conversation/mappings/", "/v1/./conversation/mappings"]  # httpx drops the dot


@pytest.mark.parametrize("path", OPERATORS)
def test_what_is_for_operators_is_open_to_their_addresses_only(
    front: tuple[httpx.Client, list[Service]], path: str
) -> None:
    client, _ = front
    url = str(client.base_url).rstrip("/") + path
    assert client.get(url).status_code == 200
    port = client.base_url.port
    with socket.create_connection(("127.0.0.1", port), 20, ("127.0.0.2", 0)) as plain:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain) as stranger:
            stranger.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
            assert b" 403 " in stranger.recv(4096).partition(b"\r\n")[0]


def test_others_take_over_from_an_instance_that_stops(
    front: tuple[httpx.Client, list[Service]], dify: FakeDify
) -> None:
    client, instances = front
    if len(instances) == 1:
        return
    instances[0].stop()
    for _ in range(12):
        assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("name", ["opendify.conf", "opendify-multi.conf"])
def test_numbers_agree_with_the_application(name: str) -> None:
    text = (ROOT / "deploy" / "nginx" / name).read_text()
    assert (
        "client_max_body_size 64m;" in text
        and "#MAX_BODY_MB=64" in (ROOT / ".env.example").read_text()
    )
    assert "keepalive_timeout 60s;" in text and "GUNICORN_KEEPALIVE=75" in text
    assert gunicorn_config.keepalive < 60
