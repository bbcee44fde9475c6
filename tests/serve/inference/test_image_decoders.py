"""Decoders: which images use a process, the effect of a process that fails, and the order of waiting images."""

import asyncio
import itertools
import os
import threading
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from serve.errors import DeadlineError, DecodingError
from serve.inference.decode_process import DecodeOptions
from serve.inference.image_decoders import DISPROPORTIONATE_NICE, LARGE_NICE, Decoders
from tureen.errors import ImageTooLargeError, UndecodableImageError
from tureen.image_cost import ImageCost, ImageKind, image_cost
from tureen.preprocess import ImageLimits, PreprocessSpec

DECODING = DecodeOptions(PreprocessSpec(image_size=32), ImageLimits())
FOREVER_S = 60.0


def cost_of(image):
    return image_cost(image, max_pixels=25_000_000, max_scans=32)


@pytest.fixture(scope="module")
def large(encode):
    """A photograph of three million pixels."""
    grain = np.random.default_rng(0).integers(0, 256, (75, 100, 3), np.uint8)
    image = encode(Image.fromarray(grain).resize((2000, 1500), Image.Resampling.BICUBIC), "WEBP", quality=50)
    assert cost_of(image).kind is ImageKind.LARGE
    return image


@pytest.fixture(scope="module")
def bomb(encode):
    """Three million pixels of one colour."""
    image = encode(Image.new("RGB", (2000, 1500)), "WEBP", lossless=True)
    assert cost_of(image).kind is ImageKind.DISPROPORTIONATE
    return image


@pytest.fixture(scope="module")
def slow(encode):
    """Takes seconds."""
    return encode(Image.new("RGB", (1, 25_000_000)))


def deciding(test, count=1, max_memory=2**40):
    async def run():
        measured = []
        decoders = Decoders(1, count, max_memory=max_memory, on_decoded=lambda *decoded: measured.append(decoded))
        decoders.measured = measured
        try:
            return await asyncio.wait_for(test(decoders), FOREVER_S)
        finally:
            await decoders.close()

    return asyncio.run(run())


def decode(decoders, image, cost=None, limit_s=FOREVER_S):
    return decoders.decode(image, cost or cost_of(image), DECODING, time.monotonic() + limit_s)


def decode_processes():
    return [p for p in psutil.Process().children() if "serve.inference.decode_process" in p.cmdline()]


async def until(statement):
    while not (found := statement()):
        await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize(("name", "nice"), [("large", LARGE_NICE), ("bomb", DISPROPORTIONATE_NICE)])
def test_an_image_of_much_work_has_the_same_pixels_from_a_process_of_low_priority(request, name, nice):
    image = request.getfixturevalue(name)

    async def test(decoders):
        pixels, began_s, seconds = await decode(decoders, image)
        assert (pixels == DECODING.pixels(image)).all()
        assert began_s + seconds <= time.monotonic()
        (process,) = decode_processes()
        assert process.nice() == min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)
        assert [cost for cost, _ in decoders.measured] == [cost_of(image)]

    deciding(test)
    assert not decode_processes()


def test_a_small_image_is_decoded_without_a_process(encode):
    async def test(decoders):
        await decode(decoders, encode(Image.new("RGB", (32, 32))))
        assert not decode_processes()
        assert len(decoders.measured) == 1

    deciding(test)


def test_an_error_from_a_process_equals_that_of_a_thread_and_the_process_continues(large):
    async def test(decoders):
        for broken in (large[:500], bytes(21 * 2**20)):
            with pytest.raises((UndecodableImageError, ImageTooLargeError)) as here:
                DECODING.pixels(broken)
            with pytest.raises(type(here.value)) as there:
                await decode(decoders, broken, cost_of(large))
            assert str(there.value) == str(here.value)
        (process,) = decode_processes()
        await decode(decoders, large)
        assert decode_processes() == [process]
        assert len(decoders.measured) == 3

    deciding(test)


def test_a_process_that_dies_fails_only_its_image_and_is_replaced(large, slow):
    async def test(decoders):
        doomed = asyncio.create_task(decode(decoders, slow))
        await until(decode_processes)
        waiting = asyncio.create_task(decode(decoders, large))
        decode_processes()[0].kill()
        with pytest.raises(DecodingError):
            await doomed
        assert (await waiting)[0].shape == (32, 32, 3)

    deciding(test)


def test_a_process_that_died_while_idle_fails_no_image(large):
    async def test(decoders):
        await decode(decoders, large)
        (process,) = decode_processes()
        process.kill()
        await until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        assert (await decode(decoders, large))[0].shape == (32, 32, 3)
        (another,) = decode_processes()
        assert another != process

    deciding(test)


def test_disproportionate_images_that_wait_delay_no_other_and_are_decoded_one_at_a_time(large, bomb, encode):
    async def test(decoders):
        stopped = asyncio.create_task(decode(decoders, bomb))
        (process,) = await until(decode_processes)
        process.suspend()
        waiting = [asyncio.create_task(decode(decoders, bomb)) for _ in range(3)]
        await asyncio.gather(*(decode(decoders, large) for _ in range(3)))
        await decode(decoders, encode(Image.new("RGB", (32, 32))))
        assert not any(task.done() for task in (stopped, *waiting))
        process.resume()
        decoded = [(began_s, seconds) for _, began_s, seconds in await asyncio.gather(stopped, *waiting)]
        for (before_s, seconds), (began_s, _) in itertools.pairwise(decoded):
            assert before_s + seconds <= began_s

    deciding(test, count=2)


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_an_abandoned_decoding_is_stopped(slow, is_cancelled):
    async def test(decoders):
        task = asyncio.create_task(decode(decoders, slow, limit_s=FOREVER_S if is_cancelled else 1))
        (process,) = await until(decode_processes)
        process.suspend()  # a quick machine would decode the image before the deadline
        if is_cancelled:
            task.cancel()
        with pytest.raises((asyncio.CancelledError, DeadlineError)):
            await task
        await until(lambda: not process.is_running())

    deciding(test)


def test_images_wait_for_each_other_if_their_memory_exceeds_the_budget(large):
    async def test(decoders):
        half, most = (ImageCost(1, 10**9, size, ImageKind.LARGE) for size in (50, 200))
        tasks = [asyncio.create_task(decode(decoders, large, cost)) for cost in (half, half, most, half)]
        await asyncio.gather(*tasks)
        return [began_s for _, began_s, _ in (task.result() for task in tasks)], [
            began_s + seconds for _, began_s, seconds in (task.result() for task in tasks)
        ]

    began_s, ended_s = deciding(test, count=4, max_memory=100)
    assert began_s[2] >= max(ended_s[:2])
    assert began_s[3] >= ended_s[2]


def test_a_cancelled_waiter_yields_its_place_to_the_next(large):
    async def test(decoders):
        first, second, third = (asyncio.create_task(decode(decoders, large)) for _ in range(3))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, third)
        with pytest.raises(asyncio.CancelledError):
            await second

    deciding(test)


def test_the_loop_turns_while_an_image_that_holds_the_interpreter_is_decoded(slow):
    async def test(decoders):
        before = threading.active_count()
        task = asyncio.create_task(decode(decoders, slow))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 10
        assert threading.active_count() <= before + 1

    deciding(test)


def test_small_images_that_arrive_together_are_decoded_in_groups(encode):
    image = encode(Image.new("RGB", (32, 32)))
    broken, commented = image[:-30], image + bytes(100_000)
    threads = set()

    class Recording(DecodeOptions):
        def pixels(self, image):
            threads.add(threading.current_thread().name)
            return super().pixels(image)

    async def test(decoders):
        recording = Recording(DECODING.preprocess, DECODING.limits)
        deadline_s = time.monotonic() + FOREVER_S
        results = await asyncio.gather(
            *(
                decoders.decode(one, cost_of(image), recording, deadline_s)
                for one in [image] * 20 + [broken, commented]
            ),
            decoders.decode(image, cost_of(image), recording, time.monotonic() - 1),
            return_exceptions=True,
        )
        assert all(result[0].shape == (32, 32, 3) for result in results[:20])
        assert isinstance(results[20], UndecodableImageError)
        assert results[21][0].shape == (32, 32, 3)
        assert isinstance(results[22], DeadlineError)
        assert len(decoders.measured) == 22

    deciding(test)
    assert len(threads) == 1


def test_without_a_thread_each_image_gets_an_error_and_none_waits(encode):
    image = encode(Image.new("RGB", (32, 32)))

    async def run():
        decoders = Decoders(1, 1, max_memory=2**30)
        await decoders.close()  # as if the system started no thread
        for _ in range(2):
            async with asyncio.timeout(FOREVER_S):
                with pytest.raises(DecodingError):
                    await decoders.decode(image, cost_of(image), DECODING, time.monotonic() + FOREVER_S)

    asyncio.run(run())


def test_an_image_whose_caller_was_cancelled_is_not_decoded(encode):
    image, decoded = encode(Image.new("RGB", (32, 32))), []
    release = threading.Event()

    class Waiting(DecodeOptions):
        def pixels(self, image):
            decoded.append(image)
            release.wait()
            return super().pixels(image)

    async def test(decoders):
        waiting = Waiting(DECODING.preprocess, DECODING.limits)
        deadline_s = time.monotonic() + FOREVER_S
        tasks = [asyncio.create_task(decoders.decode(image, cost_of(image), waiting, deadline_s)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)

    deciding(test)
    assert len(decoded) == 2
