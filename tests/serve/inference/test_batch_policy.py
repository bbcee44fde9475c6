from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serve.inference.batch_policy import BatchParts, Priority, next_batch


@dataclass(frozen=True, eq=False)
class Waiting:
    deadline_s: float
    is_abandoned: bool = False
    priority: Priority = Priority.ONLINE


requests = st.lists(st.builds(Waiting, st.floats(0, 10), st.booleans(), st.sampled_from(Priority)), max_size=40)


def test_the_oldest_waiting_requests_form_the_batch_up_to_the_limit():
    queue = [Waiting(9) for _ in range(5)]
    decision = next_batch(queue, now_s=0, max_batch=3, max_background=1)
    assert decision.batch == queue[:3]
    assert decision.waiting == queue[3:]


def test_late_and_cancelled_requests_take_no_place():
    late, gone, sound = Waiting(1), Waiting(9, is_abandoned=True), Waiting(9)
    decision = next_batch([late, gone, sound], now_s=1, max_batch=1, max_background=1)
    assert (decision.batch, decision.expired, decision.abandoned) == ([sound], [late], [gone])


def test_an_empty_queue_gives_an_empty_batch():
    assert next_batch([], now_s=0, max_batch=8, max_background=8).batch == []


@given(requests, st.floats(0, 10), st.integers(1, 16), st.integers(0, 20))
def test_every_request_is_in_exactly_one_place_in_its_order(queue, now_s, max_batch, max_background):
    decision = next_batch(queue, now_s=now_s, max_batch=max_batch, max_background=max_background)
    places = [decision.batch, decision.expired, decision.abandoned, decision.waiting]
    assert sorted(map(id, queue)) == sorted(id(request) for place in places for request in place)
    for place in places[1:]:
        assert place == [request for request in queue if request in place]
    assert decision.batch == [request for request in queue if request in decision.batch]
    assert len({request.priority for request in decision.batch}) <= 1
    most = {Priority.ONLINE: max_batch, Priority.BACKGROUND: min(max_batch, max_background)}
    waiting_online = [request for request in decision.waiting if request.priority is Priority.ONLINE]
    kind = decision.batch[0].priority if decision.batch else Priority.BACKGROUND
    assert len(decision.batch) <= most[kind]
    assert kind is Priority.ONLINE or not waiting_online
    assert all(request.deadline_s > now_s and not request.is_abandoned for request in decision.batch)
    of_its_kind = [request for request in decision.waiting if request.priority is kind]
    assert len(decision.batch) == most[kind] or not of_its_kind


def test_rows_of_jobs_run_when_no_online_row_waits_and_never_with_one():
    job, online = Waiting(9, priority=Priority.BACKGROUND), Waiting(9)
    assert next_batch([job, online], now_s=0, max_batch=2, max_background=2).batch == [online]
    assert next_batch([job, job, job], now_s=0, max_batch=4, max_background=2).batch == [job, job]
    assert next_batch([job, job, job], now_s=0, max_batch=2, max_background=9).batch == [job, job]
    assert next_batch([job], now_s=0, max_batch=1, max_background=0).batch == []


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_of_a_failed_batch_every_valid_row_succeeds_once_and_every_broken_row_fails_alone(is_broken):
    succeeded, failed = [], []
    parts = BatchParts(range(len(is_broken)))
    for part in parts:
        if not any(is_broken[row] for row in part):
            succeeded += part
        elif not parts.halve(part):
            failed += part
    assert succeeded == [row for row, broken in enumerate(is_broken) if not broken]
    assert failed == [row for row, broken in enumerate(is_broken) if broken]


@dataclass(eq=False)
class Row:
    deadline_s: float
    priority: Priority
    is_abandoned: bool = False
    fate: str = ""


class QueueOverTime(RuleBasedStateMachine):
    """Rows arrive, are abandoned and expire in any order while batches are formed. Each row gets one outcome, once."""

    def __init__(self):
        super().__init__()
        self.now_s = 0.0
        self.queue = []
        self.rows = []

    @rule(patience_s=st.floats(0, 5), priority=st.sampled_from(Priority))
    def arrive(self, patience_s, priority):
        row = Row(self.now_s + patience_s, priority)
        self.rows.append(row)
        self.queue.append(row)

    @rule(which=st.integers(0, 100))
    def leave(self, which):
        if self.queue:
            self.queue[which % len(self.queue)].is_abandoned = True

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds):
        self.now_s += seconds

    @rule(max_batch=st.integers(1, 5), max_background=st.integers(0, 5))
    def take(self, max_batch, max_background):
        before = list(self.queue)
        decision = next_batch(before, now_s=self.now_s, max_batch=max_batch, max_background=max_background)
        for place in ("batch", "expired", "abandoned"):
            for row in getattr(decision, place):
                assert not row.fate
                row.fate = place
        self.queue = decision.waiting
        assert all(row.deadline_s > self.now_s and not row.is_abandoned for row in decision.batch)
        for (
            taken
        ) in decision.batch:  # no row overtakes one of its priority, and no background row overtakes an online one
            for waiting in self.queue:
                assert (taken.priority, before.index(taken)) < (waiting.priority, before.index(waiting))

    @invariant()
    def no_row_is_lost(self):
        assert [row for row in self.rows if not row.fate] == self.queue


TestQueueOverTime = QueueOverTime.TestCase
