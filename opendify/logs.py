"""The application's log: to standard output, and to LOG_FILE as well."""

import logging
from logging.handlers import WatchedFileHandler
from pathlib import Path

FORMAT = "%(asctime)s - %(levelname)s - %(name)s - %(message)s"


def configure_logging(level: str, file: str) -> None:
    """Sets the level of our own loggers; those of the libraries stay at warnings.

    ``file`` is empty for none. Rotation may move the file away at any time: it is opened anew.
    """
    logging.basicConfig(level=logging.WARNING, format=FORMAT)
    ours = logging.getLogger("opendify")
    ours.setLevel(level.upper())
    if file and not ours.handlers:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        handler = WatchedFileHandler(file, delay=True)
        handler.setFormatter(logging.Formatter(FORMAT))
        ours.addHandler(handler)
