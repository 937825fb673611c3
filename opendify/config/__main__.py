"""``python -m opendify.config``: says whether the configuration is good, and exits 0 or 78."""

import os
import sys

import gunicorn_config
from opendify.config.environment import check_certificates, load_environment, read_file
from opendify.config.settings import ConfigError, load_settings


def main() -> int:
    """Returns 0, or 78 (EX_CONFIG) after naming what is wrong on standard error."""
    try:
        load_environment()
        load_settings(os.environ, read_file, check_certificates, gunicorn_config.parse_host)
    except ConfigError as exc:
        sys.stderr.write(f"{exc}\nSet them in the environment or in .env (see .env.example).\n")
        return 78
    return 0


if __name__ == "__main__":
    sys.exit(main())
