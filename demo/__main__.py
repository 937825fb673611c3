"""``python -m demo``: print the demo's base address, then serve until the parent has gone."""

import argparse
import os
import signal
import sys
import threading
import time

from demo.apps import APPS, MAGIC
from demo.release import Release
from demo.server import DemoServer

LOOK_EVERY = 0.25  # seconds
RELEASES = {"1.13": Release.DIFY_1_13, "1.16": Release.DIFY_1_16}


def main() -> None:
    arguments = _parser().parse_args()
    try:
        server = DemoServer(arguments.port, release=RELEASES[arguments.release])
    except OSError as error:
        sys.exit(f"The demo cannot listen on port {arguments.port}: {error.strerror}.")
    if arguments.parent is not None:
        # Ctrl-C reaches the whole terminal; answers under way are the parent's to end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_leave_with, args=(arguments.parent,), daemon=True).start()
    sys.stdout.write(f"{server.base}\n")
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    keys = "\n".join(f"  {key:22} {app.mode}" for key, app in APPS.items())
    words = "\n".join(f"  {word:22} {shows}" for word, shows in MAGIC.items())
    asked = "words in the last line of a question, and what they show"
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="A Dify for trying OpenDify: on loopback, in memory, calling nobody.",
        epilog=f"keys:\n{keys}\n\n{asked}:\n{words}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument(
        "--release", choices=RELEASES, default="1.16", help="the Dify to be; 1.16 by default"
    )
    parser.add_argument("--parent", type=int, metavar="PID", help="end with this process")
    return parser


def _leave_with(parent: int) -> None:
    """End this process when that one has gone, however it went."""
    is_child = os.getppid() == parent
    while os.getppid() == parent if is_child else _is_alive(parent):
        time.sleep(LOOK_EVERY)
    os._exit(0)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
