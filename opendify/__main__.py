"""The command ``opendify``, also ``python -m opendify``."""

import argparse
import os
import sys

from opendify import __version__
from opendify.config.__main__ import main as check
from opendify.config.__main__ import server_folder
from opendify.conversations import migrate

_ABOUT = """\
An OpenAI-compatible proxy in front of Dify apps. Settings come from the environment
and from .env in the current directory, which also contains data/.
"""


def main() -> int:
    """Runs the chosen command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "opendify", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("serve", help="start the server; further arguments go to Gunicorn")
    commands.add_parser("check", help="check that the configuration is complete and valid")
    commands.add_parser("transfer", help="copy the conversations to another store", add_help=False)
    commands.add_parser("version", help="print the version")
    chosen, rest = parser.parse_known_args()
    if rest and chosen.command not in ("serve", "transfer"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    match chosen.command:
        case "serve":
            return _serve(rest)
        case "check":
            return check()
        case "transfer":
            return migrate.run(rest)
    sys.stdout.write(f"{__version__}\n")
    return 0


def _serve(arguments: list[str]) -> int:
    """Replaces this process with Gunicorn, so that signals reach it."""
    if status := check():
        return status
    folder = server_folder()
    config = ["--config", str(folder / "gunicorn_config.py"), "--pythonpath", str(folder)]
    command = [sys.executable, "-m", "gunicorn", *config, *arguments, "main:app"]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    sys.exit(main())
