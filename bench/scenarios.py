"""The cases, and how one of them is measured."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import uvloop

from bench import processes
from bench.load import Load, Seen, middle, run, worst
from bench.subjects import Running


@dataclass(frozen=True)
class Scenario:
    """A load under a name. ``setting`` says how the subjects are set up for it."""

    name: str
    load: Load
    quick: Load | None = None
    setting: str = "default"
    repeats: int = 3


SCENARIOS = (
    Scenario("blocking, 1 caller", Load(1, 10, rounds=200, streamed=False)),
    Scenario(
        "blocking, 16 callers",
        Load(16, 10, rounds=25, streamed=False),
        Load(16, 10, rounds=12, streamed=False),
    ),
    Scenario("blocking, 64 callers", Load(64, 10, rounds=8, streamed=False)),
    Scenario("burst, 16 streams", Load(16, 2000, rounds=4), Load(16, 2000, rounds=2)),
    Scenario("burst, 16 streams, Chinese", Load(16, 2000, rounds=4, in_chinese=True)),
    Scenario("10 streams at once x 20 ms", Load(10, 100, 20, rounds=2), Load(10, 100, 20)),
    Scenario(
        "50 streams x 20 ms", Load(50, 100, 20, rounds=3, ramp=1), Load(50, 100, 20, 2, ramp=1)
    ),
    Scenario("100 streams x 20 ms", Load(100, 250, 20, ramp=1)),
    Scenario("500 streams x 20 ms", Load(500, 250, 20, ramp=3), repeats=1),
    Scenario("one answer of 90 s", Load(1, 90, 1000), repeats=1),
    Scenario("burst, 16 streams, TLS", Load(16, 2000, rounds=4), setting="TLS"),
    Scenario("50 streams x 20 ms, TLS", Load(50, 100, 20, rounds=3, ramp=1), setting="TLS"),
    Scenario(
        "2000 streams x 400 ms", Load(2000, 25, 400, ramp=6), setting="many streams", repeats=1
    ),
)

WARM_UP = Load(32, 5, rounds=4)


@dataclass
class Result:
    """One subject in one scenario; CPU in microseconds, times in seconds, shares in cores."""

    scenario: str
    subject: str
    cpu_per_unit: float
    unit: str
    first: float
    late: float
    late_worst: float
    whole: float
    answers: int
    errors: list[str] = field(default_factory=list)
    dify_share: float = 0.0


def measure(scenario: Scenario, load: Load, subjects: Sequence[Running], dify: int) -> list[Result]:
    """All subjects in turn, as often as the scenario repeats; the middle of each figure."""
    repeats = 1 if load is not scenario.load else scenario.repeats
    runs: dict[str, list[Result]] = {}
    for _ in range(repeats):
        for subject in subjects:
            result = _measure_once(scenario.name, load, subject, dify)
            runs.setdefault(subject.name, []).append(result)
    return [_middle_of(results) for results in runs.values()]


def warm_up(subject: Running) -> Seen:
    """Makes a subject do once what it does only once."""
    return uvloop.run(run(WARM_UP, subject.door))


def _measure_once(name: str, load: Load, subject: Running, dify: int) -> Result:
    began, dify_before = time.monotonic(), processes.cpu_seconds(dify)
    before = processes.cpu_seconds(subject.pid) if subject.pid else 0.0
    seen = uvloop.run(run(load, subject.door))
    took = time.monotonic() - began
    used = processes.cpu_seconds(subject.pid) - before if subject.pid else 0.0
    units = seen.tokens if load.streamed else seen.answers
    return Result(
        scenario=name,
        subject=subject.name,
        cpu_per_unit=used / units * 1e6 if units else float("nan"),
        unit="token" if load.streamed else "request",
        first=middle(seen.first),
        late=middle(list(seen.late)) if load.pause_ms else float("nan"),
        late_worst=worst(seen.late) if load.pause_ms else float("nan"),
        whole=middle(seen.whole),
        answers=seen.answers,
        errors=seen.errors,
        dify_share=(processes.cpu_seconds(dify) - dify_before) / took,
    )


def _middle_of(results: list[Result]) -> Result:
    first = results[0]
    figures = {
        name: median(getattr(result, name) for result in results)
        for name in ("cpu_per_unit", "first", "late", "late_worst", "whole", "dify_share")
    }
    return Result(
        scenario=first.scenario,
        subject=first.subject,
        unit=first.unit,
        answers=sum(result.answers for result in results),
        errors=[error for result in results for error in result.errors],
        **figures,
    )
