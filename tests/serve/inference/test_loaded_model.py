import asyncio
import math
import time

import numpy as np
import pytest

from serve.errors import DeadlineError, InferenceError
from serve.inference.batch_policy import Priority
from serve.inference.image_decoders import Decoders
from serve.inference.loaded_model import (
    InferenceRequest,
    LoadedModel,
    measure_run_s,
    open_soup,
    row_outputs,
    warm_sizes,
)
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from serve.telemetry.request_trace import REQUEST_TRACE, RequestTrace
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.bundle.manifest import Temperatures
from tureen.errors import ImageError

BUNDLE = load_bundle(EXAMPLES / "cifar10")
PIXELS = BUNDLE.golden.pixels[0]


def loaded(test, **changes):
    """Run an async test with a loaded model, closed afterwards; returns the metrics."""
    metrics = Metrics()

    async def run():
        settings = Settings(bundle=BUNDLE.path, engine="onnxruntime", max_batch=4, **changes)
        soup, _ = open_soup(BUNDLE, settings)
        decoders = Decoders(1, 1, max_memory=2**30)
        model = LoadedModel(soup, settings, metrics, decoders, is_idle=lambda: True, on_run=lambda rows, seconds: None)
        try:
            await asyncio.wait_for(test(model), 60)
        finally:
            await model.close()
            await decoders.close()

    asyncio.run(run())
    return metrics


def images_measured(metrics):
    return metrics.registry.get_sample_value("tureen_stage_seconds_count", {"stage": "inference"})


def infer(model, image, *betas, deadline_s=math.inf, **options):
    return model.infer(InferenceRequest(image, betas), deadline_s=deadline_s, **options)


def test_pixels_have_the_logits_of_the_library_at_each_beta():
    async def test(model):
        result = await infer(model, PIXELS, 0.0, 0.5, 1.0)
        expected = model.soup.logits(np.stack([PIXELS] * 3), [0.0, 0.5, 1.0])
        assert np.abs(result.logits - expected).max() < 1e-4  # another batch sums in another order
        assert result.decode_s == 0
        assert result.batch_size <= 3

    assert images_measured(loaded(test)) == 1


def test_each_row_of_a_batch_has_the_temperature_of_its_beta_and_a_token_has_none():
    logits = np.array([[2, 0, 0]] * 4, np.float32)
    choices = [0.0, 0.5, 1.0, np.zeros(8, np.float32)]
    outputs = row_outputs(logits, choices, Temperatures(betas=(0, 1), values=(1, 3)))
    for output, temperature in zip(outputs, (1, 2, 3, 1), strict=True):
        share = np.exp(2 / temperature) / (np.exp(2 / temperature) + 2)
        assert output.probabilities[0] == pytest.approx(share)
        assert output.order.tolist() == [0, 1, 2]  # ties keep the order of the labels


def test_errors_are_returned_and_the_end_of_decoding_is_reported_also_then():
    ended = []

    async def test(model):
        broken = await infer(
            model, b"no image", 0.5, deadline_s=time.monotonic() + 60, on_decoded=lambda: ended.append(1)
        )
        late = await infer(model, PIXELS, 0.5, deadline_s=time.monotonic() - 1, on_decoded=lambda: ended.append(2))
        assert isinstance(broken, ImageError)
        assert isinstance(late, DeadlineError)

    assert images_measured(loaded(test)) == 0
    assert ended == [1, 2]


def test_an_online_image_is_in_the_trace_of_its_request_and_a_background_one_is_not():
    async def test(model):
        trace = RequestTrace()
        REQUEST_TRACE.set(trace)
        await infer(model, PIXELS, 0.25)
        await infer(model, PIXELS, 0.75, priority=Priority.BACKGROUND)
        assert [betas for betas, _ in trace.images] == [(0.25,)]

    assert images_measured(loaded(test)) == 1


def test_background_rows_wait_while_the_queue_is_full():
    async def test(model):
        pixels, betas = BUNDLE.golden.pixels[:8], np.linspace(0, 1, 8).tolist()
        logits = await model.logits(pixels, betas)
        assert np.abs(logits - model.soup.logits(pixels, betas)).max() < 1e-4

    loaded(test, max_waiting_images=3)


def test_logits_that_are_not_finite_are_an_error_of_the_engine():
    async def test(model):
        engine = model.soup.engine

        class Infinite:
            name, precision, version = engine.name, engine.precision, engine.version
            close = engine.close

            def run(self, pixels, tokens):
                return np.full((len(pixels), 10), np.inf, np.float32)

        model.soup.engine = Infinite()
        assert isinstance(await infer(model, PIXELS, 0.5), InferenceError)

    metrics = loaded(test)
    assert metrics.registry.get_sample_value("tureen_engine_failures_total") == 1


@pytest.mark.parametrize(("max_batch", "sizes"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])])
def test_each_power_of_two_and_the_largest_batch_are_warm(max_batch, sizes):
    assert warm_sizes(max_batch) == sizes


@pytest.mark.parametrize(("durations", "shortest", "runs"), [([9, 0.003, 0.002, 0.004], 0.002, 4), ([9, 5], 5, 2)])
def test_the_runs_at_the_start_are_repeated_only_while_they_are_short(durations, shortest, runs):
    now, ran = [0.0], []

    def run():
        ran.append(durations[len(ran)])
        now[0] += ran[-1]

    assert measure_run_s(run, clock=lambda: now[0]) == pytest.approx(shortest)
    assert len(ran) == runs
