"""``python -m opendify.config``: checks the configuration and exits with 0 or 78."""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from opendify.config.dotenv import check_certificates, load_environment, read_file
from opendify.config.settings import ConfigError, load_settings


def main() -> int:
    """Returns 0, or 78 (EX_CONFIG) after printing the problems to standard error."""
    try:
        load_environment()
        load_settings(os.environ, read_file, check_certificates, _parse_host())
    except ConfigError as exc:
        sys.stderr.write(f"{exc}\nSet them in the environment or in .env (see .env.example).\n")
        return 78
    return 0


def server_folder() -> Path:
    """Where main.py and gunicorn_config.py are: next to the package, or inside it if it was
    installed from a wheel."""
    package = Path(__file__).parent.parent
    installed = package / "_server"
    return installed if installed.is_dir() else package.parent


def _parse_host() -> Callable[[str], str]:
    """The function of gunicorn_config.py, which an installed package cannot import."""
    server = runpy.run_path(str(server_folder() / "gunicorn_config.py"))
    parse: Callable[[str], str] = server["parse_host"]
    return parse


if __name__ == "__main__":
    sys.exit(main())
