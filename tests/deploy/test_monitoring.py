"""The dashboard and the alert rules ask for what there is."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask.testing import FlaskClient

from opendify import errors
from opendify.observability.metrics import Metrics
from opendify.observability.record import CLIENT_DISCONNECTED, OK
from tests.deploy.test_manifests import run
from tests.support.fake_dify import CLOSE, Chat, FakeDify, streamed
from tests.support.programs import require_program
from tests.support.service import ROOT
from tests.test_docs import all_errors, rows
from tests.test_web import post

MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
DOCUMENT = (ROOT / "docs" / "monitoring.md").read_text()

# A metric, with the labels that are asked for.
SELECTOR = re.compile(r"\b(opendify_\w+)(?:\{([^}]*)\})?")
GIVEN_BY_PROMETHEUS = {"instance", "job", "alertname"}

Series = dict[str, set[str]]


def expressions() -> Iterator[str]:
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    yield from (one["query"]["query"] for one in DASHBOARD["templating"]["list"][1:])
    yield from (rule["expr"] for rule in ALERTS)


EXPRESSIONS = list(expressions())


@pytest.fixture
def exposed(api: FlaskClient, dify: FakeDify) -> Series:
    """All that an instance tells after it has seen everything: names, and the labels of each."""
    dify.answers = [[*streamed(Chat().text("Hal"))[:-1], CLOSE]]
    post(api, stream=True)
    post(api, stream=True)
    metrics = Metrics(1)
    metrics.run_stopped("tiny")
    metrics.logged("web", "warning")
    deadline = time.monotonic() + 10
    while "opendify_dify_up{" not in (text := api.get("/metrics").text):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found: Series = {}
    for name, labels in re.findall(r"^(opendify_\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def test_the_expressions_are_of_metrics_and_labels_that_there_are(exposed: Series) -> None:
    assert len(EXPRESSIONS) > 25
    for expression in EXPRESSIONS:
        known: set[str] = set()
        for name, selected in SELECTOR.findall(expression):
            assert name in exposed, f"{name} in {expression}"
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selected))
            assert labels <= exposed[name] | GIVEN_BY_PROMETHEUS, expression
            known |= exposed[name]
        grouped = re.findall(r"\bby \(([^)]*)\)", expression)
        wanted = {label.strip() for labels in grouped for label in labels.split(",")}
        assert wanted <= known | GIVEN_BY_PROMETHEUS, expression


def test_outcomes_that_are_asked_for_can_come() -> None:
    codes = {error.default_code for error in all_errors(errors.OpenDifyError)} | {
        OK,
        CLIENT_DISCONNECTED,
    }
    asked = {code for text in EXPRESSIONS for code in re.findall(r'outcome!?="([^"]*)"', text)}
    assert asked and asked <= codes


def test_the_document_describes_every_metric_with_its_labels(exposed: Series) -> None:
    told = {
        cells[0].strip("`"): set(re.findall(r"`(\w+)`", cells[1]))
        for cells in rows(DOCUMENT)
        if cells[0].startswith("`opendify_")
    }
    suffixes = re.compile("_(bucket|sum|count)$")
    there: Series = {}
    for name, labels in exposed.items():
        there.setdefault(suffixes.sub("", name), set()).update(labels - {"le"})
    assert told == there


def test_every_metric_is_looked_at(exposed: Series) -> None:
    shown = {name for text in EXPRESSIONS for name, _ in SELECTOR.findall(text)}
    shown = {re.sub("_bucket$", "", name) for name in shown}
    assert shown == {re.sub("_(bucket|sum|count)$", "", name) for name in exposed}


def test_panels_do_not_lie_on_one_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert x < 24 and (x, y) not in taken, panel["title"]
                taken[x, y] = panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_says_what_to_do() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "action"}


def test_prometheus_takes_the_rules_and_they_alert_when_they_should() -> None:
    run(require_program("promtool"), "check", "rules", MONITORING / "alerts.yml")
    run(require_program("promtool"), "test", "rules", ROOT / "tests" / "deploy" / "alerts_test.yml")


def test_every_alert_is_tried() -> None:
    tried = (ROOT / "tests" / "deploy" / "alerts_test.yml").read_text()
    for rule in ALERTS:
        assert f'alertname="{rule["alert"]}"' in tried


@pytest.mark.parametrize("expression", [e for e in EXPRESSIONS if "$__r" in e])
def test_prometheus_takes_what_the_dashboard_asks(expression: str, tmp_path: Path) -> None:
    asked = expression.replace("$__rate_interval", "5m").replace("$__range", "6h")
    rule: dict[str, Any] = {"record": "tried:it", "expr": asked}
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "tried", "rules": [rule]}]}))
    run(require_program("promtool"), "check", "rules", path)


def test_what_is_exposed_is_sound(api: FlaskClient) -> None:
    post(api)
    text = api.get("/metrics").text
    said = run(require_program("promtool"), "check", "metrics", input=text)
    assert said == ""


def test_the_document_describes_every_alert() -> None:
    told = [cells[0].strip("`") for cells in rows(DOCUMENT) if cells[0].startswith("`OpenDify")]
    assert told == [rule["alert"] for rule in ALERTS]
