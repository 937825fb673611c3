"""``python -m opendify.conversations.transfer``: the earlier name of ``migrate``."""

import sys

from opendify.conversations.migrate import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
