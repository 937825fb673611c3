"""Socket options and resource limits of the operating system, where it supports them."""

import contextlib
import resource
import socket

_MAX_DESCRIPTORS = 65536


def defer_accept(listener: socket.socket) -> None:
    """Makes accept() wait up to a second for the first bytes of a connection, so that a worker
    accepts it together with its request, and knows whether it has a thread for that. Linux and
    TCP only."""
    option = getattr(socket, "TCP_DEFER_ACCEPT", None)
    if option is not None and listener.family != socket.AF_UNIX:
        listener.setsockopt(socket.IPPROTO_TCP, option, 1)


def raise_descriptor_limit() -> None:
    """Raises the soft limit. A stream needs two descriptors, and many systems start with a soft
    limit of 1024 and a much higher hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def descriptor_limit() -> int:
    """The number of descriptors that this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
