"""The dashboard and the alert rules ask for metrics, labels and values that a server has."""

import json
import re
from pathlib import Path

import promql_parser
import pytest
import yaml

from serve import monitoring
from serve.metrics import METHODS, Metrics, beta_bucket
from serve.problems import INTERNAL, KINDS

FOLDER = Path(monitoring.__file__).parent
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GRAFANAS = {"$__rate_interval": "5m", "$instance": "localhost:8000"}
PROMETHEUS_LABELS = {"instance", "job", "le"}
VALUES = {
    "code": {kind.code for kind in (*KINDS.values(), INTERNAL)},
    "status": {str(kind.status) for kind in (*KINDS.values(), INTERNAL)} | {"200"},
    "outcome": {"agree", "disagree", "dropped", "ok", "failed"},
    "stage": {"decode", "queue", "inference"},
    "route": {"/classify", "/sweep", "/healthz", "/readyz", "/metrics"},
    "method": METHODS,
}


def expressions():
    yield from (rule["expr"] for rule in RULES)
    for panel in PANELS:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in GRAFANAS.items():
                text = text.replace(name, value)
            yield text


def selectors(node):
    """Every metric that is selected below a node of the parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(node, name, None)
        if child is not None and not isinstance(child, str | int | float):
            yield from selectors(child)
    for child in getattr(node, "args", None) or ():
        yield from selectors(child)


@pytest.fixture(scope="module")
def labels_of():
    """The label names of each series that a server exports."""
    series = {}
    for collector in list(Metrics().registry._collector_to_names):
        for name in collector._get_names() if hasattr(collector, "_get_names") else ():
            series[name] = set(collector._labelnames)
        for metric in collector.collect():
            for suffix in {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",)):
                series[metric.name + suffix] = set(collector._labelnames)
    return series


@pytest.mark.parametrize("expression", list(expressions()))
def test_every_expression_asks_for_what_there_is(labels_of, expression):
    found = list(selectors(promql_parser.parse(expression)))
    assert found
    for selector in found:
        assert selector.name in labels_of, selector.name
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels_of[selector.name] | PROMETHEUS_LABELS
            if matcher.name in VALUES:
                assert set(matcher.value.split("|")) <= VALUES[matcher.name]


@pytest.mark.parametrize("expression", list(expressions()))
def test_what_is_summed_by_is_a_label(labels_of, expression):
    known = PROMETHEUS_LABELS.union(*(labels_of[s.name] for s in selectors(promql_parser.parse(expression))))
    for names in re.findall(r"by \(([^)]*)\)", expression):
        assert {name.strip() for name in names.split(",")} <= known


def test_an_unknown_metric_would_be_found(labels_of):
    (selector,) = selectors(promql_parser.parse("sum(rate(tureen_requests{status='200'}[5m]))"))
    assert selector.name not in labels_of


def test_every_alert_says_what_to_do_and_every_panel_has_a_title():
    for rule in RULES:
        assert {"summary", "description"} == set(rule["annotations"])
        assert rule["labels"]["severity"] in ("page", "ticket")
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["title"] and panel["targets"] for panel in PANELS)


def test_disagreement_is_called_a_signal():
    (panel,) = [panel for panel in PANELS if "disagree" in panel["title"]]
    assert "signal" in panel["description"]


@pytest.mark.parametrize(
    ("beta", "label"),
    [
        (None, "single"),
        (0.0, "0"),
        (0.1, "below 0.25"),
        (0.25, "below 0.5"),
        (0.7, "below 0.75"),
        (0.9, "below 1"),
        (1, "1"),
    ],
)
def test_traffic_is_told_apart_by_buckets_of_beta(beta, label):
    assert beta_bucket(beta) == label
