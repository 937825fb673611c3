"""The benchmark runs; what it measures is no test's business."""

from dataclasses import replace
from pathlib import Path

from bench import report, subjects
from bench.load import Load
from bench.scenarios import Scenario, measure


def test_every_subject_gives_every_token_in_a_tiny_run(tmp_path: Path) -> None:
    paced = Scenario("paced", Load(2, 5, 5, in_chinese=True), repeats=1)
    blocking = Scenario("blocking", Load(2, 5, rounds=2, streamed=False), repeats=1)
    with (
        subjects.fake_dify() as (upstream, dify),
        subjects.started(
            subjects.opendify(tmp_path, {"GUNICORN_WORKERS": "1"}), upstream, tmp_path
        ) as opendify,
    ):
        running = [subjects.direct(upstream), opendify]
        results = [
            result
            for scenario in (paced, blocking)
            for result in measure(scenario, scenario.load, running, dify)
        ]
    assert [result.errors for result in results] == [[], [], [], []]
    assert [result.answers for result in results] == [2, 2, 4, 4]
    assert "OpenDify" in report.lines_of(results, "paced")
    assert "blocking" in report.ratios(results)


def test_each_copy_of_a_token_must_come(tmp_path: Path) -> None:
    load = Load(1, 3, 1)
    with subjects.fake_dify() as (upstream, dify):
        told_once = subjects.direct(upstream)
        doubled = replace(told_once, door=replace(told_once.door, copies=2))
        (result,) = measure(Scenario("doubled", load, repeats=1), load, [doubled], dify)
    assert (result.answers, result.errors) == (0, ["1.5 of 3 tokens"])


def test_an_answer_that_is_cut_counts_as_an_error(tmp_path: Path) -> None:
    load = Load(1, 3, 1)
    with subjects.fake_dify() as (upstream, dify):
        whole = subjects.direct(upstream)
        wrong = subjects.Running(
            "wrong", subjects.Door(whole.door.port, "/info", {}, lambda *asked: {})
        )
        (result,) = measure(Scenario("wrong", load, repeats=1), load, [wrong], dify)
    assert (result.answers, result.errors) == (0, ["no last event"])
