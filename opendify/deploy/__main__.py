"""``python -m opendify.deploy VERB``: the parsing and protocol work of deploy.sh.

The verbs in ``_DIALOGS`` talk to the script (see ``operator``). ``online``, ``probe`` and ``mask``
take their configuration from the environment. ``backup`` and ``restore`` have the data directory
mounted and the archive on standard output or input.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from opendify.config.dotenv import check_certificates, read_file
from opendify.config.settings import ConfigError, load_settings
from opendify.deploy import (
    backup,
    doctor,
    online,
    restore,
    status,
)
from opendify.deploy.masking import find_secrets, mask
from opendify.deploy.messages import LANGUAGES, message
from opendify.deploy.operator import Aborted, Operator, ScriptGone
from opendify.deploy.plan import InvalidAddress, PlanOptions, make_plan
from opendify.deploy.probe import Service, probe
from opendify.deploy.setup import SetupOptions, run_setup


def main(arguments: list[str]) -> int:
    """Returns an exit code as documented by deploy.sh."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (KeyboardInterrupt, BrokenPipeError, ScriptGone):
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m opendify.deploy", allow_abbrev=False)
    parser.add_argument("--lang", choices=LANGUAGES, default="en")
    verbs = parser.add_subparsers(required=True)
    for name in _DIALOGS:
        _add_dialog(verbs.add_parser(name), name)
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


def _add_dialog(verb: argparse.ArgumentParser, name: str) -> None:
    verb.set_defaults(run=_run_dialog, verb=name, terminal=False, yes=False)
    if name == "status":
        verb.add_argument("--form", choices=("words", "table", "json"), required=True)
        verb.add_argument("names", nargs="*")
    elif name == "doctor-container":
        verb.add_argument("name")
    else:
        verb.add_argument("--env-file", required=True)
        verb.add_argument("--shown-as", required=True)
    if name == "setup":
        verb.add_argument("--terminal", action="store_true")
        verb.add_argument("--yes", action="store_true")
        for option in ("api-base", "models-file", "port"):
            verb.add_argument(f"--{option}", default="")
        for option in ("model", "key-file"):
            verb.add_argument(f"--{option}", action="append", default=[])
    if name == "plan":
        for field in fields(PlanOptions):
            verb.add_argument(f"--{field.name}", default="")


def _run_dialog(options: argparse.Namespace) -> int:
    operator = Operator(options.lang, is_terminal=options.terminal, assume_yes=options.yes)
    try:
        code = _DIALOGS[options.verb](operator, options)
    except Aborted as exc:
        code = exc.code
    operator.exit(code)
    return code


def _setup(operator: Operator, options: argparse.Namespace) -> int:
    run_setup(
        operator,
        SetupOptions(
            env_file=options.env_file,
            shown_as=options.shown_as,
            api_base=options.api_base,
            models=options.model,
            key_files=options.key_file,
            models_file=options.models_file,
            port=options.port,
        ),
    )
    return 0


def _check(operator: Operator, options: argparse.Namespace) -> int:
    checked = doctor.check_file(operator, options.env_file, options.shown_as)
    operator.write_file(checked.raw)
    operator.say("check_good", options.shown_as, len(checked.settings.models))
    return 0


def _plan(operator: Operator, options: argparse.Namespace) -> int:
    checked = doctor.check_file(operator, options.env_file, options.shown_as)
    names = [field.name for field in fields(PlanOptions)]
    try:
        plan = make_plan(checked, PlanOptions(**{name: getattr(options, name) for name in names}))
    except InvalidAddress as exc:
        raise operator.abort(65, "bad_value", exc.source, exc.text) from None
    if plan.is_local_only:
        operator.warn("local_only")
    for name in ("bind", "port", "memory", "pids", "stop", "digest"):
        operator.set_fact(name, getattr(plan, name))
    operator.write_file(plan.raw)
    return 0


def _doctor(operator: Operator, options: argparse.Namespace) -> int:
    doctor.examine_file(operator, options.env_file, options.shown_as)
    return 0


def _doctor_container(operator: Operator, options: argparse.Namespace) -> int:
    doctor.examine_container(operator, status.parse(operator.survey(options.name)))
    return 0


def _status(operator: Operator, options: argparse.Namespace) -> int:
    """0 if all are healthy, else 3."""
    found = [status.parse(operator.survey(name)) for name in options.names]
    if options.form == "table":
        operator.line(status.HEADER)
    for one in found:
        if options.form == "table":
            operator.line(status.write_row(one, datetime.now(UTC)))
        elif options.form == "json":
            operator.line(status.write_json(one))
        else:
            for line in status.describe(one, operator.language):
                operator.say_line(line)
    return 0 if all(one.is_healthy for one in found) else 3


_DIALOGS: dict[str, Callable[[Operator, argparse.Namespace], int]] = {
    "setup": _setup,
    "check": _check,
    "plan": _plan,
    "doctor": _doctor,
    "doctor-container": _doctor_container,
    "status": _status,
}


def _online(options: argparse.Namespace) -> int:
    exit_code = 0
    try:
        settings = load_settings(os.environ, read_file, check_certificates)
    except ConfigError as exc:
        sys.stderr.write(f"{exc}\n")
        return 65
    for result in online.check_all(settings, os.environ):
        detail = (result.detail,) if result.kind not in ("good", "callers") else ()
        text = message(options.lang, f"online_{result.kind}", *detail)
        sys.stdout.write(f"  {result.model}: {text}\n")
        exit_code = max(exit_code, result.code)
    return exit_code


def _probe(options: argparse.Namespace) -> int:
    """0 if the API answered, with any status."""
    answered = False
    for line in probe(Service.from_environ(os.environ), with_question=options.ask):
        answered |= line.startswith("api ") and line != "api 0"
        sys.stdout.write(f"{line}\n")
    writable = "yes" if os.access("data", os.W_OK) else "no"
    sys.stdout.write(f"writable {writable}\n")
    return 0 if answered else 1


def _mask(options: argparse.Namespace) -> int:
    secrets = find_secrets(os.environ)
    for line in sys.stdin.buffer:
        text = mask(line.decode(errors="replace"), secrets)
        sys.stdout.buffer.write(text.encode())
    return 0


def _backup(options: argparse.Namespace) -> int:
    try:
        data = backup.read_folder(options.folder)
    except backup.InvalidBackup as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    files = {f"data/{path}": content for path, content in data.items()}
    if options.config:
        files[f"config/{Path(options.config).name}"] = sys.stdin.buffer.read()
    backup.write_archive(sys.stdout.buffer, files, time.time())
    sys.stderr.write(f"{len(files)}\n")
    return 0


def _restore(options: argparse.Namespace) -> int:
    try:
        if options.task in ("look", "put"):
            files = backup.read_archive(sys.stdin.buffer)
            if options.task == "put":
                restore.apply(options.folder, files, options.owner)
            sys.stdout.write(f"{len(files)}\n")
        elif options.task == "undo":
            restore.roll_back(options.folder)
        else:
            restore.commit(options.folder)
    except (backup.InvalidBackup, OSError, KeyError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
