"""Which host names are of the network inside, of which callers are not told. No I/O."""

from ipaddress import ip_address

# Names that no public DNS has (RFC 6761, RFC 6762, RFC 8375), and what is usual inside.
_INNER_SUFFIXES = (
    ".corp",
    ".home",
    ".home.arpa",
    ".internal",
    ".intranet",
    ".lan",
    ".local",
    ".localdomain",
    ".localhost",
    ".private",
    ".svc",
)


def is_inner_host(host: str) -> bool:
    """Whether a host, as it stands in an address, is not one of the public Internet: a name
    without a domain, a name of a private one, or an IP address that is not a public one."""
    name = host.strip("[]").lower().removesuffix(".")
    try:
        return not ip_address(name).is_global
    except ValueError:
        return "." not in name or name.endswith(_INNER_SUFFIXES)
