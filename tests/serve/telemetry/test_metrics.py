"""Metrics of one process in memory and of several processes in files have the same names and summed values."""

import json
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.telemetry.metrics import TOKEN_SERIES, TOKEN_SERIES_FROM, Metrics, beta_bucket

# A process that sets its metrics and prints what it would export at /metrics.
PROCESS = """
import json, sys
from pathlib import Path
from prometheus_client import disable_created_metrics
from serve.telemetry.metrics import Metrics, share_metrics

disable_created_metrics()
directory, worker, version = Path(sys.argv[1]) if sys.argv[1] else None, int(sys.argv[2]), sys.argv[3]
if directory:
    share_metrics(directory, worker)
metrics = Metrics(directory)
metrics.requests.labels("/classify", "POST", "200").inc(2)
metrics.request_seconds.labels("/classify").observe(0.02)
metrics.in_flight.set(3)
metrics.is_ready.set(1)
metrics.default_beta.set(worker / 10)
serving = {"model": "m", "engine": "onnxruntime", "engine_version": "1", "precision": "fp32"}
metrics.set_serving({**serving, "version": "before"})
metrics.set_serving({**serving, "version": version})
print(metrics.render()[0].decode())
"""


def rendered(directory, worker, version="after"):
    """Returns the samples that such a process prints, by name and labels."""
    command = [sys.executable, "-c", PROCESS, str(directory or ""), str(worker), version]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples, name, **labels):
    (found,) = [v for (n, given), v in samples.items() if n == name and labels.items() <= json.loads(given).items()]
    return found


def test_several_processes_have_the_series_of_one(tmp_path):
    assert rendered(tmp_path, 0).keys() == rendered(None, 0).keys()


def test_any_process_serves_the_metrics_of_all(tmp_path):
    rendered(tmp_path, 0)
    samples = rendered(tmp_path, 1)
    assert value(samples, "tureen_requests_total") == 4
    assert value(samples, "tureen_request_seconds_bucket", le="0.025") == 2
    assert value(samples, "tureen_request_seconds_count") == 2
    assert value(samples, "tureen_requests_in_flight") == 6
    assert value(samples, "tureen_ready") == 2
    assert value(samples, "tureen_default_beta") == 0.1  # the one set last
    assert value(samples, "tureen_serving_info", version="after") == 1
    assert value(samples, "tureen_serving_info", version="before") == 0


def test_a_file_that_a_starting_process_has_only_just_created_is_left_out(tmp_path):
    (tmp_path / "counter_1.db").write_bytes(b"")
    assert value(rendered(tmp_path, 0), "tureen_requests_total") == 2


def test_the_successor_of_a_dead_worker_continues_its_counters(tmp_path):
    rendered(tmp_path, 0)
    files = {path.name for path in tmp_path.iterdir()}
    samples = rendered(tmp_path, 0)
    assert {path.name for path in tmp_path.iterdir()} == files
    assert value(samples, "tureen_requests_total") == 4
    assert value(samples, "tureen_requests_in_flight") == 3


def test_only_known_labels_describe_the_model():
    with pytest.raises(KeyError):
        Metrics().set_serving({"model": "m"})


@pytest.mark.parametrize(
    ("beta", "label"),
    [
        (None, "single"),
        (0.0, "0"),
        (1e-9, "below 0.25"),
        (0.25, "below 0.5"),
        (0.7, "below 0.75"),
        (0.9999999, "below 1"),
        (1, "1"),
    ],
)
def test_traffic_is_counted_by_buckets_of_beta(beta, label):
    assert beta_bucket(beta) == label


def test_a_token_has_a_series_once_it_is_in_use_and_the_number_of_series_is_limited():
    metrics = Metrics()
    for name in [f"t{n}" for n in range(TOKEN_SERIES + 5)]:
        for _ in range(TOKEN_SERIES_FROM + 1):
            metrics.count_token(name)
    for n in range(10_000):
        metrics.count_token(f"rare{n}")
    lines = [line for line in metrics.render()[0].decode().splitlines() if line.startswith("tureen_token_class")]
    counts = {line.partition('"')[2].partition('"')[0]: float(line.split()[-1]) for line in lines if "_total" in line}
    assert counts.keys() == {"other", *(f"t{n}" for n in range(TOKEN_SERIES))}
    assert counts["t0"] == 2  # from its TOKEN_SERIES_FROM-th image on
    assert sum(counts.values()) == (TOKEN_SERIES + 5) * (TOKEN_SERIES_FROM + 1) + 10_000
