from tureen.timing import LEAST_ROUNDS, calls_to_fill, median_seconds, run_in_turns, time_calls


def test_each_runs_once_in_every_round_in_alternating_order():
    order = []

    def turn(name):
        order.append(name)
        return name, len(order)

    results = run_in_turns([lambda: turn("a"), lambda: turn("b")], rounds=4)
    assert [name for name, _ in results[0]] == ["a"] * 4
    assert [name for name, _ in results[1]] == ["b"] * 4
    assert "".join(order) == "baabbaab"


def test_three_rounds_run_even_if_time_is_up():
    assert len(run_in_turns([list], rounds=31, seconds=1e-9)[0]) == LEAST_ROUNDS
    assert len(run_in_turns([list], rounds=2, seconds=1e-9)[0]) == 2
    assert len(run_in_turns([list], rounds=31, seconds=1e9)[0]) == 31


def test_every_function_is_called_equally_often():
    calls = {"a": 0, "b": 0}

    def count(name):
        calls[name] += 1

    seconds = median_seconds([lambda: count("a"), lambda: count("b")], rounds=3)
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert calls["a"] == calls["b"] + 1  # the first call measures how long a call takes


def test_a_turn_is_as_many_calls_as_fill_it_and_one_at_least():
    assert calls_to_fill(0.02, 0.003) == 6
    assert calls_to_fill(0.02, 5) == 1
    assert calls_to_fill(0.02, 0) > 1
    assert time_calls(list, 2) > 0
