"""A signal ends a run immediately, or after the step if it is deferred; a second signal always ends it."""

import signal

import pytest

from training.interruption import InterruptedRun, StopSignals


def test_a_signal_raises_with_the_exit_status_of_a_shell():
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with pytest.raises(InterruptedRun) as caught, StopSignals().installed():
            signal.raise_signal(number)
        assert caught.value.exit_status == status


def test_a_deferred_signal_is_noted_and_a_second_one_raises():
    now = [0.0]
    signals = StopSignals(now=lambda: now[0])
    with signals.installed(), signals.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        now[0] = 0.5
        signal.raise_signal(signal.SIGINT)  # so soon, it is the same one, forwarded by a launcher
        now[0] = 2
        with pytest.raises(InterruptedRun):
            signal.raise_signal(signal.SIGINT)


def test_under_torchrun_a_second_signal_changes_nothing():
    now = [0.0]
    signals = StopSignals(now=lambda: now[0])
    signals.ignores_repeats = True
    with signals.installed(), signals.deferred():
        for now[0] in (0, 5, 9):
            signal.raise_signal(signal.SIGTERM)
    assert signals.received == signal.SIGTERM


def test_an_interruptible_section_inside_a_deferred_one_is_interrupted():
    signals = StopSignals()
    with signals.installed(), signals.deferred():
        with pytest.raises(InterruptedRun), signals.deferred(False):
            signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def test_handlers_are_put_back_and_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    term = signal.getsignal(signal.SIGTERM)
    with StopSignals().installed():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is not term
    assert signal.getsignal(signal.SIGTERM) is term
