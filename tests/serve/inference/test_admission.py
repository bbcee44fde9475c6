"""Which requests are admitted, by their number, their pixels and the expected time. Without a model."""

import contextlib

import pytest

from serve.errors import OverloadedError, TooManyPixelsError
from serve.inference.admission import Permits
from serve.inference.queue_time import StartSpeed
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.image_cost import LEAST_COST, ImageCost, ImageKind

LARGE = ImageCost(pixels=9_000_000, work=10_000_000, memory=0, kind=ImageKind.LARGE)
DECODE_S, RUN_S = 1e-7, {1: 0.01, 8: 0.04}


def permits(**settings):
    made = Permits(Settings(bundle="x", **settings), Metrics())
    made.restart(StartSpeed(DECODE_S, RUN_S))
    return made


@pytest.mark.parametrize(
    ("settings", "held", "requested", "error"),
    [
        # an idle server takes any request within the limit of pixels
        ({"max_queue_ms": 1}, [], {}, None),
        ({}, [], {"costs": [LARGE]}, None),
        ({"max_request_pixels": 8_999_999}, [], {"costs": [LARGE]}, TooManyPixelsError),
        # number of requests
        ({"max_requests": 2}, [[LEAST_COST]], {}, None),
        ({"max_requests": 2}, [[LEAST_COST]] * 2, {}, OverloadedError),
        # expected time
        ({"max_queue_ms": 1000}, [[LEAST_COST]] * 8, {}, None),
        ({"max_queue_ms": 30}, [[LEAST_COST]] * 8, {}, OverloadedError),
        ({"max_queue_ms": 1000}, [[LEAST_COST]] * 8, {"timeout_ms": 30}, OverloadedError),
        ({"max_queue_ms": 1000}, [[LEAST_COST]], {"rows": 1000}, OverloadedError),
        # pixels to decode
        ({"max_decode_pixels": 18_000_000}, [[LARGE]], {"costs": [LARGE], "timeout_ms": 60_000}, OverloadedError),
        ({"max_decode_pixels": 9_000_001}, [[LARGE]], {"costs": [LARGE]}, OverloadedError),
    ],
)
def test_a_request_is_refused_by_number_pixels_or_expected_time(settings, held, requested, error):
    subject = permits(**settings)
    with contextlib.ExitStack() as stack:
        for costs in held:
            stack.enter_context(subject.hold(costs, 1))
        refusal = subject.refusal(**requested)
        assert refusal is None if error is None else isinstance(refusal, error), refusal
    assert subject.taken == 0


def test_a_permit_is_free_again_after_an_error():
    subject = permits()
    with contextlib.suppress(ValueError), subject.hold([LEAST_COST], 1):
        assert subject.taken == 1
        raise ValueError
    assert subject.taken == 0


@pytest.mark.parametrize(
    ("run_s", "limit_s"),
    [({1: 0.01, 8: 0.04}, 1.0), ({1: 0.1, 8: 0.8}, 2.4), ({1: 1.0, 8: 8.0}, 24.0)],
)
def test_the_default_limit_is_a_second_or_the_time_of_three_batches(run_s, limit_s):
    subject = permits(max_batch=8)
    subject.restart(StartSpeed(DECODE_S, run_s))
    assert subject.queue_limit_s == pytest.approx(limit_s)
    with contextlib.ExitStack() as stack:
        for _ in range(15):  # with the next request, two batches
            stack.enter_context(subject.hold([LEAST_COST], 1))
        assert isinstance(subject.refusal(), OverloadedError) is (limit_s > 10)  # the timeout of 10 s is a limit too
        assert subject.refusal(timeout_ms=60_000) is None
        stack.enter_context(subject.hold([LEAST_COST] * 200, 1))
        assert isinstance(subject.refusal(), OverloadedError)
