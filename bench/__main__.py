"""OpenDify beside nginx, beside Dify itself, and beside others, in one run.

    bench/run [--quick] [--others FILE] [--only WORD]

The whole run takes about a quarter of an hour and writes docs/performance.md and its picture;
--quick takes one or two minutes, and it and --only write nothing.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trustme

from bench import aside, report, scenarios, store, subjects
from bench.scenarios import SCENARIOS, Result, Scenario
from bench.subjects import Command, Running

# What docs/performance.md recommends for more streams than the defaults carry.
MANY_STREAMS = {"GUNICORN_THREADS": "512"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the few most telling cases")
    parser.add_argument("--others", type=Path, help="a JSON file of further subjects")
    parser.add_argument("--only", default="", help="only cases that have this in their name")
    options = parser.parse_args()
    others = subjects.others(options.others) if options.others else []
    chosen = [scenario for scenario in SCENARIOS if _is_chosen(scenario, options)]
    results: list[Result] = []
    for setting in dict.fromkeys(scenario.setting for scenario in chosen):
        with _all_started(setting, others) as (running, dify):
            for subject in running:
                _complain_of(subject, scenarios.warm_up(subject).errors)
            for scenario in (each for each in chosen if each.setting == setting):
                load = scenario.quick if options.quick and scenario.quick else scenario.load
                results += scenarios.measure(scenario, load, running, dify)
                sys.stdout.write(report.lines_of(results, scenario.name))
                sys.stdout.flush()
    sys.stdout.write(report.ratios(results))
    if options.quick or options.only:
        return
    figures = _asides(others)
    sys.stdout.write(report.aside_table(figures))
    report.write(results, figures, store.rows(1_000_000))


def _is_chosen(scenario: Scenario, options: argparse.Namespace) -> bool:
    return options.only in scenario.name and (not options.quick or scenario.quick is not None)


@contextmanager
def _all_started(setting: str, others: list[Command]) -> Iterator[tuple[list[Running], int]]:
    """Every subject, serving, and the process of the fake Dify behind them."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        certificate = _certificate(folder) if setting == "TLS" else {}
        variables = {"SSL_CERT_FILE": certificate["authority"]} if certificate else {}
        variables |= MANY_STREAMS if setting == "many streams" else {}
        upstream, dify = stack.enter_context(subjects.fake_dify(certificate))
        running = [] if certificate else [subjects.direct(upstream)]
        running.append(stack.enter_context(subjects.nginx(folder, upstream)))
        for subject in [subjects.opendify(folder, variables), *others]:
            authority = certificate.get("authority", "")
            start = subjects.started(subject, upstream, folder, authority)
            running.append(stack.enter_context(start))
        yield running, dify


def _asides(others: list[Command]) -> dict[str, dict[str, float]]:
    """Health under load in milliseconds and memory in KiB, of each subject that starts afresh."""
    figures: dict[str, dict[str, float]] = {}
    with _all_started("default", others) as (running, _):
        for subject in running[1:]:
            scenarios.warm_up(subject)
            told = figures.setdefault(subject.name, {})
            told["KiB per stream"] = aside.memory_per_stream(subject, 20, 420) / 1024
            for path, seconds in aside.health_under_load(subject, 20, 5.0).items():
                told[f"{path} p99 ms"] = seconds * 1000
    return figures


def _certificate(folder: Path) -> Mapping[str, str]:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    paths = {name: str(folder / f"{name}.pem") for name in ("authority", "chain", "key")}
    authority.cert_pem.write_to_path(paths["authority"])
    Path(paths["chain"]).write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(paths["key"])
    return paths


def _complain_of(subject: Running, errors: list[str]) -> None:
    if errors:
        sys.exit(f"{subject.name} does not answer: {', '.join(sorted(set(errors)))}")


if __name__ == "__main__":
    main()
