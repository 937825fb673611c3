"""``python -m opendify.deploy VERB``: the work of deploy.sh that is parsing or protocol.

``setup``, ``check`` and ``doctor`` are conversations with the script (``operator``); ``online``,
``probe`` and ``mask`` take their configuration from the environment; ``backup`` and ``restore``
have the data folder mounted and the archive on standard output or input.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from opendify.config.dotenv import check_certificates, read_file
from opendify.config.settings import ConfigError, load_settings
from opendify.deploy import (
    backup,
    doctor,
    online,
    restore,
)
from opendify.deploy.masking import find_secrets, mask
from opendify.deploy.messages import LANGUAGES, message
from opendify.deploy.operator import Aborted, Operator, ScriptGone
from opendify.deploy.probe import Service, probe
from opendify.deploy.setup import SetupOptions, run_setup


def main(arguments: list[str]) -> int:
    """The exit code, from those that deploy.sh documents."""
    given = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = given.run
    try:
        return run(given)
    except (KeyboardInterrupt, BrokenPipeError, ScriptGone):
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m opendify.deploy", allow_abbrev=False)
    parser.add_argument("--lang", choices=LANGUAGES, default="en")
    verbs = parser.add_subparsers(required=True)
    for name in ("setup", "check", "doctor"):
        verb = verbs.add_parser(name)
        verb.set_defaults(run=_run_interactive, verb=name)
        verb.add_argument("--env-file", required=True)
        verb.add_argument("--shown-as", required=True)
        verb.add_argument("--terminal", action="store_true")
        verb.add_argument("--yes", action="store_true")
        if name == "setup":
            _add_setup_options(verb)
    verbs.add_parser("online").set_defaults(run=_online)
    verb = verbs.add_parser("probe")
    verb.add_argument("--ask", action="store_true")
    verb.set_defaults(run=_probe)
    verbs.add_parser("mask").set_defaults(run=_mask)
    verb = verbs.add_parser("backup")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--config", default="")
    verb.set_defaults(run=_backup)
    verb = verbs.add_parser("restore")
    verb.add_argument("task", choices=("look", "put", "undo", "keep"))
    verb.add_argument("folder", type=Path)
    verb.add_argument("--owner", default="")
    verb.set_defaults(run=_restore)
    return parser


def _add_setup_options(verb: argparse.ArgumentParser) -> None:
    for name in ("api-base", "models-file", "port"):
        verb.add_argument(f"--{name}", default="")
    for name in ("model", "key-file"):
        verb.add_argument(f"--{name}", action="append", default=[])


def _run_interactive(given: argparse.Namespace) -> int:
    operator = Operator(given.lang, is_terminal=given.terminal, agrees=given.yes)
    code = 0
    try:
        _run_verb(operator, given)
    except Aborted as exc:
        code = exc.code
    operator.exit(code)
    return code


def _run_verb(operator: Operator, given: argparse.Namespace) -> None:
    if given.verb == "check":
        doctor.send_config(operator, doctor.check_file(operator, given.env_file, given.shown_as))
    elif given.verb == "doctor":
        doctor.examine_file(operator, given.env_file, given.shown_as)
    else:
        run_setup(
            operator,
            SetupOptions(
                env_file=given.env_file,
                shown_as=given.shown_as,
                api_base=given.api_base,
                models=given.model,
                key_files=given.key_file,
                models_file=given.models_file,
                port=given.port,
            ),
        )


def _online(given: argparse.Namespace) -> int:
    worst = 0
    try:
        settings = load_settings(os.environ, read_file, check_certificates)
    except ConfigError as exc:
        sys.stderr.write(f"{exc}\n")
        return 65
    for answer in online.check_all(settings, os.environ):
        detail = (answer.detail,) if answer.kind not in ("good", "callers") else ()
        said = message(given.lang, f"online_{answer.kind}", *detail)
        sys.stdout.write(f"  {answer.model}: {said}\n")
        worst = max(worst, answer.code)
    return worst


def _probe(given: argparse.Namespace) -> int:
    """0 where the API answered, whatever it said."""
    answered = False
    for line in probe(Service.from_environ(os.environ), with_question=given.ask):
        answered |= line.startswith("api ") and line != "api 0"
        sys.stdout.write(f"{line}\n")
    writable = "yes" if os.access("data", os.W_OK) else "no"
    sys.stdout.write(f"writable {writable}\n")
    return 0 if answered else 1


def _mask(given: argparse.Namespace) -> int:
    secrets = find_secrets(os.environ)
    for line in sys.stdin.buffer:
        text = mask(line.decode(errors="replace"), secrets)
        sys.stdout.buffer.write(text.encode())
    return 0


def _backup(given: argparse.Namespace) -> int:
    try:
        data = backup.read_folder(given.folder)
    except backup.InvalidBackup as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    files = {f"data/{path}": content for path, content in data.items()}
    if given.config:
        files[f"config/{Path(given.config).name}"] = sys.stdin.buffer.read()
    backup.write_archive(sys.stdout.buffer, files, time.time())
    sys.stderr.write(f"{len(files)}\n")
    return 0


def _restore(given: argparse.Namespace) -> int:
    try:
        if given.task in ("look", "put"):
            files = backup.read_archive(sys.stdin.buffer)
            if given.task == "put":
                restore.apply(given.folder, files, given.owner)
            sys.stdout.write(f"{len(files)}\n")
        elif given.task == "undo":
            restore.roll_back(given.folder)
        else:
            restore.commit(given.folder)
    except (backup.InvalidBackup, OSError, KeyError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
