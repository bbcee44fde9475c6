import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.admission import QueueTime, Slowdown, StartSpeed, retry_after_s
from tureen.image_cost import LEAST, LEAST_WORK, ImageCost

CHEAP = ImageCost(187_500, LEAST_WORK + 187_500, 1_500_000, is_expensive=False)
EXPENSIVE = ImageCost(25_000_000, 75_000_000, 450_000_000, is_expensive=True)
START = StartSpeed(1e-8, {1: 0.004, 8: 0.016, 16: 0.03})
LIMIT_S = 0.2


def queue_time(start=START, decoders=2):
    return QueueTime(start, decoders=decoders, expensive_decoders=decoders)


def enter(queue, cost, count):
    for _ in range(count):
        queue.enter(cost, 1)


def taken(queue, cost=CHEAP, most=50):
    """How many of as many requests are taken that come at once, and are answered."""
    count = 0
    while count < most and queue.expected_s([cost]) <= LIMIT_S:
        queue.enter(cost, 1)
        count += 1
    for _ in range(count):
        queue.left_decoder(cost, 1)
        queue.leave(1)
    return count


def test_the_expected_time_is_that_of_the_work_ahead_and_its_own():
    queue = queue_time()
    enter(queue, CHEAP, 3)
    queue.enter(CHEAP, 4)
    decode_s = 5 * CHEAP.work * START.decode_s / 2
    assert queue.expected_s([CHEAP]) == pytest.approx(decode_s + 0.016)
    assert queue.expected_s([CHEAP], rows=25) == pytest.approx(decode_s + 0.06)


def test_rows_between_two_sizes_that_were_measured_take_a_time_between():
    assert START.rows_s(0) == 0
    assert START.rows_s(1) == 0.004
    assert 0.004 < START.rows_s(4) < 0.016
    assert START.rows_s(160) == pytest.approx(0.3)


def test_cheap_images_do_not_wait_for_expensive_ones():
    queue = queue_time()
    before = queue.expected_s([CHEAP])
    enter(queue, EXPENSIVE, 50)
    assert queue.expected_s([CHEAP]) == before
    queue.left_decoder(EXPENSIVE, 1)
    assert queue.expected_s([CHEAP]) > before  # it stands in line for the engine by now


def test_one_expensive_image_is_taken_however_long_it_takes_and_a_second_counts_both():
    queue = queue_time()
    assert queue.expected_s([EXPENSIVE]) < LIMIT_S
    queue.enter(EXPENSIVE, 1)
    assert queue.expected_s([EXPENSIVE]) > 2 * EXPENSIVE.work * START.decode_s / 2


def test_the_estimate_rises_when_the_engine_is_slow_and_falls_again():
    queue, now_s = queue_time(), 0.0
    queue.enter(LEAST, 8)
    before = queue.expected_s()
    for _ in range(3):
        now_s += 0.16
        queue.run(8, 0.16, now_s)
    slow = queue.expected_s()
    for _ in range(1000):
        now_s += 0.016
        queue.run(8, 0.016, now_s)
    assert slow > 5 * before
    assert queue.expected_s() == pytest.approx(before, rel=0.05)


def test_the_estimate_rises_when_decoding_is_slow_and_falls_again():
    queue, now_s = queue_time(), 0.0
    queue.enter(CHEAP, 1)
    before = queue.expected_s([CHEAP])
    for _ in range(30):
        now_s += 0.2
        queue.decoded(CHEAP, 0.2, now_s)
    slow = queue.expected_s([CHEAP])
    for _ in range(10_000):
        now_s += 0.002
        queue.decoded(CHEAP, CHEAP.work * START.decode_s, now_s)
    assert slow > 10 * before
    assert queue.expected_s([CHEAP]) == pytest.approx(before, rel=0.05)


def test_runs_side_by_side_count_for_the_time_that_both_took():
    queue = queue_time()
    queue.enter(LEAST, 8)
    before, now_s = queue.expected_s(), 0.0
    for _ in range(1000):  # two at a time, each twice as long as one alone
        now_s += 0.032
        queue.run(8, 0.032, now_s)
        queue.run(8, 0.032, now_s)
    assert queue.expected_s() == pytest.approx(before, rel=0.05)


def test_a_measurement_long_ago_counts_for_nothing():
    slowdown = Slowdown()
    slowdown.measured(100.0, expected_s=1.0, now_s=0.0)
    slowdown.measured(1.0, expected_s=1.0, now_s=60.0)
    assert slowdown.factor == pytest.approx(1, abs=0.01)


STEPS = st.tuples(
    st.sampled_from(["enter", "leave", "decoded", "failed", "run", "restart"]),
    st.sampled_from([CHEAP, EXPENSIVE, LEAST]),
    st.integers(1, 64),
    st.floats(0, 100),
    st.floats(-100, 100),
)


@given(st.lists(STEPS, max_size=60), st.integers(1, 8))
def test_after_any_history_an_idle_server_takes_as_many_as_at_its_start(steps, decoders):
    """Bursts of cheap and expensive images, answered, failed, cancelled or refused, slow or quick; clocks that step."""
    queue, inside, now_s = queue_time(decoders=decoders), [], 1000.0
    at_start = taken(queue)
    for step, cost, count, seconds, elapsed_s in steps:
        now_s += elapsed_s
        if step == "enter" and queue.expected_s([cost] * count, count) <= 10 * LIMIT_S:
            enter(queue, cost, count)
            inside.append((cost, count))
        elif step == "decoded":
            queue.decoded(cost, seconds, now_s)
        elif step == "run":
            queue.run(count, seconds, now_s)
        elif step == "restart":
            queue.restart(START)
        elif step in ("leave", "failed") and inside:
            answered, images = inside.pop()
            for _ in range(images):
                queue.left_decoder(answered, 1)
            queue.leave(images)
        assert 0 <= queue.expected_s() < float("inf")
    for cost, images in inside:
        for _ in range(images):
            queue.left_decoder(cost, 1)
        queue.leave(images)
    assert taken(queue) == at_start > 0
    assert queue.pixels == queue.rows == 0


@pytest.mark.parametrize(("expected_s", "seconds"), [(0.1, 1), (0.5, 1), (1.2, 1), (1.6, 2), (9.5, 9)])
def test_when_to_come_back(expected_s, seconds):
    assert retry_after_s(expected_s, 0.5) == seconds
