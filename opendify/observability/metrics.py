"""The metrics of an instance, added up over its processes.

Labels are taken from what the operator has configured and from words of our own, never from a
request: so their number is bounded.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from opendify import __version__
from opendify.observability.multiprocess_dir import current_dir, join_dir, shared_lock
from opendify.observability.record import Record

FIRST_BYTE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 35, 60)
ANSWER_BUCKETS = (0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)

T = TypeVar("T", Counter, Gauge, Histogram)

PREFIX = "opendify"
CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True)
class Reading:
    """A gauge that is read at the moment when somebody asks: its values by those of its labels."""

    name: str
    help: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]


class Instruments:
    """What is counted, each kind of it with its labels: called with their values, it gives the one
    instrument of these, kept since prometheus_client takes longer to find it than to count."""

    def __init__(self) -> None:
        self.requests = _counter(
            "requests", "Requests, by route, model and how they ended.", "route", "model", "outcome"
        )
        self.upstream_errors = _counter(
            "upstream_errors", "Requests that failed because of Dify.", "model", "kind"
        )
        self.tokens = _counter("tokens", "Tokens that Dify has counted.", "model", "kind")
        self.stops = _counter("stops", "Runs that were stopped in Dify.", "model")
        self.log_messages = _counter(
            "log_messages", "Warnings and errors in the log.", "room", "level"
        )
        self.first_byte = _histogram(
            "first_byte_seconds",
            "From a request to the first byte of its streamed answer.",
            FIRST_BYTE_BUCKETS,
            "model",
        )
        self.answer = _histogram(
            "answer_seconds",
            "From a request to the end of its answer, where that is complete.",
            ANSWER_BUCKETS,
            "model",
        )
        self.streams_open = _cached_labels(
            Gauge(
                f"{PREFIX}_streams_open",
                "Streamed answers that are under way.",
                ["model"],
                multiprocess_mode="livesum",
                registry=None,
            )
        )


class Metrics:
    """Counts in files that all processes of the instance share. Opens them at the first count,
    and anew in each process. Where there is no place for them nothing is counted, and nothing
    fails. ``models`` is how many there are, each of which needs some place."""

    def __init__(self, models: int) -> None:
        self._models = models
        self._instruments: Instruments | None = None
        self._pid = 0
        self._opening = threading.Lock()

    def stream_began(self, record: Record) -> None:
        if counted := self._opened():
            counted.streams_open(record.model).inc()

    def request_ended(self, record: Record) -> None:
        counted = self._opened()
        if counted is None:
            return
        counted.requests(record.route, record.model, record.ended).inc()
        if record.is_upstream_error:
            counted.upstream_errors(record.model, record.ended).inc()
        if record.was_answered:
            _count_answer(counted, record)
        if record.is_streaming:
            counted.streams_open(record.model).dec()

    def run_stopped(self, model: str) -> None:
        if counted := self._opened():
            counted.stops(model).inc()

    def logged(self, room: str, level: str) -> None:
        """Opens nothing: the application logs while it is imported, before there are workers."""
        if self._instruments and self._pid == os.getpid():
            self._instruments.log_messages(room, level).inc()

    def exposition(self, readings: Iterable[Reading]) -> bytes:
        """All of it, with these readings, in Prometheus's text format."""
        registry = CollectorRegistry()
        registry.register(_Readings(list(readings)))
        self._opened()
        folder = current_dir()
        if folder is None:
            return generate_latest(registry)
        MultiProcessCollector(registry, str(folder))
        with shared_lock(folder):
            return generate_latest(registry)

    def _opened(self) -> Instruments | None:
        if self._pid != os.getpid():
            with self._opening:
                self._open()
        return self._instruments

    def _open(self) -> None:
        if self._pid != os.getpid():
            self._instruments = Instruments() if join_dir(self._models) else None
            self._pid = os.getpid()  # last: what is not open yet counts nothing


class LogCounter(logging.Handler):
    """Counts the warnings and errors of our own loggers, by the room that they are from."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(logging.WARNING)
        self._metrics = metrics

    def emit(self, record: logging.LogRecord) -> None:
        room = record.name.removeprefix("opendify.").partition(".")[0]
        self._metrics.logged(room, record.levelname.lower())


class _Readings:
    def __init__(self, readings: list[Reading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        version = GaugeMetricFamily(f"{PREFIX}_build_info", "What runs.", labels=["version"])
        version.add_metric([__version__], 1)
        yield version
        for reading in self._readings:
            name = f"{PREFIX}_{reading.name}"
            family = GaugeMetricFamily(name, reading.help, labels=reading.labels)
            for labels, value in reading.values.items():
                family.add_metric(labels, value)
            yield family


def _count_answer(counted: Instruments, record: Record) -> None:
    counted.answer(record.model).observe(record.seconds)
    if record.is_streaming and record.seconds_to_first_byte is not None:
        counted.first_byte(record.model).observe(record.seconds_to_first_byte)
    for kind, tokens in record.tokens.items():
        counted.tokens(record.model, kind).inc(tokens)


def _counter(name: str, told: str, *labels: str) -> Callable[..., Counter]:
    return _cached_labels(Counter(f"{PREFIX}_{name}", told, labels, registry=None))


def _histogram(
    name: str, told: str, buckets: tuple[float, ...], *labels: str
) -> Callable[..., Histogram]:
    return _cached_labels(
        Histogram(f"{PREFIX}_{name}", told, labels, buckets=buckets, registry=None)
    )


def _cached_labels(instrument: T) -> Callable[..., T]:
    return cache(instrument.labels)
