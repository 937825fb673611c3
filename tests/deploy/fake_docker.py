"""A docker that keeps its images, containers and volumes in memory and remembers every call.

What is on PATH as `docker` is four lines of bash that tell this process who calls; the words of
the call, and where its input and output go, are read from /proc. It knows the commands and the
formats that deploy.sh uses, fails loudly for any other, and behaves as `state["behaviour"]` says:
by image id, how a container of it does as a trial and as a service. `python -m opendify.deploy`
runs for real (see `package_server.py`): in `run` on the volume's folder, in `exec` beside a service
that answers as `state["api"]` says.
"""

import atexit
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NO_VALUE = {"--init", "--read-only", "--rm", "-d", "-i", "-f"}
CLIENT = """#!/bin/bash
[ ! -e "$FAKE_DOCKER/down" ] || { cat "$FAKE_DOCKER/down" >&2; exit 1; }
exec 3<>"/dev/tcp/127.0.0.1/$(<"$FAKE_DOCKER/port")" 4>&1 5<&0  # bash moves 0 and 1 about
echo $$ >&3
read -r code <&3
exit "$code"
"""
STDIN, STDOUT, STDERR = 5, 4, 2
ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ["python", "-m", "opendify.deploy"]
OLD, NEW = "sha256:" + "a" * 61 + "1.0", "sha256:" + "b" * 61 + "2.0"
State = dict[str, Any]
Words = list[str]


def put_client(folder: Path) -> None:
    (folder / "docker").write_text(CLIENT)
    (folder / "docker").chmod(0o755)


def fresh_state() -> State:
    """An engine with one image, whose containers are healthy."""
    return {
        "images": {"opendify:latest": OLD},
        "containers": [],
        "behaviour": {},
        "architecture": "amd64",
        "api": "200\ngpt-4",
        "ready": 200,
        "without_package": [],
        "instead": "",
        "log_leaks": "app-secret-key-1234",
        "log_waits": False,
        "stop_takes": 0,
        "fail": {},
    }


class Ended(Exception):
    """The call is over, with this exit code."""


class PackageServer:
    """``python -m opendify.deploy``, without starting Python for each run."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            program = Path(__file__).with_name("package_server.py")
            self._process = subprocess.Popen(
                [sys.executable, str(program)], stdin=theirs, env={"PYTHONPATH": str(ROOT)}
            )
        atexit.register(self.close)

    def close(self) -> None:
        self._requests.close()
        self._process.wait()

    def run(
        self, arguments: Words, environment: dict[str, str], folder: Path, files: list[int]
    ) -> int:
        """The exit code. ``files`` are what the run has as standard input, output and error."""
        request = {"arguments": arguments, "environment": environment, "folder": str(folder)}
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                message = json.dumps(request).encode()
                socket.send_fds(self._requests, [message], [*files, theirs.fileno()])
            return int(ours.recv(20) or 137)  # it was killed


@cache
def package_server() -> PackageServer:
    return PackageServer()


class Call(threading.local):
    """The call that this thread serves."""

    pid = 0
    connection: socket.socket
    state: State


call = Call()


class Service(BaseHTTPRequestHandler):
    """What runs in every container, as the state says at the moment."""

    server: "ServiceServer"

    def do_GET(self) -> None:
        status, *names = self.server.state["api"].split("\n")
        if self.path == "/healthz":
            self._answer(200, {"status": "ok"})
        elif self.path == "/readyz":
            self._answer(self.server.state["ready"], {})
        elif status:
            self._answer(int(status), {"data": [{"id": name} for name in names]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, {"choices": []})

    def _answer(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


class ServiceServer(ThreadingHTTPServer):
    state: State


class FakeDocker:
    """The engine. ``folder`` is where volumes lie; ``calls`` are the words of each call."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state
        self.calls: list[Words] = []
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        (folder / "port").write_text(str(self._server.getsockname()[1]))
        threading.Thread(target=self._accept, daemon=True).start()
        self._service = ServiceServer(("127.0.0.1", 0), Service)
        self._service.state = state
        threading.Thread(target=self._service.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._service.shutdown()
        self._service.server_close()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        # Where the caller was killed there is nothing to read, or nobody to answer
        with connection, suppress(OSError, ValueError):
            call.pid, call.connection = int(connection.recv(20)), connection
            call.state = self.state
            words = Path(f"/proc/{call.pid}/cmdline").read_bytes().decode().split("\0")[2:-1]
            if not words:
                return
            code = self._answer(words)
            connection.sendall(f"{code}\n".encode())

    def _answer(self, words: Words) -> int:
        try:
            with self._lock:
                self.calls.append(words)
                hook = self.state["fail"].get(words[0])
                if hook and hook in " ".join(words):
                    fail(f"fake docker was told to fail at {words[0]}", 125)
                self.state["folder"] = str(self.folder)
                self.state["port"] = self._service.server_port
                later = globals()[f"command_{words[0]}"](self.state, words[1:])
            if later is not None:
                later()
        except Ended as ended:
            return int(ended.args[0])
        return 0


def say(text: str, descriptor: int = STDOUT) -> None:
    """One line on the caller's own standard output."""
    with suppress(OSError), open(f"/proc/{call.pid}/fd/{descriptor}", "ab") as file:
        file.write(text.encode() + b"\n")


def fail(text: str, code: int = 1) -> None:
    say(text, STDERR)
    raise Ended(code)


def container(state, name):
    for one in state["containers"]:
        if one["name"] == name or one["id"].startswith(name):
            return one
    return None


def need(state, name):
    return container(state, name) or fail(f"Error: No such container: {name}")


def split(words, takes_none=NO_VALUE):
    """Options (name to list of values) and the words after them."""
    options, index = {}, 0
    while index < len(words) and words[index].startswith("-"):
        name = words[index]
        if name in takes_none:
            options.setdefault(name, []).append("1")
            index += 1
        else:
            options.setdefault(name, []).append(words[index + 1])
            index += 2
    return options, words[index:]


def make(state, options, reference):
    name = options["--name"][0]
    if container(state, name):
        fail(f'Conflict. The container name "/{name}" is already in use', 125)
    image = state["images"].get(reference) or fail(f"no such image: {reference}", 125)
    environment = {}
    with open(options["--env-file"][0]) as file:
        for line in file.read().splitlines():
            key, _, value = line.partition("=")
            environment[key] = value
    one = {
        "id": os.urandom(32).hex(),
        "name": name,
        "image": image,
        "reference": reference,
        "labels": dict(label.split("=", 1) for label in options.get("--label", [])),
        "state": "created",
        "restarts": 0,
        "environment": environment,
        "options": options,
    }
    state["containers"].append(one)
    return one


def behaviour(state, one):
    kinds = state["behaviour"].get(one["image"], {})
    return kinds.get("trial" if one["name"].endswith("-next") else "service", "healthy")


def start(state, one):
    if behaviour(state, one) == "refuses":
        fail("driver failed programming external connectivity: port is already allocated", 1)
    one["state"] = "running"
    one["started"] = time.strftime("%Y-%m-%dT%H:%M:%S.0Z", time.gmtime())


def health(state, one):
    """What inspect says now; the first look at one that cannot live is its end."""
    kind = behaviour(state, one)
    if one["state"] != "running":
        return one["state"], "none"
    if kind == "crash":
        one["state"] = "exited"
        return "exited", "none"
    if kind == "loop":
        one["restarts"] += 1
        return "restarting", "starting"
    if kind == "starting":
        return "running", "starting"
    return "running", "unhealthy" if kind == "unhealthy" else "healthy"


def facts(state, one, form):
    status, well = health(state, one)
    data = [v for v in one["options"].get("--volume", []) if v.endswith(":/app/data")]
    known = {
        "{{.Id}}": one["id"],
        "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}": well,
        "{{.State.Status}}": status,
        "{{.RestartCount}}": str(one["restarts"]),
        "{{.Image}}": one["image"],
        "{{.Config.Image}}": one["reference"],
        "{{.State.StartedAt}}": one.get("started", "0001-01-01T00:00:00Z"),
        "{{.Config.StopTimeout}}": one["options"].get("--stop-timeout", ["<nil>"])[0],
        '{{range .Mounts}}{{if eq .Destination "/app/data"}}{{if .Name}}{{.Name}}{{else}}'
        "{{.Source}}{{end}}{{end}}{{end}}": data[0].rpartition(":")[0] if data else "",
        "{{if .State.Health}}{{range .State.Health.Log}}{{if .ExitCode}}check {{.ExitCode}} "
        "{{json .Output}}\n{{end}}{{end}}{{end}}": 'check 1 "Connection\\n refused"\n'
        if well == "unhealthy"
        else "",
    }
    environment = "".join(f"{name}={value}\n" for name, value in one["environment"].items())
    known["{{range .Config.Env}}{{println .}}{{end}}"] = environment
    for key in sorted(known, key=len, reverse=True):
        form = form.replace(key, known[key])
    for name in ("version", "config-sha256", "options", "address"):
        label = f"opendify.{name}"
        form = form.replace(f'{{{{index .Config.Labels "{label}"}}}}', one["labels"].get(label, ""))
    if "{{" in form:
        fail(f"fake docker does not know the format {form!r}", 99)
    return form


def wanted(one, condition):
    kind, _, value = condition.partition("=")
    if kind == "label":
        name, _, wanted = value.partition("=")
        return one["labels"].get(name) == wanted
    if kind == "publish":
        return any(f":{value}:" in entry for entry in one["options"].get("--publish", []))
    return fail(f"fake docker does not know the filter {condition!r}", 99)


def command_ps(state, words):
    options, _ = split(words, {"-q", "-a", "--no-trunc"})
    form = options.get("--format", ["{{.ID}}"])[0]
    for one in state["containers"]:
        if one["state"] != "running" and "-a" not in options:
            continue
        if all(wanted(one, condition) for condition in options.get("--filter", [])):
            line = form.replace("{{.Names}}", one["name"]).replace("{{.ID}}", one["id"])
            environment = one["labels"].get("opendify.env", "")
            say(line.replace('{{.Label "opendify.env"}}', environment))


def command_inspect(state, words):
    options, names = split(words, NO_VALUE - {"-f"})
    one = container(state, names[0])
    if one is None:
        fail(f"Error: No such container: {names[0]}")
    say(facts(state, one, options["-f"][0]))


def command_image(state, words):
    if words[0] != "inspect":
        fail(f"fake docker: image {words}", 99)
    form, reference = words[2], words[3]
    image = state["images"].get(reference)
    if image is None and reference in state["images"].values():
        image = reference
    if image is None:
        fail(f"Error: No such image: {reference}")
    about = {"{{.Id}}": image, "{{.Architecture}}": state["architecture"]}
    about["{{.Config.User}}"] = f"{os.getuid()}:{os.getgid()}"
    about['{{index .Config.Labels "org.opencontainers.image.version"}}'] = image[-3:]
    say(about[form])


def command_info(state, words):
    about = {"{{.NCPU}}": "2", "{{.CgroupVersion}}": "2", "{{.SecurityOptions}}": "[]"}
    about["{{.Host.CPUs}}"] = "2"
    about |= {"{{.DockerRootDir}}": "/", "{{.Architecture}}": "x86_64"}
    say(about[words[1]])


def command_version(state, words):
    say("99.0-fake")


def command_compose(state, words):
    say("9.9.9")


def command_images(state, words):
    for reference in state["images"]:
        if reference.rpartition(":")[0] == words[2]:
            say(reference)


def command_load(state, words):
    with open(f"/proc/{call.pid}/fd/{STDIN}", "rb") as file:
        archive = json.loads(gzip.decompress(file.read()))
    state["images"][archive["reference"]] = archive["id"]
    say(f"Loaded image: {archive['reference']}")


def command_save(state, words):
    say(f'{{"reference": "{words[0]}", "id": "{state["images"][words[0]]}"}}')


def command_tag(state, words):
    image = state["images"].get(words[0], words[0])
    state["images"][words[1]] = image


def command_rmi(state, words):
    if any(one["image"] == state["images"][words[0]] for one in state["containers"]):
        fail("conflict: unable to remove repository reference")
    del state["images"][words[0]]


def command_create(state, words):
    options, rest = split(words)
    say(make(state, options, rest[0])["id"])


def command_run(state, words):
    options, rest = split(words)
    if "-d" in options:
        one = make(state, options, rest[0])
        start(state, one)
        say(one["id"])
        return None
    if state["images"].get(rest[0], rest[0]) in state["without_package"]:
        fail("No module named opendify.deploy")
    return lambda: run_package(state, options, rest[1:])


def volume_folder(state: State, volume: str) -> Path:
    home = Path(state["folder"])
    folder = Path(volume) if volume.startswith("/") else home / "volumes" / volume
    folder.mkdir(exist_ok=True)
    return folder


def run_package(state, options, words):
    """The command of `run`, with the folder of a volume in the place of where it is mounted."""
    environment = {}
    for path in options.get("--env-file", []):
        lines = Path(path).read_text().splitlines()
        environment |= dict(line.split("=", 1) for line in lines if line)
    for mount in options.get("--volume", []):
        volume, place, _ = mount.split(":")
        words = [str(volume_folder(state, volume)) if word == place else word for word in words]
    run_real(words, environment, Path(state["folder"]))


def run_real(words, environment, folder):
    if words[:3] != PACKAGE:
        fail(f"fake docker does not run {words}", 99)
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    own = f"/proc/{call.pid}/fd"
    with (
        open(f"{own}/{STDIN}", "rb") as put,
        open(f"{own}/{STDOUT}", "ab") as got,
        open(f"{own}/{STDERR}", "ab") as bad,
    ):
        if instead := call.state["instead"]:
            program = ["bash", "-c", instead]
            done = subprocess.run(
                program, cwd=folder, env=environment, stdin=put, stdout=got, stderr=bad
            )
            raise Ended(done.returncode)
        files = [put.fileno(), got.fileno(), bad.fileno()]
        raise Ended(package_server().run(words[3:], environment, folder, files))


def command_start(state, words):
    start(state, need(state, words[0]))


def command_stop(state, words):
    _, names = split(words)
    one = need(state, names[0])
    if one["state"] in ("running", "restarting", "paused"):
        one["state"] = "exited"
    return lambda: time.sleep(state["stop_takes"])


def command_restart(state, words):
    _, names = split(words)
    start(state, need(state, names[0]))


def command_rename(state, words):
    if container(state, words[1]):
        fail(f"name {words[1]} is in use")
    need(state, words[0])["name"] = words[1]


def command_rm(state, words):
    options, names = split(words)
    one = need(state, names[0])
    if one["state"] == "running" and "-f" not in options:
        fail("You cannot remove a running container")
    state["containers"].remove(one)


def command_exec(state, words):
    one = need(state, words[0])
    if one["state"] != "running":
        fail("is not running")
    environment = one["environment"] | {"SERVER_PORT": str(state["port"])}
    folder = Path(state["folder"]) / f"app-{one['id'][:12]}"
    folder.mkdir(exist_ok=True)
    volume = one["options"]["--volume"][0].partition(":")[0]
    with suppress(FileExistsError):
        (folder / "data").symlink_to(volume_folder(state, volume))
    if one["image"] in state["without_package"]:
        fail("/opt/venv/bin/python: No module named opendify.deploy")
    return lambda: run_real(words[1:], environment, folder)


def command_logs(state, words):
    options, names = split(words, {"-f"})
    one = need(state, names[0])
    say(f"log of {one['name']} tail={options.get('--tail')} follow={'-f' in options}")
    say("boot failed: key " + state["log_leaks"])
    if state["log_waits"]:
        connection = call.connection
        return lambda: connection.recv(1)
    return None


def command_volume(state, words):
    path = Path(state["folder"]) / "volumes" / words[-1]
    if words[0] == "inspect" and not path.is_dir():
        fail("no such volume")
    if words[0] == "rm":
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    """``fake_docker.py FOLDER``: an engine for other test runners, until standard input ends.

    Each line there is JSON with changes of the state; the answer is all words of all calls.
    """
    folder = Path(sys.argv[1])
    (folder / "volumes").mkdir()
    put_client(folder)
    docker = FakeDocker(folder, fresh_state())
    for line in iter(sys.stdin.readline, ""):
        docker.state.update(json.loads(line))
        print(json.dumps(docker.calls), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
