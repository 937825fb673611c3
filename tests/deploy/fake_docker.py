"""A docker that keeps its images, containers and volumes in one file and records every call.

It is put on PATH as `docker`, and imports little: a deploy asks it thirty times. It knows the
commands and the formats that deploy.sh uses, fails loudly for any other, and behaves as
`state["behaviour"]` says: by image id, how a container of it does as a trial and as a
service. Python given to `run` runs for real, on the volume's folder.
"""

import fcntl
import marshal
import os
import sys
import time

HOME = os.environ["FAKE_DOCKER"]
NO_VALUE = {"--init", "--read-only", "--rm", "-d", "-i", "-f"}


class State:
    """The whole engine; written back when the call ends."""

    def __enter__(self):
        self.lock = open(os.path.join(HOME, "lock"), "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        with open(os.path.join(HOME, "state"), "rb") as file:
            self.data = marshal.load(file)
        return self.data

    def __exit__(self, *_):
        path = os.path.join(HOME, "state")
        with open(path + ".new", "wb") as file:
            marshal.dump(self.data, file)
        os.replace(path + ".new", path)
        self.lock.close()


def fail(text, code=1):
    print(text, file=sys.stderr)
    sys.exit(code)


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
        "{{if .State.Health}}{{range .State.Health.Log}}{{.ExitCode}} {{.Output}}"
        '{{"\\n"}}{{end}}{{end}}': "0 \n" if well == "healthy" else "1 Connection refused\n",
    }
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
            print(line.replace('{{.Label "opendify.env"}}', environment))


def command_inspect(state, words):
    options, names = split(words)
    one = container(state, names[0])
    if one is None:
        fail(f"Error: No such container: {names[0]}")
    print(facts(state, one, options["-f"][0]) if "-f" not in NO_VALUE else "")


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
    print(about[form])


def command_info(state, words):
    about = {"{{.NCPU}}": "2", "{{.CgroupVersion}}": "2", "{{.SecurityOptions}}": "[]"}
    about |= {"{{.DockerRootDir}}": "/", "{{.Architecture}}": "x86_64"}
    print(about[words[1]])


def command_version(state, words):
    print("99.0-fake")


def command_compose(state, words):
    print("9.9.9")


def command_images(state, words):
    for reference in state["images"]:
        if reference.rpartition(":")[0] == words[2]:
            print(reference)


def command_load(state, words):
    import gzip
    import json

    archive = json.loads(gzip.decompress(sys.stdin.buffer.read()))
    state["images"][archive["reference"]] = archive["id"]
    print(f"Loaded image: {archive['reference']}")


def command_save(state, words):
    print(f'{{"reference": "{words[0]}", "id": "{state["images"][words[0]]}"}}')


def command_tag(state, words):
    image = state["images"].get(words[0], words[0])
    state["images"][words[1]] = image


def command_rmi(state, words):
    if any(one["image"] == state["images"][words[0]] for one in state["containers"]):
        fail("conflict: unable to remove repository reference")
    del state["images"][words[0]]


def command_create(state, words):
    options, rest = split(words)
    print(make(state, options, rest[0])["id"])


def command_run(state, words):
    options, rest = split(words)
    if "-d" in options:
        one = make(state, options, rest[0])
        start(state, one)
        print(one["id"])
        return 0
    if rest[1:] == ["python", "-m", "opendify.config"]:
        if state["config_says"]:
            fail(state["config_says"], 78)
        return 0
    return lambda: run_python(options, rest)


def run_python(options, rest):
    import subprocess

    code, environment = rest[3], dict(os.environ)
    if "--volume" in options:
        volume = options["--volume"][0].split(":")[0]
        folder = volume if volume.startswith("/") else os.path.join(HOME, "volumes", volume)
        mount = os.path.join(HOME, f"mount-{os.getpid()}")
        os.makedirs(folder, exist_ok=True)
        os.makedirs(mount)
        os.symlink(folder, os.path.join(mount, "data"))
        code = code.replace('"/backup', f'"{mount}')
    for path in options.get("--env-file", []):
        with open(path) as file:
            environment |= dict(line.split("=", 1) for line in file.read().splitlines())
    return subprocess.run([sys.executable, "-c", code, *rest[4:]], env=environment).returncode


def command_start(state, words):
    start(state, need(state, words[0]))


def command_stop(state, words):
    _, names = split(words)
    one = need(state, names[0])
    if one["state"] in ("running", "restarting"):
        one["state"] = "exited"
    time.sleep(state["stop_takes"])


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
    if "/v1/models" in words[3]:
        print(state["api"])


def command_logs(state, words):
    options, names = split(words, {"-f"})
    one = need(state, names[0])
    print(f"log of {one['name']} tail={options.get('--tail')} follow={'-f' in options}")
    print("boot failed: key " + state["log_leaks"], flush=True)
    return (lambda: time.sleep(60)) if state["log_waits"] else 0


def command_volume(state, words):
    path = os.path.join(HOME, "volumes", words[-1])
    if words[0] == "inspect" and not os.path.isdir(path):
        fail("no such volume")
    if words[0] == "rm":
        import shutil

        shutil.rmtree(path, ignore_errors=True)


def main():
    with open(os.path.join(HOME, "calls"), "a") as file:
        file.write(repr(sys.argv[1:]) + "\n")
    if os.path.exists(os.path.join(HOME, "down")):
        with open(os.path.join(HOME, "down")) as file:
            fail(file.read())
    later = 0
    with State() as state:
        hook = state["fail"].get(sys.argv[1])
        if hook and hook in " ".join(sys.argv):
            fail(f"fake docker was told to fail at {sys.argv[1]}", 125)
        # inspect -f and rm -f differ: one takes a value
        if sys.argv[1] == "inspect":
            NO_VALUE.discard("-f")
        later = globals()[f"command_{sys.argv[1]}"](state, sys.argv[2:]) or 0
    if callable(later):
        later = later()
    sys.exit(later)
