from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from serve.policy import next_batch


@dataclass(frozen=True, eq=False)
class Waiting:
    deadline_s: float
    is_abandoned: bool = False


requests = st.lists(st.builds(Waiting, st.floats(0, 10), st.booleans()), max_size=40)


def test_what_waits_is_taken_oldest_first_up_to_the_limit():
    queue = [Waiting(9) for _ in range(5)]
    decision = next_batch(queue, now_s=0, max_batch=3)
    assert decision.batch == queue[:3]
    assert decision.waiting == queue[3:]


def test_neither_the_late_nor_the_gone_take_a_place():
    late, gone, sound = Waiting(1), Waiting(9, is_abandoned=True), Waiting(9)
    decision = next_batch([late, gone, sound], now_s=1, max_batch=1)
    assert (decision.batch, decision.expired, decision.abandoned) == ([sound], [late], [gone])


def test_an_empty_queue_gives_an_empty_batch():
    assert next_batch([], now_s=0, max_batch=8).batch == []


@given(requests, st.floats(0, 10), st.integers(1, 16))
def test_every_request_is_in_exactly_one_place_in_its_order(queue, now_s, max_batch):
    decision = next_batch(queue, now_s=now_s, max_batch=max_batch)
    places = [decision.batch, decision.expired, decision.abandoned, decision.waiting]
    assert sorted(map(id, queue)) == sorted(id(request) for place in places for request in place)
    for place in places:
        assert place == [request for request in queue if request in place]
    assert len(decision.batch) <= max_batch
    assert all(request.deadline_s > now_s and not request.is_abandoned for request in decision.batch)
    assert len(decision.batch) == max_batch or not decision.waiting
