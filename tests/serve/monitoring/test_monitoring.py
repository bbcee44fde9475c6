"""The dashboard and the alert rules query only metrics, labels and values that a running server exposes."""

import io
import json
import re
from importlib.resources import files

import promql_parser as promql
import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from serve.http.problems import INTERNAL, OIP_PROBLEM_TYPES, PROBLEM_TYPES
from serve.telemetry.metrics import Metrics

MONITORING = files("serve") / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

PROMETHEUS_LABELS = {"job", "instance"}  # Prometheus adds them to every series
# Values that a server exposes only after an error.
ERRORS = {*PROBLEM_TYPES.values(), *OIP_PROBLEM_TYPES.values(), INTERNAL}
RARE_VALUES = {
    "code": {kind.code for kind in ERRORS},
    # gRPC has names instead of numbers: STATUS_CODES in serve.oip.grpc_server.
    "status": {str(kind.status) for kind in ERRORS} | {"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"},
    "route": {"/inference.GRPCInferenceService/ServerReady", "/inference.GRPCInferenceService/ServerLive"},
}


@pytest.fixture
def exposed(start_server):
    """Returns the series of a server after some requests: name -> label -> values."""
    server = start_server("--disagreement-share", 1)
    server.wait_until_ready()
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    for beta in (0, 0.3, 1):
        assert server.ask("POST", f"/classify?beta={beta}", buffer.getvalue())[0] == 200
    assert server.ask("POST", "/classify", b"no image")[0] == 415
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"):
        assert server.ask("GET", path)[0] == 200
    names = {"up": {}}  # Prometheus makes this series
    for family in text_string_to_metric_families(server.ask("GET", "/metrics")[2].decode()):
        for sample in family.samples:
            labels = names.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return names


def concrete(expression):
    """Returns an expression of the dashboard with values for Grafana's variables."""
    for variable, value in {"$__rate_interval": "5m", "$job": ".*", "$instance": ".*"}.items():
        expression = expression.replace(variable, value)
    return expression


def parts(expression):
    """Returns every node of the expression's syntax tree."""
    found = []
    promql.walk(promql.parse(expression), lambda node: found.append(node) or True)
    return found


def unknown(expression, exposed):
    """Returns the names, labels and values that the expression queries and the server does not expose."""
    wrong, known_labels = [], set(PROMETHEUS_LABELS)
    for selector in (node for node in parts(expression) if isinstance(node, promql.VectorSelector)):
        if selector.name not in exposed:
            wrong.append(selector.name)
            continue
        labels = exposed[selector.name]
        known_labels |= labels.keys()
        for matcher in selector.matchers.matchers:
            if matcher.name in PROMETHEUS_LABELS:
                continue
            if matcher.name not in labels:
                wrong.append(f"{selector.name}{{{matcher.name}}}")
                continue
            values = labels[matcher.name] | RARE_VALUES.get(matcher.name, set())
            is_regex = matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe)
            patterns = matcher.value.split("|") if is_regex else [re.escape(matcher.value)]
            wrong += [
                f"{selector.name}{{{matcher.name}}} {pattern}"
                for pattern in patterns
                if not any(re.fullmatch(pattern, value) for value in values)
            ]
    for node in parts(expression):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            wrong += [label for label in node.modifier.labels if label not in known_labels]
    return wrong


def test_every_expression_queries_metrics_of_a_running_server(exposed):
    for panel in PANELS:
        for target in panel["targets"]:
            assert unknown(concrete(target["expr"]), exposed) == [], panel["title"]
    for rule in RULES:
        assert unknown(rule["expr"], exposed) == [], rule["alert"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            expression, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
            assert unknown(concrete(expression), exposed) == []
            assert label in PROMETHEUS_LABELS


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("rate(tureen_requests[5m])", ["tureen_requests"]),
        ('tureen_requests_total{path="/classify"}', ["tureen_requests_total{path}"]),
        ('tureen_stage_seconds_count{stage=~"decode|waiting"}', ["tureen_stage_seconds_count{stage} waiting"]),
        ("sum by (mode) (tureen_classifications_total)", ["mode"]),
        ('sum by (beta) (rate(tureen_classifications_total{beta="0"}[5m])) > 1', []),
    ],
)
def test_an_unknown_metric_is_found(expression, wrong, exposed):
    assert unknown(expression, exposed) == wrong


def test_the_codes_that_a_query_names_have_a_series_before_the_first_error():
    expressions = [target["expr"] for panel in PANELS for target in panel["targets"]]
    expressions += [rule["expr"] for rule in RULES]
    codes = set(re.findall(r'code="(\w+)"', " ".join(expressions)))
    assert codes == {"overloaded", "client_gone"}
    text = Metrics().render()[0].decode()
    for code in codes:
        assert f'tureen_rejections_total{{code="{code}"}} 0.0' in text


def test_grafana_can_import_the_dashboard():
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency by stage", "Overload", "Soups", "Engine and processes"]
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)  # no panel covers another
    assert max(x for x, _ in cells) < 24
    for panel in PANELS:
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            labels = {label for node in parts(concrete(target["expr"])) for label in grouping(node)}
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert label in labels | PROMETHEUS_LABELS, panel["title"]
    (disagreement,) = [panel for panel in PANELS if panel["title"] == "Mode disagreement"]
    assert "not a detector" in disagreement["description"]


def grouping(node):
    if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
        return node.modifier.labels
    return []


def test_every_alert_has_a_meaning_and_a_command():
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 8
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "description", "action"}
        labels = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert labels <= PROMETHEUS_LABELS, rule["alert"]
