"""The service without HTTP: admission, classification, reloads, and the comparison of modes."""

import asyncio
import contextlib
import json
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

import tureen
from serve.control.beta_choice import ANONYMOUS
from serve.control.settings_state import SettingsState
from serve.control.state_directory import TOKEN_DIRECTORY
from serve.control.token_cache import TokenCache
from serve.errors import OverloadedError, TooManyPixelsError
from serve.inference.loaded_model import InferenceResult
from serve.inference.queue_time import StartSpeed
from tests.learned_tokens import make_token
from tests.patience import DEADLINE_S
from tests.serve.inference.opened_service import serving, value
from tests.serve.inference.test_image_decoders import decode_processes
from tureen.bundle.bundle import MANIFEST
from tureen.bundle.examples import EXAMPLES
from tureen.errors import BundleError, TureenError
from tureen.image_cost import LEAST_COST


@pytest.fixture
def own_cifar10(tmp_path):
    return shutil.copytree(EXAMPLES / "cifar10", tmp_path / "cifar10")


def test_a_request_that_would_wait_too_long_is_refused_and_an_idle_machine_accepts_any(bundle_path):
    async def test(service):
        service._permits.queue_time.restart(StartSpeed(0.0, {1: 0.2, 8: 1.6}))
        with service.admit([b""]) as first:
            assert first.model is service.model
            with service.admit([b""]), pytest.raises(OverloadedError) as refused, service.admit([b""]):
                pass
            assert refused.value.retry_after_s == 1
        service._permits.queue_time.restart(StartSpeed(0.0, {1: 100.0}))
        with service.admit([b""]):
            assert value(service, "tureen_expected_queue_seconds") == 200.0
        assert value(service, "tureen_expected_queue_seconds") == 100.0
        assert value(service, "tureen_expected_queue_limit_seconds") == 0.5

    serving(bundle_path, test, max_queue_ms=500)


def test_the_last_updates_of_the_metrics_are_applied_when_the_service_closes(bundle_path):
    services = []

    async def test(service):
        services.append(service)
        service.metrics.count_request("/classify", "POST", "200", 0.1)

    serving(bundle_path, test)
    assert services[0].metrics.requests.labels("/classify", "POST", "200")._value.get() == 1


def test_a_request_that_would_expire_in_the_queue_is_refused_instead(bundle_path):
    async def test(service):
        service._permits.queue_time.restart(StartSpeed(0.0, {1: 0.01, 2: 0.02}))
        with service.admit([b""]):
            assert service.refusal(timeout_ms=1000) is None
            assert isinstance(service.refusal(timeout_ms=10), OverloadedError)

    serving(bundle_path, test)


def replace_version(path, version):
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "version": version}))


class Slow:
    """An engine whose runs end after `gate` is set."""

    def __init__(self, engine):
        self.name, self.precision, self.version = engine.name, engine.precision, engine.version
        self._engine = engine
        self.gate, self.entered, self.is_closed = threading.Event(), threading.Event(), False

    def run(self, pixels, tokens):
        self.entered.set()
        assert self.gate.wait(DEADLINE_S)
        return self._engine.run(pixels, tokens)

    def close(self):
        self.is_closed = True
        self._engine.close()


def test_after_a_reload_admitted_requests_use_the_previous_bundle(own_bundle, digit_png):
    async def test(service):
        before = service.model
        slow = before.soup.engine = Slow(before.soup.engine)
        with service.admit([digit_png(0)]) as admission:
            running = asyncio.create_task(admission.sweep([0.5]))
            await asyncio.to_thread(slow.entered.wait, DEADLINE_S)
            replace_version(own_bundle, "after")
            await service.reload()
            with service.admit([digit_png(0)]) as later:
                assert later.model.bundle.manifest.version == "after"
                assert isinstance(await later.sweep([0.5]), InferenceResult)
            assert not slow.is_closed
            slow.gate.set()
            assert isinstance(await running, InferenceResult)
        while not slow.is_closed:
            await asyncio.sleep(0.01)

    serving(own_bundle, test)


def test_a_broken_bundle_does_not_replace_the_served_one(own_bundle, digit_png):
    async def test(service):
        (own_bundle / MANIFEST).write_text("{")
        with pytest.raises(BundleError):
            await service.reload()
        with service.admit([digit_png(0)]) as admission:
            assert isinstance(await admission.sweep([0.5]), InferenceResult)

    serving(own_bundle, test)


def test_a_share_of_requests_also_runs_in_the_other_mode(bundle_path, digit_png):
    async def test(service):
        for index in range(20):
            with service.admit([digit_png(index)]) as admission:
                await admission.classify([admission.choose(index % 2 * 1.0)])
        await asyncio.gather(*service._comparisons)
        return [value(service, f'tureen_mode_comparisons_total{{outcome="{outcome}"}}') for outcome in ("agree",)]

    (agree,) = serving(bundle_path, test, disagreement_share=1.0)
    assert 10 <= agree <= 20


def test_by_default_the_other_mode_does_not_run(bundle_path, digit_png):
    async def test(service):
        with service.admit([digit_png(0)]) as admission:
            await admission.classify([admission.choose(None)])
        outcomes = ("agree", "disagree", "dropped")
        return [value(service, f'tureen_mode_comparisons_total{{outcome="{outcome}"}}') for outcome in outcomes]

    assert serving(bundle_path, test) == [0, 0, 0]


LARGE = (2000, 1500)


def test_a_request_over_the_pixel_limit_is_refused_regardless_of_others(encode):
    image = encode(Image.new("RGB", LARGE))

    async def test(service):
        with pytest.raises(TooManyPixelsError, match="5,000,000"), service.admit([image] * 2):
            pass
        with service.admit([image]):
            pass

    serving(EXAMPLES / "cifar10", test, max_request_pixels=5_000_000)


def test_images_of_all_requests_that_are_not_yet_decoded_have_so_many_pixels_at_most(encode):
    image = encode(Image.new("RGB", LARGE))

    async def test(service):
        with service.admit([image]) as first:
            with pytest.raises(OverloadedError), service.admit([image]):
                pass
            await first.classify([first.choose(0.5)])
            with service.admit([image]):  # the first image is decoded, and its request has not ended
                pass

    serving(EXAMPLES / "cifar10", test, max_decode_pixels=5_000_000, max_queue_ms=100_000)


def test_photographs_and_small_images_are_served_while_disproportionate_images_fill_their_queue(encode):
    small, bomb = encode(Image.new("RGB", (32, 32))), encode(Image.new("RGB", (5000, 5000)), "WEBP", lossless=True)
    grain = np.random.default_rng(0).integers(0, 256, (100, 160, 3), np.uint8)
    photograph = encode(Image.fromarray(grain).resize((1280, 800)), "JPEG", quality=85)

    async def test(service):
        service._permits.queue_time.restart(StartSpeed(1e-9, {1: 0.001, 8: 0.002}))
        choice = service.active_settings.choose(0.5, ANONYMOUS)
        with service.admit([bomb] * 5) as bombs, contextlib.ExitStack() as stack:
            waiting = asyncio.create_task(bombs.classify([choice] * 5))
            while not (found := decode_processes()):
                await asyncio.sleep(0.01)
            found[0].suspend()  # as if the machine gave it no CPU time
            with pytest.raises(OverloadedError), service.admit([bomb]):
                pass
            good = [stack.enter_context(service.admit([image])) for image in [photograph, small] * 10]
            results = await asyncio.gather(*(admission.classify([choice]) for admission in good))
            assert {type(result) for (result,) in results} == {InferenceResult}
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    serving(EXAMPLES / "cifar10", test, timeout_ms=60_000)


def test_an_idle_server_accepts_as_much_after_large_and_slow_requests_as_at_its_start(encode):
    large, small = encode(Image.new("RGB", LARGE)), encode(Image.new("RGB", (32, 32)))

    def taken(service):
        with contextlib.ExitStack() as stack:
            for count in range(256):
                try:
                    stack.enter_context(service.admit([small]))
                except OverloadedError:
                    return count
        return 256

    async def test(service):
        service._permits.queue_time.restart(StartSpeed(1e-9, {1: 0.005, 8: 0.04}))
        before = taken(service)
        for _ in range(3):
            with service.admit([large] * 3 + [b"no image"]) as admission:
                await admission.classify([admission.choose(0.5)] * 4)
        with service.admit([small]):
            service._permits.queue_time.record_decoding(LEAST_COST, 60.0, time.monotonic())
            assert taken(service) < before
        assert 0 < taken(service) == before < 256

    serving(EXAMPLES / "cifar10", test, max_queue_ms=1000)


def test_a_reload_of_the_same_model_under_load_makes_the_speed_of_the_start_no_slower(own_cifar10, bundle_path):
    async def test(service):
        fast = StartSpeed(1e-15, {size: size * 1e-9 for size in (1, 2, 4, 8)})
        service._permits.queue_time.restart(fast)
        replace_version(own_cifar10, "after")
        await service.reload()
        assert service._permits.queue_time.start == fast
        shutil.copytree(bundle_path, own_cifar10, dirs_exist_ok=True)
        await service.reload()
        assert service._permits.queue_time.start.run_s[1] > 1e-6  # the speed of another model is measured anew

    serving(own_cifar10, test)


def test_a_reload_measures_anew(own_cifar10):
    async def test(service):
        service._permits.queue_time.restart(StartSpeed(1.0, {1: 100.0}))
        await service.reload()
        assert value(service, "tureen_expected_queue_seconds") < 100

    serving(own_cifar10, test)


def test_tokens_are_in_use_when_their_revision_is_applied_and_parked_if_they_cannot_be(tmp_path, bundle_path):
    cache = TokenCache(tmp_path / "state" / TOKEN_DIRECTORY)
    with tureen.load(bundle_path, engine="onnxruntime") as soup:
        fog, haze = (make_token(soup, name, seed) for seed, name in enumerate(("fog", "haze")))
        wrong, wrong_haze = (make_token(soup, name, 2) for name in ("wrong", "haze"))
    wrong.golden_logits[:] += 1
    wrong_haze.golden_logits[:] += 1
    sha = {token.record.name: cache.write(token.to_bytes()) for token in (fog, haze, wrong)}
    sha["wrong haze"] = cache.write(wrong_haze.to_bytes())

    async def test(service):
        service.apply_settings(1, SettingsState(tokens={"fog": sha["fog"], "wrong": sha["wrong"], "gone": "0" * 64}))
        assert service.applied_revision == 0
        await service.load_tokens()
        assert service.applied_revision == 1
        assert set(service.parked_tokens) == {"wrong", "gone"}
        assert "fog" in service.model.soup.tokens
        assert value(service, 'tureen_operator_tokens{state="used"}') == 1
        assert value(service, 'tureen_operator_tokens{state="parked"}') == 2
        service.apply_settings(2, SettingsState(tokens={"haze": sha["haze"]}))
        service.apply_settings(3, SettingsState(tokens={"haze": sha["haze"]}, default_beta=0.5))
        assert service.active_settings.default.beta == 0.5  # before the tokens are loaded
        await asyncio.gather(service.load_tokens(), service.load_tokens())
        assert service.applied_revision == 3
        assert service.model.soup.tokens.keys() == {"clean", "robust", "haze"}
        assert not service.parked_tokens
        service.apply_settings(4, SettingsState(tokens={"haze": sha["wrong haze"], "fog": sha["fog"]}))
        await service.load_tokens()  # the token that replaces haze cannot be used
        assert (service.model.soup.tokens.keys(), set(service.parked_tokens)) == ({"clean", "robust", "fog"}, {"haze"})
        service.apply_settings(5, SettingsState(tokens={"haze": sha["haze"]}))
        await service.load_tokens()
        await service.check_token(sha["fog"])
        for refused in (sha["wrong"], "0" * 64):
            with pytest.raises(TureenError):
                await service.check_token(refused)
        assert service.model.soup.tokens.keys() == {"clean", "robust", "haze"}
        await service.reload()
        assert service.model.soup.tokens.keys() == {"clean", "robust", "haze"}

    serving(bundle_path, test, state_dir=tmp_path / "state")
