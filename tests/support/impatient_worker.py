"""The worker, for tests of callers that are too slow."""

from opendify.worker.worker import Worker


class ImpatientWorker(Worker):
    """As an operator's, with less patience."""

    head_timeout = 0.5
