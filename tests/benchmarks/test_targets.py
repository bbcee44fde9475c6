"""A round without a successful response makes the figures of a benchmark unavailable, and ends no benchmark."""

import asyncio
import math

import pytest

from benchmarks import expensive_images, overload
from benchmarks.jobs import JobPhase
from benchmarks.load import ClosedLoopResult, OpenLoopResult, Response, TimedResponse, closed_loop, open_loop
from benchmarks.saturation import report_mixed_betas
from benchmarks.soak import SoakResult
from benchmarks.targets import format_figure, median, percentile, ratio, report_lost, report_target

REQUEST = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
WITHOUT_SUCCESS = ClosedLoopResult(succeeded=0, failed=3, seconds=1, latencies=[])
WITH_SUCCESS = ClosedLoopResult(succeeded=2, failed=0, seconds=1, latencies=[0.01, 0.02])


async def load_server_of(response, seconds=0.2):
    """The result of a closed loop on a server that sends `response` to each request."""

    async def respond(reader, writer):
        while not reader.at_eof():
            await reader.read(2**16)
            writer.write(response)
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    try:
        return await closed_loop(server.sockets[0].getsockname()[1], [REQUEST], 2, seconds)
    finally:
        server.close()


def overload_phase(*statuses):
    responses = [TimedResponse(0.5, 0.6, Response(status)) for status in statuses]
    return overload.OverloadPhase(OpenLoopResult(10, 1, responses), probes_ms=[], largest_rss=0)


@pytest.mark.parametrize("values", [(0, 2), (2, 0), (0, 0), (math.nan, 2), (2, math.nan)])
def test_a_ratio_with_a_figure_that_is_0_or_unavailable_is_unavailable(values):
    assert format_figure(ratio(*values)) == "unavailable"


def test_a_ratio_of_two_measured_figures_is_their_quotient():
    assert ratio(1, 4) == 0.25


def test_a_median_over_rounds_is_unavailable_if_one_round_is():
    assert median([3, 1, 2]) == 2
    assert math.isnan(median([1, math.nan, 2]))


def test_a_percentile_of_no_values_is_unavailable_and_of_mostly_infinite_ones_is_infinite():
    assert percentile([1, 3], 50) == 2
    assert math.isnan(percentile([], 99))
    assert percentile([1, math.inf, math.inf], 99) == math.inf


@pytest.mark.parametrize("comparison", ["≥", "≤", "<", "="])
def test_an_unavailable_figure_meets_no_target_and_is_printed_as_unavailable(capsys, comparison):
    assert not report_target("figure", comparison, 0, math.nan)
    assert "measured unavailable NO" in capsys.readouterr().out


def test_no_lost_request_of_none_sent_is_unavailable(capsys):
    assert report_lost("lost", 0, 100)
    assert not report_lost("lost", 0, 0)
    assert capsys.readouterr().out.count("unavailable") == 1


def test_a_closed_loop_on_a_server_that_refuses_every_request_says_that_none_succeeded():
    load = asyncio.run(load_server_of(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"))
    assert load.failed > 0
    assert str(load) == f"no response of status 200 after the warm-up, {load.failed} failed"


def test_a_closed_loop_with_successful_responses_prints_its_rate():
    load = asyncio.run(load_server_of(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    assert load.succeeded > 0
    assert "requests/s" in str(load)


@pytest.mark.parametrize("loads", [(WITHOUT_SUCCESS, WITH_SUCCESS), (WITH_SUCCESS, WITHOUT_SUCCESS)])
def test_the_ratio_of_mixed_betas_is_unavailable_if_a_round_has_no_success(capsys, loads):
    mixed, one = loads
    report_mixed_betas(3, [WITH_SUCCESS, mixed], [WITH_SUCCESS, one])
    assert "measured unavailable NO" in capsys.readouterr().out


@pytest.mark.parametrize("statuses", [(), (429, 503)])
def test_the_figures_of_an_overload_without_success_are_unavailable(capsys, statuses):
    shares = (overload.BELOW_CAPACITY, overload.AT_CAPACITY, overload.OVERLOADED, overload.AFTERWARDS)
    phases = {share: overload_phase(*statuses) for share in shares}
    assert "no response of status 200 after the warm-up" in str(phases[1.0])
    overload.report([phases], idle_rss=0)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "goodput at 5" in line and "unavailable NO" in line]
    assert [line for line in lines if "p99 of accepted" in line and "unavailable NO" in line]


def test_an_open_loop_at_a_rate_of_0_sends_nothing():
    assert asyncio.run(open_loop(1, [REQUEST], 0, 1)).responses == []


def test_a_job_phase_and_a_stream_without_success_are_printed():
    assert str(JobPhase(OpenLoopResult(10, 1), 2.0)).startswith("no response of status 200")
    responses = expensive_images.OrdinaryResponses([TimedResponse(0, 1, Response(503))], [])
    assert "no response of status 200 after the warm-up (1 not served)" in str(responses)


def test_the_memory_growth_of_a_soak_without_success_is_unavailable():
    assert math.isnan(SoakResult(sent=10, rss=[(5, 100), (10, 100)]).growth)
