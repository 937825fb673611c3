"""The figures for people: lines while it runs, the table, the picture."""

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.scenarios import Result
from bench.store import COLUMNS as STORE_COLUMNS
from bench.subjects import ROOT

PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "performance.svg"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
COLUMNS = (
    "case",
    "subject",
    "CPU µs",
    "× nginx",
    "first ms",
    "late ms p50 / p99",
    "whole s",
    "answers",
    "errors",
)


def lines_of(results: Sequence[Result], scenario: str) -> str:
    """The rows of one case, as wide as a terminal."""
    widths = (28, 14, 18, 7, 9, 17, 8, 7, 20)
    rows = [row for row in _rows(results) if row[0] == scenario]
    return "".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + "\n"
        for row in rows
    )


def ratios(results: Sequence[Result]) -> str:
    """What the aims are about: each subject against nginx and against the others."""
    lines = ["\nCPU against OpenDify's (below 1 is cheaper):\n"]
    for scenario in dict.fromkeys(result.scenario for result in results):
        told = {r.subject: r.cpu_per_unit for r in results if r.scenario == scenario}
        ours = told.get("OpenDify", 0.0)
        against = [
            f"{name} {cpu / ours:.2f}"
            for name, cpu in told.items()
            if cpu and ours and name != "OpenDify"
        ]
        lines.append(f"  {scenario:<28}  {', '.join(against)}\n")
    return "".join([*lines, _how_busy_dify_was(results)])


def aside_table(figures: dict[str, dict[str, float]]) -> str:
    """Health under load and memory, as a table."""
    names = list(dict.fromkeys(name for told in figures.values() for name in told))
    rows = [
        [subject, *(f"{told[name]:.1f}" if name in told else "" for name in names)]
        for subject, told in figures.items()
    ]
    return _table(["subject", *names], rows)


def write(
    results: Sequence[Result],
    figures: dict[str, dict[str, float]],
    store: Iterable[Sequence[float]],
) -> None:
    """Puts the tables into docs/performance.md, between their marks, and draws the picture."""
    store_rows = [[f"{value:,.1f}" for value in row] for row in store]
    measured = "\n".join(
        [
            BEGIN,
            f"\nMeasured on {machine()}. {_how_busy_dify_was(results)}",
            _table(COLUMNS, _rows(results)),
            aside_table(figures),
            _table(STORE_COLUMNS, store_rows),
            END,
        ]
    )
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + measured + rest.partition(END)[2], encoding="utf-8")
    _draw(results)


def machine() -> str:
    """What this runs on, without names."""
    cores = len([line for line in _cpuinfo() if line.startswith("processor")])
    models = [line.partition(":")[2].strip() for line in _cpuinfo() if "model name" in line]
    model = models[0] if models else platform.machine()
    return f"{cores} cores ({model}), Linux {platform.release().split('-')[0]}, Python " + (
        platform.python_version()
    )


def _how_busy_dify_was(results: Sequence[Result]) -> str:
    busiest = max((result.dify_share for result in results), default=0.0)
    return f"The fake Dify was never busier than {busiest:.0%} of one core.\n"


def _rows(results: Sequence[Result]) -> list[list[str]]:
    nginx = {r.scenario: r.cpu_per_unit for r in results if r.subject == "nginx"}
    return [_row(result, nginx.get(result.scenario, 0.0)) for result in results]


def _row(result: Result, nginx: float) -> list[str]:
    cpu = result.cpu_per_unit
    late = f"{result.late * 1e3:.2f} / {result.late_worst * 1e3:.1f}"
    kinds = ", ".join(f"{result.errors.count(kind)} {kind}" for kind in sorted({*result.errors}))
    return [
        result.scenario,
        result.subject,
        f"{cpu:.2f} per {result.unit}" if cpu else "",
        f"{cpu / nginx:.1f}" if cpu and nginx else "",
        f"{result.first * 1e3:.1f}",
        late if result.late == result.late else "",
        f"{result.whole:.3f}",
        str(result.answers),
        kinds or "none",
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _draw(results: Sequence[Result]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "opendify"
    from matplotlib import pyplot

    names = list(dict.fromkeys(result.scenario for result in results))
    subjects = list(dict.fromkeys(result.subject for result in results if result.cpu_per_unit))
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(names) + 1))
    height = 0.8 / max(1, len(subjects))
    for number, subject in enumerate(subjects):
        cpu = {r.scenario: r.cpu_per_unit for r in results if r.subject == subject}
        places = [place + number * height for place in range(len(names))]
        bars = axes.barh(places, [cpu.get(name, 0.0) for name in names], height, label=subject)
        axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=7)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("CPU µs per token, or per request where blocking")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()
