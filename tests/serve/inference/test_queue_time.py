from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.inference.queue_time import QueueTime, Slowdown, StartSpeed, retry_after_s
from tureen.image_cost import LEAST_COST, LEAST_WORK, ImageCost, ImageKind

SMALL = ImageCost(187_500, LEAST_WORK + 187_500, 1_500_000, ImageKind.SMALL)
LARGE = ImageCost(1_200_000, 1_200_000, 9_600_000, ImageKind.LARGE)
BOMB = ImageCost(25_000_000, 75_000_000, 450_000_000, ImageKind.DISPROPORTIONATE)
START = StartSpeed(1e-8, {1: 0.004, 8: 0.016, 16: 0.03})
LIMIT_S = 0.2


def queue_time(start=START, decoders=2):
    return QueueTime(start, decoders=dict.fromkeys(ImageKind, decoders))


def enter(queue, cost, count):
    for _ in range(count):
        queue.add_image(cost, 1)


def taken(queue, cost=SMALL, most=50):
    """Returns how many of these concurrent requests are admitted; all of them end."""
    count = 0
    while count < most and queue.expected_s([cost]) <= LIMIT_S:
        queue.add_image(cost, 1)
        count += 1
    for _ in range(count):
        queue.end_decoding(cost, 1)
        queue.remove_rows(1)
    return count


def test_the_expected_time_covers_the_work_ahead_and_the_request():
    queue = queue_time()
    enter(queue, SMALL, 3)
    queue.add_image(SMALL, 4)
    decode_s = 5 * SMALL.work * START.decode_s / 2
    assert queue.expected_s([SMALL]) == pytest.approx(decode_s + 0.016)
    assert queue.expected_s([SMALL], rows=25) == pytest.approx(decode_s + 0.06)


def test_rows_between_two_sizes_that_were_measured_take_a_time_between():
    assert START.inference_s(0) == 0
    assert START.inference_s(1) == 0.004
    assert 0.004 < START.inference_s(4) < 0.016
    assert START.inference_s(160) == pytest.approx(0.3)


@pytest.mark.parametrize(("cost", "ahead"), [(SMALL, LARGE), (SMALL, BOMB), (LARGE, BOMB), (BOMB, LARGE)])
def test_images_do_not_wait_for_images_of_another_kind(cost, ahead):
    queue = queue_time()
    queue.add_image(cost, 1)
    before = queue.expected_s([cost])
    enter(queue, ahead, 50)
    assert queue.expected_s([cost]) == before
    queue.end_decoding(ahead, 1)
    assert queue.expected_s([cost]) > before  # it now waits for the engine


@pytest.mark.parametrize("kind", [ImageKind.LARGE, ImageKind.DISPROPORTIONATE])
def test_one_expensive_image_is_accepted_alone_and_a_second_counts_both(kind):
    queue, cost = queue_time(), replace(BOMB, kind=kind)
    assert queue.expected_s([cost]) < LIMIT_S
    queue.add_image(cost, 1)
    assert queue.expected_s([cost]) > 2 * cost.work * START.decode_s / 2


def test_a_request_of_several_kinds_waits_for_the_slowest_of_its_decoders():
    queue = queue_time()
    enter(queue, LARGE, 10)
    alone = queue.expected_s([LARGE])
    assert queue.expected_s([SMALL, LARGE]) == pytest.approx(alone)
    queue.add_image(BOMB, 1)
    assert queue.expected_s([SMALL, LARGE, BOMB]) > BOMB.work * START.decode_s > alone


def test_large_images_wait_for_the_rows_that_others_ahead_of_them_will_have():
    queue = queue_time()
    enter(queue, LARGE, 100)
    assert queue.expected_s([LARGE]) > START.inference_s(100)


def test_each_kind_of_image_has_room_regardless_of_the_others():
    queue, most = queue_time(), 100_000_000
    assert queue.has_room([BOMB] * 100, most)
    enter(queue, BOMB, 100)
    assert not queue.has_room([BOMB], most)
    assert queue.has_room([LARGE] * 41, most)
    enter(queue, LARGE, 41)  # 49,200,000 pixels
    assert not queue.has_room([LARGE], most)
    assert not queue.has_room([LARGE, BOMB], most)
    assert queue.has_room([SMALL], most)


def test_disproportionate_images_have_half_of_the_pixels_and_the_others_the_rest():
    queue, most = queue_time(), 100_000_000
    enter(queue, BOMB, 1)
    assert queue.has_room([BOMB], most)
    assert queue.has_room([LARGE] * 200, most)
    queue.add_image(LARGE, 1)
    assert not queue.has_room([LARGE] * 62, most)
    assert queue.has_room([LARGE] * 61, most)
    queue.add_image(BOMB, 1)
    assert not queue.has_room([BOMB], most)


def test_the_least_of_two_speeds_has_the_rows_of_the_one_and_the_shorter_times():
    assert StartSpeed(2e-8, {1: 0.005, 8: 0.015, 32: 0.1}).minimum(START) == StartSpeed(
        1e-8, {1: 0.004, 8: 0.015, 32: 0.1}
    )


def test_the_estimate_rises_when_the_engine_is_slow_and_falls_again():
    queue, now_s = queue_time(), 0.0
    queue.add_image(LEAST_COST, 8)
    before = queue.expected_s()
    for _ in range(3):
        now_s += 0.16
        queue.record_run(8, 0.16, now_s)
    slow = queue.expected_s()
    for _ in range(1000):
        now_s += 0.016
        queue.record_run(8, 0.016, now_s)
    assert slow > 5 * before
    assert queue.expected_s() == pytest.approx(before, rel=0.05)


def test_the_estimate_rises_when_decoding_is_slow_and_falls_again():
    queue, now_s = queue_time(), 0.0
    queue.add_image(SMALL, 1)
    before = queue.expected_s([SMALL])
    for _ in range(30):
        now_s += 0.2
        queue.record_decoding(SMALL, 0.2, now_s)
    slow = queue.expected_s([SMALL])
    for _ in range(10_000):
        now_s += 0.002
        queue.record_decoding(SMALL, SMALL.work * START.decode_s, now_s)
    assert slow > 10 * before
    assert queue.expected_s([SMALL]) == pytest.approx(before, rel=0.05)


def test_runs_side_by_side_count_for_the_time_that_both_took():
    queue = queue_time()
    queue.add_image(LEAST_COST, 8)
    before, now_s = queue.expected_s(), 0.0
    for _ in range(1000):  # two at a time, each twice as long as one alone
        now_s += 0.032
        queue.record_run(8, 0.032, now_s)
        queue.record_run(8, 0.032, now_s)
    assert queue.expected_s() == pytest.approx(before, rel=0.05)


def test_a_measurement_long_ago_counts_for_nothing():
    slowdown = Slowdown()
    slowdown.record(100.0, expected_s=1.0, now_s=0.0)
    slowdown.record(1.0, expected_s=1.0, now_s=60.0)
    assert slowdown.factor == pytest.approx(1, abs=0.01)


STEPS = st.tuples(
    st.sampled_from(["enter", "leave", "decoded", "failed", "run", "restart"]),
    st.sampled_from([SMALL, LARGE, BOMB, LEAST_COST]),
    st.integers(1, 64),
    st.floats(0, 100),
    st.floats(-100, 100),
)


@given(st.lists(STEPS, max_size=60), st.integers(1, 8))
def test_after_any_history_an_idle_server_accepts_as_many_as_at_its_start(steps, decoders):
    """Bursts of images of all kinds that succeed, fail, are cancelled or refused. Speeds vary and clocks step."""
    queue, inside, now_s = queue_time(decoders=decoders), [], 1000.0
    at_start = {cost: taken(queue, cost) for cost in (SMALL, LARGE, BOMB, LEAST_COST)}
    for step, cost, count, seconds, elapsed_s in steps:
        now_s += elapsed_s
        if step == "enter" and queue.expected_s([cost] * count, count) <= 10 * LIMIT_S:
            enter(queue, cost, count)
            inside.append((cost, count))
        elif step == "decoded":
            queue.record_decoding(cost, seconds, now_s)
        elif step == "run":
            queue.record_run(count, seconds, now_s)
        elif step == "restart":
            queue.restart(START)
        elif step in ("leave", "failed") and inside:
            cost, images = inside.pop()
            for _ in range(images):
                queue.end_decoding(cost, 1)
            queue.remove_rows(images)
        assert 0 <= queue.expected_s() < float("inf")
    for cost, images in inside:
        for _ in range(images):
            queue.end_decoding(cost, 1)
        queue.remove_rows(images)
    assert {cost: taken(queue, cost) for cost in at_start} == at_start
    assert all(at_start.values())
    assert queue.pixels == queue.rows == 0


@given(st.lists(STEPS, max_size=60))
def test_disproportionate_images_change_nothing_for_others_while_they_are_not_decoded(steps):
    """One image of the same kind is ahead, because the first is admitted whatever its work."""
    queue, now_s = queue_time(), 1000.0
    enter(queue, SMALL, 1)
    enter(queue, LARGE, 1)
    before = [queue.expected_s([cost]) for cost in (SMALL, LARGE)]
    for step, _, count, seconds, elapsed_s in steps:
        now_s += elapsed_s
        if step == "enter" and queue.has_room([BOMB] * count, 256_000_000):
            enter(queue, BOMB, count)
        elif step == "decoded":
            queue.record_decoding(BOMB, seconds, now_s)
        assert [queue.expected_s([cost]) for cost in (SMALL, LARGE)] == before
        assert queue.has_room([LARGE] * 50, 256_000_000)


@pytest.mark.parametrize(("expected_s", "seconds"), [(0.1, 1), (0.5, 1), (1.2, 1), (1.6, 2), (9.5, 9)])
def test_retry_after_follows_the_expected_queue_time(expected_s, seconds):
    assert retry_after_s(expected_s, 0.5) == seconds
