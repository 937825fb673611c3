"""The log: to standard output, and to LOG_FILE as well, with what Gunicorn logs."""

import logging
import sys
from logging.handlers import WatchedFileHandler
from pathlib import Path

GUNICORN_LOGGERS = ("gunicorn.error", "gunicorn.access")
FORMAT = "%(asctime)s - %(levelname)s - %(name)s - %(message)s"


def configure_logging(level: str, file: str) -> None:
    """Sets the level of our own loggers; those of the libraries stay at warnings.

    ``file`` is empty for none. Rotation may move the file away at any time: it is opened anew.
    """
    logging.basicConfig(level=logging.WARNING, format=FORMAT, stream=sys.stdout)
    ours = logging.getLogger("opendify")
    ours.setLevel(level.upper())
    if file and not ours.handlers:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        for logger in (ours, *map(logging.getLogger, GUNICORN_LOGGERS)):
            handler = WatchedFileHandler(file, delay=True)
            handler.setFormatter(logging.Formatter(FORMAT))
            logger.addHandler(handler)
