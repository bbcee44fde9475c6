from serve.settings_sources import parse_settings


def test_the_best_settings_are_flags_that_the_server_takes(measured):
    benchmark, _ = measured
    for setting in (benchmark.throughput, benchmark.latency):
        settings = parse_settings(["bundle", "--threads", "2", *setting.flags.split()], {})
        assert (settings.engine, settings.precision) == (setting.engine, setting.precision)
        assert (settings.streams, settings.max_batch) == (setting.streams, setting.max_batch)
