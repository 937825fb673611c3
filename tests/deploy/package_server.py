"""Runs ``python -m opendify.deploy`` in forks of a process that has imported it already: to start
Python and import the package takes longer than most calls of it.

Standard input is a socket (SOCK_SEQPACKET). A message on it asks for one run: a JSON object with
``arguments``, ``environment`` and ``folder``, and with it four descriptors: the run's standard
input, output and error, and a socket on which its exit code is sent. This ends with the socket.
"""

import json
import os
import socket
import sys
from typing import Any, NoReturn

from opendify.deploy.__main__ import main

MAX_MESSAGE = 1 << 20


def serve(requests: socket.socket) -> None:
    runs: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, MAX_MESSAGE, 4)
        if not message:
            break
        if (pid := os.fork()) == 0:
            requests.close()
            run(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        runs.add(pid)
        runs -= {one for one in runs if os.waitpid(one, os.WNOHANG)[0]}
    for pid in runs:
        os.waitpid(pid, 0)


def run(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """One run, in a process of its own."""
    with socket.socket(fileno=descriptors[3]) as reply:
        for standard, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv[1:] = request["arguments"]
        reply.sendall(str(exit_code()).encode())
    os._exit(0)


def exit_code() -> int:
    """What the interpreter would make of the end of the program."""
    try:
        code = main(sys.argv[1:])
    except SystemExit as ended:  # of argparse
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 (shown as the interpreter would)
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    serve(socket.socket(fileno=os.dup(0)))
