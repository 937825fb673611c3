"""Which Dify address is reached through which proxy (HTTP_PROXY and related variables). No I/O.

httpx reads these variables only for transports that it creates itself. All Dify addresses are known
from the configuration, so the choice is made once at startup.
"""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit


def proxies_for(bases: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Maps ``scheme://host[:port]`` of each base that needs a proxy to the proxy's URL."""
    no_proxy = _value(environ, "NO_PROXY")
    chosen = {}
    for base in bases:
        parts = urlsplit(base)
        proxy = _value(environ, f"{parts.scheme.upper()}_PROXY") or _value(environ, "ALL_PROXY")
        if proxy and not _bypasses_proxy(parts.hostname or "", parts.netloc, no_proxy):
            chosen[f"{parts.scheme}://{parts.netloc}"] = with_scheme(proxy)
    return chosen


def _bypasses_proxy(host: str, host_and_port: str, no_proxy: str) -> bool:
    for entry in no_proxy.lower().split(","):
        name = entry.strip().removeprefix("*").removeprefix(".")
        if entry.strip() == "*" or name in (host, f"[{host}]", host_and_port.lower()):
            return True
        if name and (host.endswith(f".{name}") or _is_in_network(host, name)):
            return True
    return False


def _is_in_network(host: str, network: str) -> bool:
    """Whether ``host`` is an address in a network such as ``10.0.0.0/8``."""
    try:
        return "/" in network and ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def with_scheme(proxy: str) -> str:
    """The URL of a proxy; without a scheme it is an HTTP proxy."""
    return proxy if "://" in proxy else f"http://{proxy}"


def _value(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name.lower()) or environ.get(name) or "").strip()
