"""``python -m opendify.conversations.migrate``: copies the conversations to another store."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from opendify.config.dotenv import load_environment, read_file
from opendify.config.parsing import InvalidValue
from opendify.config.redis_url import parse_store_url, redact_url
from opendify.config.secret_files import FILE_VARIABLES, resolve_secret_files
from opendify.config.settings import ConfigError, data_dir
from opendify.conversations.store import records
from opendify.conversations.store.base import ConversationStore
from opendify.conversations.store.factory import new_redis_connection, new_store_and_locks
from opendify.conversations.store.records import Entries

_BATCH = 500
_SETTING = "CONVERSATION_STORE"
_NO_LIMIT = sys.maxsize

_DESCRIPTION = """\
Copies the conversations of the chats from one store to another: from the JSON file
into Redis, or back. The source is not changed. The branches of a chat that the target
has too are merged, and what was used later counts, so a copy can be repeated, also while
OpenDify runs; what OpenDify writes to the old store meanwhile is copied by the next run.

A store is one of
  file           the JSON file in DATA_DIR (environment or .env)
  setting        the one that CONVERSATION_STORE names (environment or .env): keeps
                 a password off the command line
  redis://...    a Redis server, rediss://... with TLS
"""
_EXAMPLE = "example: python -m opendify.conversations.migrate --from file --to setting"


class MigrationError(Exception):
    """Why nothing, or not everything, was copied."""


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """A store, and its name for messages, without secrets."""

    store: ConversationStore
    name: str


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Returns 0, or 1 where not everything was copied; errors are printed to standard error."""
    chosen = _parser().parse_args(arguments)
    try:
        source = _open(chosen.source, environ, is_source=True)
        target = _open(chosen.target, environ, is_source=False)
        if source.name == target.name:
            raise MigrationError(f"{source.name} is both the source and the target.")
        with closing(source.store), closing(target.store):
            _copy(source, target, chosen.overwrite)
    except MigrationError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m opendify.conversations.migrate",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="source", required=True, metavar="STORE")
    parser.add_argument("--to", dest="target", required=True, metavar="STORE")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the chats that the target has too",
    )
    return parser


def _open(choice: str, environ: Mapping[str, str], is_source: bool) -> StoreLocation:
    if choice == "setting":
        problems: list[str] = []
        variables = {name: environ.get(name, "") for name in (_SETTING, FILE_VARIABLES[_SETTING])}
        choice = resolve_secret_files(variables, read_file, problems).get(_SETTING, "").strip()
        if problems:
            raise MigrationError("\n".join(problems))
        label = _SETTING
    else:
        label = "a store"
    try:
        address = parse_store_url(choice)
    except InvalidValue as exc:
        raise MigrationError(f"{label} {exc}.") from None
    folder = Path(data_dir(environ))
    if is_source and not address and not folder.is_dir():
        raise MigrationError(f"There is no folder {folder}. DATA_DIR says where the JSON file is.")
    store, _ = new_store_and_locks(
        new_redis_connection(address),
        folder,
        clock=time.time,
        max_age_days=None,
        max_entries=_NO_LIMIT,
    )
    return StoreLocation(store, redact_url(address) if address else str(folder.resolve()))


def _copy(source: StoreLocation, target: StoreLocation, overwrite: bool) -> None:
    target.store.adopt({})  # checks that it is writable before anything is read
    target.store.stats()
    _require_available(target, "Nothing was copied.")
    entries = source.store.entries()
    _require_available(source, "Nothing was copied.")
    found = copied = 0
    for batch in _batches(entries):
        found += len(batch)
        adopted = target.store.adopt(batch, overwrite)
        _require_available(target, f"{copied} were copied before; fix that and repeat the command.")
        copied += adopted
    _require_available(source, f"{copied} were copied before; fix that and repeat the command.")
    sys.stdout.write(
        f"{found} mappings in {source.name}: {copied} copied to {target.name}, "
        f"{found - copied} were already there, as new or newer.\n"
    )


def _batches(entries: Iterator[tuple[str, records.ChatRecord]]) -> Iterator[Entries]:
    while batch := dict(islice(entries, _BATCH)):
        yield batch


def _require_available(location: StoreLocation, consequence: str) -> None:
    if not location.store.available:
        raise MigrationError(
            f"{location.name} cannot be used; the line above says why. {consequence}"
        )


def run(arguments: list[str]) -> int:
    """``main`` with the environment of this process, and what ``.env`` adds to it."""
    try:
        load_environment()
    except ConfigError as exc:
        sys.exit(str(exc))
    return main(arguments, os.environ)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
