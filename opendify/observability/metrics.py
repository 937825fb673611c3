"""The metrics of an instance, summed over its processes.

Label values come from the configuration or from constants, never from a request, so their number is
bounded.
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
    """A gauge whose values, by label values, are read when metrics are requested."""

    name: str
    help: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]


class Instruments:
    """The metrics. Each attribute is called with label values and returns the child metric, cached
    because prometheus_client's lookup takes longer than counting."""

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
    """Counts in files that all processes of the instance share. Each process opens its files at its
    first count. If they cannot be created, nothing is counted and nothing fails. ``models`` is the
    number of models, each of which needs space in the files."""

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
        """Does not open the files: the application logs while it is imported, before there are
        workers."""
        if self._instruments and self._pid == os.getpid():
            self._instruments.log_messages(room, level).inc()

    def exposition(self, readings: Iterable[Reading]) -> bytes:
        """All metrics, with these readings, in Prometheus text format."""
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
            self._pid = os.getpid()  # last: until then nothing is counted


class LogCounter(logging.Handler):
    """Counts warnings and errors of OpenDify's loggers by top-level package (label ``room``)."""

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


def _counter(name: str, help_text: str, *labels: str) -> Callable[..., Counter]:
    return _cached_labels(Counter(f"{PREFIX}_{name}", help_text, labels, registry=None))


def _histogram(
    name: str, help_text: str, buckets: tuple[float, ...], *labels: str
) -> Callable[..., Histogram]:
    return _cached_labels(
        Histogram(f"{PREFIX}_{name}", help_text, labels, buckets=buckets, registry=None)
    )


def _cached_labels(instrument: T) -> Callable[..., T]:
    return cache(instrument.labels)
