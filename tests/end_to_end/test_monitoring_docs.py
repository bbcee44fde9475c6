"""Runs the commands of docs/monitoring.md, and compares its metrics, alerts, options and log texts with the code."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from prometheus_client.metrics import MetricWrapperBase

from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "monitoring.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if not line.startswith("docker ")]
METRICS = {  # name -> labels
    collector._name + ("_total" if collector._type == "counter" else ""): ", ".join(collector._labelnames)
    for collector in Metrics().registry._collector_to_names
    if isinstance(collector, MetricWrapperBase)
}
WATCHED, TRACED = [command for command in COMMANDS if command.startswith("tureen serve")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    directory = tmp_path_factory.mktemp("guide")
    shutil.copytree(EXAMPLES / "cifar10", directory / "bundle")
    Image.fromarray(load_bundle(directory / "bundle").golden.pixels[0]).save(directory / "photo.jpg")
    return directory


def test_every_command_of_the_page_runs_with_the_documented_result(workplace, run_command, served):
    outputs = []
    with served(WATCHED, workplace) as url:
        for command in COMMANDS:
            if not command.startswith("tureen serve"):
                result = run_command(command.replace("8000", url.rpartition(":")[2]), workplace)
                assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
                outputs.append(result.stdout)
    answer, metrics, *_ = outputs
    assert "x-request-id: order-66" in answer
    assert "server-timing: decode;dur=" in answer.lower()
    assert "tureen_requests_total" in metrics
    assert json.loads((workplace / "dashboard.json").read_text())["title"] == "Tureen"
    rules = yaml.safe_load((workplace / "alerts.yml").read_text())["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == re.findall(r"^\| (Tureen\w+) \|", GUIDE, re.MULTILINE)


def test_without_a_collector_the_server_serves_and_stops(workplace, run_command, served):
    with served(TRACED, workplace) as url:
        asked = f"curl --silent --fail --data-binary @photo.jpg {url}/classify"
        assert run_command(asked, workplace).returncode == 0


def test_the_table_has_every_metric_with_its_labels():
    told = dict(re.findall(r"^\| `(tureen_\w+)` \|([^|]*)\|", GUIDE, re.MULTILINE))
    assert {name: labels.strip() for name, labels in told.items()} == METRICS
    assert set(re.findall(r"tureen_\w+", GUIDE)) == METRICS.keys()


def test_every_metric_is_on_the_dashboard_which_has_the_rows_of_the_page():
    dashboard = json.loads((ROOT / "serve" / "monitoring" / "dashboard.json").read_text())
    queried = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", []))
    assert [name for name in METRICS if not re.search(rf"\b{name}(_bucket|_sum)?\b", queried)] == []
    rows = re.findall(r"^\| row of the dashboard .*\n\|---\|---\|\n((?:\|.*\n)+)", GUIDE, re.MULTILINE)[0]
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert re.findall(r"^\| ([^|]+) \|", rows, re.MULTILINE) == titles
    assert set(re.findall(r"row \*([^*]+)\*", GUIDE)) <= set(titles)
    alerts = (ROOT / "serve" / "monitoring" / "alerts.yml").read_text()
    assert [text for text in re.findall(r"\brow (.*)", alerts) if not text.startswith(tuple(titles))] == []


def test_every_option_of_the_page_exists():
    named = set(re.findall(r"--([a-z-]+)", "".join(re.findall(r"`--[^`\n]+`|^tureen.+$", GUIDE, re.MULTILINE))))
    assert named <= {name.replace("_", "-") for name in Settings.model_fields}
    assert {"max-queue-ms", "otlp-endpoint", "disagreement-share"} <= named


def test_the_scrape_configuration_names_the_job_that_the_alerts_query():
    (block,) = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    assert [job["job_name"] for job in yaml.safe_load(block)["scrape_configs"]] == ["tureen"]


def test_the_server_logs_every_text_that_the_alerts_send_to_the_log_for():
    rows = re.findall(r"^\| Tureen\w+ \|[^|]*\|(.*)\|$", GUIDE, re.MULTILINE)
    texts = {text for row in rows for text in re.findall(r"`([a-z: ]+)`", row)}
    texts = {text for text in texts if not text.startswith("tureen ")}
    assert {"golden rows", "worker died", "reload failed"} <= texts
    sources = "".join(path.read_text() for path in sorted((ROOT / "serve").rglob("*.py")))
    assert [text for text in sorted(texts) if text not in sources] == []
