"""The counters of the statistics extension."""

import pytest

from serve.oip.statistics import Duration, Statistics


def test_a_duration_adds_seconds_as_nanoseconds():
    duration = Duration()
    for seconds in (0.5, 1e-9, 0):
        duration.add(seconds)
    assert duration.as_dict() == {"count": 3, "ns": 500_000_001}


def test_a_request_counts_as_a_success_or_as_a_failure():
    statistics = Statistics()
    with statistics.request():
        pass
    with pytest.raises(KeyError), statistics.request():
        raise KeyError
    assert (statistics.success.count, statistics.fail.count) == (1, 1)


def test_the_stages_of_requests_add_up_under_the_names_of_the_extension():
    statistics = Statistics()
    statistics.add(images=3, decode_s=0.001, queue_s=0.002, inference_s=0.003, output_s=0.004)
    statistics.add(images=1, decode_s=0.001, queue_s=0, inference_s=0.003, output_s=0)
    counters = statistics.as_dict(batches=2)
    assert (counters["inference_count"], counters["execution_count"]) == (4, 2)
    assert counters["last_inference"] > 1.7e12  # milliseconds
    assert counters["inference_stats"] == {
        "success": {"count": 0, "ns": 0},
        "fail": {"count": 0, "ns": 0},
        "queue": {"count": 2, "ns": 2_000_000},
        "compute_input": {"count": 2, "ns": 2_000_000},
        "compute_infer": {"count": 2, "ns": 6_000_000},
        "compute_output": {"count": 2, "ns": 4_000_000},
    }
