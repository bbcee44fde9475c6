import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.admission import QueueTime, retry_after_s


def served(queue_time, *, image_s, images, ahead=32, start_s=0.0):
    """That many images answered in turn at that pace, with others always ahead."""
    queue_time.enter(ahead, start_s)
    for number in range(images):
        queue_time.enter(1, start_s + number * image_s)
        queue_time.leave(1, start_s + (number + 1) * image_s, was_run=True)
    return start_s + images * image_s


def test_the_expected_time_is_the_measured_one_of_everybody_ahead():
    queue_time = QueueTime(image_s=1.0)
    served(queue_time, image_s=0.01, images=2000)
    assert queue_time.image_s == pytest.approx(0.01, rel=0.01)
    assert queue_time.expected_s(images=8) == pytest.approx(40 * queue_time.image_s)


def test_answers_that_come_a_batch_at_a_time_tell_the_same_pace():
    queue_time = QueueTime(image_s=1.0)
    queue_time.enter(64, 0.0)
    for batch in range(1, 100):
        for _ in range(32):
            queue_time.leave(1, batch * 0.32, was_run=True)
            queue_time.enter(1, batch * 0.32)
    # Within a batch the pace reads zero, at its first answer all of it: the mean is right, and the last word its share.
    assert 0.005 < queue_time.image_s < 0.02


def test_a_slower_machine_is_noticed_within_a_few_images():
    queue_time = QueueTime(image_s=0.01)
    served(queue_time, image_s=0.1, images=128)
    assert queue_time.image_s > 0.07


def test_the_pace_of_an_idle_machine_teaches_nothing():
    queue_time = QueueTime(image_s=0.01)
    for number in range(100):
        queue_time.enter(1, number * 10.0)
        queue_time.leave(1, number * 10.0 + 9, was_run=True)
    assert queue_time.image_s == 0.01


def test_refused_images_do_not_make_the_machine_look_fast():
    queue_time = QueueTime(image_s=0.1)
    queue_time.enter(1000, 0.0)
    for number in range(900):
        queue_time.leave(1, number / 1e6, was_run=False)
    assert queue_time.image_s == 0.1


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20), st.floats(0, 1)), max_size=50))
def test_what_enters_and_leaves_adds_up_and_the_pace_stays_a_number(steps):
    queue_time, now_s, inside = QueueTime(image_s=0.01), 0.0, 0
    for enters, images, elapsed_s in steps:
        now_s += elapsed_s
        if enters:
            queue_time.enter(images, now_s)
            inside += images
        elif inside >= images:
            queue_time.leave(images, now_s, was_run=True)
            inside -= images
        assert queue_time.images == inside
        assert 0 <= queue_time.image_s < 100


@pytest.mark.parametrize(("expected_s", "seconds"), [(0.1, 1), (0.5, 1), (1.2, 1), (1.6, 2), (9.5, 9)])
def test_when_to_come_back(expected_s, seconds):
    assert retry_after_s(expected_s, 0.5) == seconds
