"""Where a container is published, and its limits. No I/O."""

import hashlib
import ipaddress
import re
from dataclasses import dataclass

from opendify.deploy.checking import ValidConfig
from opendify.deploy.env_files import write_for_docker

CONTAINER_PORT = 5000
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"

_NUMBER = re.compile("[1-9][0-9]{0,5}")


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Options of deploy.sh, empty if not given, and the processors of the engine's host."""

    name: str
    data: str
    bind: str = ""
    port: str = ""
    memory: str = ""
    cpus: str = ""
    network: str = ""
    cores: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """``raw`` is the file for ``docker run --env-file``; ``digest`` changes with anything that the
    container gets. ``is_local_only``: nobody has chosen the address, and no keys are set."""

    bind: str
    port: int
    memory: str
    pids: int
    stop: int
    raw: str
    digest: str
    is_local_only: bool


class InvalidAddress(ValueError):
    """The option or variable ``source`` is no IP address."""

    def __init__(self, source: str, text: str) -> None:
        super().__init__(f"{source}: {text!r} is no IP address")
        self.source, self.text = source, text


def make_plan(checked: ValidConfig, options: PlanOptions) -> Plan:
    """Decides what the container gets. Raises InvalidAddress."""
    chosen = _chosen_address(checked, options)
    has_keys = bool(checked.settings.accounts or checked.settings.key_passthrough)
    # Without keys, everybody who reaches the port could use the apps.
    bind = chosen or (EVERYWHERE if has_keys else LOOPBACK)
    port = int(options.port or checked.settings.server_port)
    workers, pids, stop = _limits(checked, options)
    memory = options.memory or ("1g" if workers <= 9 else f"{workers * 112}m")
    is_on_host = options.network == "host"
    raw = checked.raw + write_for_docker(
        {
            "SERVER_HOST": bind.strip("[]") if is_on_host else EVERYWHERE,
            "SERVER_PORT": str(port if is_on_host else CONTAINER_PORT),
            "PUBLISH_ADDRESS": bind,
        }
    )
    limits = f"{memory} {options.cpus} {options.network} {pids} {stop}"
    everything = f"{options.name}\n{bind}:{port} {options.data} {limits}\n{raw}"
    digest = hashlib.sha256(everything.encode(errors="surrogateescape")).hexdigest()
    return Plan(bind, port, memory, pids, stop, raw, digest, not chosen and not has_keys)


def _chosen_address(checked: ValidConfig, options: PlanOptions) -> str:
    """The address of ``--bind``, else of the file, IPv6 in brackets; "" if there is neither."""
    source, text = "--bind", options.bind
    if not text:
        source, text = "PUBLISH_ADDRESS", checked.values.get("PUBLISH_ADDRESS", "").strip()
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise InvalidAddress(source, text) from None
    return f"[{address}]" if address.version == 6 else str(address)


def _limits(checked: ValidConfig, options: PlanOptions) -> tuple[int, int, int]:
    """Workers, processes and seconds to stop, as the container will use them. A pids limit counts
    threads."""

    def number(name: str, default: int) -> int:
        return _number(checked.values.get(name, "").strip(), default)

    cores = _number(options.cores, 4)
    if options.cpus:
        cores = int(options.cpus.partition(".")[0]) + 1
    workers = number("GUNICORN_WORKERS", cores * 2 + 1)
    threads = number("GUNICORN_THREADS", 128)
    stop = number("GUNICORN_GRACEFUL_TIMEOUT", 30) + 10
    return workers, workers * (threads + 16) + 64, stop


def _number(text: str, default: int) -> int:
    return int(text) if _NUMBER.fullmatch(text) else default
