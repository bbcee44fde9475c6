"""Updates that are applied together give the same metrics as updates that are applied one by one."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.telemetry.pending_updates import UPDATE_S, PendingUpdates

BUCKETS = (0.1, 1.0)
VALUES = (0.0, 0.1, 0.100001, 1.0, 7.0, 0.05)


def made():
    registry = CollectorRegistry()
    pending = PendingUpdates(registry)
    counter = Counter("requests", "help", registry=registry)
    histogram = Histogram("seconds", "help", buckets=BUCKETS, registry=registry)
    return registry, pending, counter, histogram, Gauge("in_flight", "help", registry=registry)


def samples(registry):
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


def test_metrics_read_after_the_updates_are_those_of_single_updates():
    registry, _, counter, histogram, gauge = made()
    counter.inc(2)
    for value in VALUES:
        histogram.observe(value)
    gauge.set(5)
    expected = samples(registry)
    registry, pending, counter, histogram, gauge = made()
    pending.count(counter)
    for value in VALUES:
        pending.observe(histogram, value)
    pending.count(counter)
    pending.set(gauge, 3)
    pending.set(gauge, lambda: 5)
    assert samples(registry) == expected
    assert samples(registry) == expected  # each is applied once


def test_updates_are_applied_without_a_reader_when_their_time_has_passed():
    async def run():
        _, pending, counter, _, _ = made()
        pending.count(counter)
        assert counter._value.get() == 0
        while not counter._value.get():
            await asyncio.sleep(UPDATE_S)
        pending.count(counter)
        while counter._value.get() < 2:
            await asyncio.sleep(UPDATE_S)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_gauge_that_fails_does_not_lose_the_counts():
    registry, pending, counter, _, gauge = made()
    pending.count(counter)
    pending.set(gauge, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pending.apply()
    assert registry.get_sample_value("requests_total") == 1
