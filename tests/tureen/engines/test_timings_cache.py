"""Whether a race was run, and what was opened, is read from the log, as an operator would."""

import dataclasses
import logging
import os
import re
import stat

import pytest

import tureen
from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import FileRecord, ParityRow
from tureen.engines import open_engine
from tureen.engines.base import EngineOptions
from tureen.engines.timings_cache import (
    LOW_PRECISION_HANDICAP,
    Ranking,
    Timing,
    current_conditions,
    explain_choice,
    make_ranking,
    read_ranking,
    write_ranking,
)


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return load_bundle(bundle_path)


@pytest.fixture
def options(tmp_path):
    return EngineOptions(threads=1, cache=tmp_path / "cache")


@pytest.fixture
def opened(caplog):
    """Open an engine and close it again: its name and precision, and what was logged meanwhile."""
    caplog.set_level(logging.INFO, "tureen.engines")

    def open_and_close(bundle, options, engine="auto", precision=None):
        caplog.clear()
        engine = open_engine(bundle, engine, precision, options)
        engine.close()
        return (engine.name, engine.precision), caplog.text

    return open_and_close


def timings(*images_per_second):
    names = ("onnxruntime fp32", "openvino fp32", "openvino bf16")
    return [
        Timing(engine=name.split()[0], precision=name.split()[1], images_per_second=rate)
        for name, rate in zip(names, images_per_second, strict=False)
    ]


def only(bundle, *names):
    """The bundle, as if it listed these engines only."""
    rows = [row for row in bundle.manifest.parity if f"{row.engine} {row.precision}" in names]
    return dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"parity": rows}))


@pytest.fixture(scope="module")
def two(bundle):
    return only(bundle, "onnxruntime fp32", "openvino fp32")


def known(bundle, options, *images_per_second):
    ranking = make_ranking(bundle, options, timings(*images_per_second), batch=32, by="bench")
    assert write_ranking(ranking, options.cache)
    return ranking


def file_of(options):
    (file,) = options.cache.glob("rankings/*.json")
    return file


def test_the_first_open_races_and_the_second_knows(two, options, opened):
    first, log = opened(two, options)
    assert "engine race: onnxruntime fp32" in log
    assert "engine race: openvino fp32" in log
    second, log = opened(two, options)
    assert second == first
    assert "race: " not in log
    assert f"engine chosen: {' '.join(first)}, measured" in log


@pytest.mark.parametrize(("rates", "best"), [((200, 100), "onnxruntime"), ((100, 200), "openvino")])
def test_the_fastest_measured_engine_opens(two, options, opened, rates, best):
    known(two, options, *rates)
    (name, _), log = opened(two, options)
    assert name == best
    assert "race: " not in log


def test_measurements_decide_among_the_precisions_of_one_engine_too(bundle, options, opened):
    if bundle.parity("openvino", "bf16") is None:
        pytest.skip("this machine has no bf16")
    known(bundle, options, 300, 100, 200)
    assert opened(bundle, options, "openvino")[0] == ("openvino", "bf16")
    assert opened(bundle, options, precision="fp32")[0] == ("onnxruntime", "fp32")


def test_a_lower_precision_has_to_be_worth_its_error(bundle, options):
    ranking = make_ranking(bundle, options, timings(1, 100, 99 * LOW_PRECISION_HANDICAP), batch=32, by="bench")
    assert [timing.precision for timing in ranking.timings] == ["fp32", "bf16", "fp32"]
    ranking = make_ranking(bundle, options, timings(1, 100, 101 * LOW_PRECISION_HANDICAP), batch=32, by="bench")
    assert ranking.timings[0].precision == "bf16"


def test_without_a_cache_nothing_is_saved(two, opened, tmp_path):
    for _ in range(2):
        assert "engine race:" in opened(two, EngineOptions(threads=1))[1]
    assert explain_choice(two, EngineOptions(threads=1)) is None


def test_knowledge_of_other_conditions_is_none(two, bundle, options):
    known(two, options, 1, 2)
    assert read_ranking(two, options) is not None
    assert read_ranking(two, dataclasses.replace(options, threads=2)) is None
    assert read_ranking(two, dataclasses.replace(options, threads=2, streams=2)) is None
    assert read_ranking(only(bundle, "onnxruntime fp32"), options) is None
    version = two.manifest.model_copy(update={"version": "another"})
    assert read_ranking(dataclasses.replace(two, manifest=version), options) is None
    files = {**two.manifest.files, "backbone.onnx": FileRecord(sha256="0" * 64, size=1)}
    changed = two.manifest.model_copy(update={"files": files})
    assert read_ranking(dataclasses.replace(two, manifest=changed), options) is None


def test_the_conditions_name_machine_runtimes_and_tureen(two, options):
    here = current_conditions(two, options)
    assert {"onnxruntime", "openvino"} <= set(here.runtimes)
    assert here.tureen == tureen.__version__
    assert here.processor
    assert here.cpus >= 1


def test_knowledge_from_another_runtime_version_is_ignored_even_in_the_right_place(two, options, opened):
    ranking = known(two, options, 1, 2)
    other = ranking.conditions.model_copy(update={"runtimes": {"onnxruntime": "0.1"}})
    file_of(options).write_text(ranking.model_copy(update={"conditions": other}).model_dump_json())
    _, log = opened(two, options)
    assert "has other conditions" in log
    assert "engine race:" in log


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"timings": []}', b"[1, 2]", b"null"])
def test_a_damaged_file_is_ignored_with_a_line_in_the_log_and_replaced(two, options, opened, content):
    known(two, options, 1, 2)
    file_of(options).write_bytes(content)
    _, log = opened(two, options)
    assert "is ignored" in log
    assert "engine race:" in log
    assert "engine chosen:" in opened(two, options)[1]


def test_a_cache_that_cannot_be_written_is_only_a_warning(two, opened, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    for _ in range(2):
        _, log = opened(two, EngineOptions(threads=1, cache=tmp_path / "file"))
        assert "nothing is kept for the next start" in log
        assert "engine race:" in log
    assert (tmp_path / "file").read_text() == "not a directory"


def test_saving_to_an_unwritable_cache_reports_it(two, tmp_path):
    (tmp_path / "file").write_text("")
    options = EngineOptions(threads=1, cache=tmp_path / "file")
    assert not write_ranking(make_ranking(two, options, timings(1, 2), batch=32, by="bench"), options.cache)


def test_cached_files_are_private_and_leave_no_temporary_file(two, options):
    known(two, options, 1, 2)
    known(two, options, 3, 4)
    assert stat.S_IMODE(file_of(options).parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file_of(options).stat().st_mode) == 0o600
    assert os.listdir(file_of(options).parent) == [file_of(options).name]
    assert Ranking.model_validate_json(file_of(options).read_text()).timings[0].images_per_second == 4


def test_if_the_best_engine_is_broken_the_next_opens(two, own_bundle, options, opened):
    name = "engines/backbone-int8.onnx"
    (own_bundle / "engines").mkdir()
    (own_bundle / name).write_bytes(b"cut short")
    row = two.manifest.parity[0].model_dump() | {"engine": "openvino", "precision": "int8", "artefact": name}
    manifest = two.manifest.model_copy(
        update={
            "parity": [*two.manifest.parity, ParityRow.model_validate(row)],
            "files": {**two.manifest.files, name: FileRecord(sha256="0" * 64, size=9)},
        }
    )
    damaged = dataclasses.replace(two, path=own_bundle, manifest=manifest)
    best = Timing(engine="openvino", precision="int8", images_per_second=1000)
    write_ranking(make_ranking(damaged, options, [*timings(200, 100), best], batch=32, by="bench"), options.cache)
    (engine, _), log = opened(damaged, options)
    # At info: where another engine opens, Python prints nothing in a program that configures no logging.
    assert re.search(r"^INFO +tureen\.engines.*engine left out: openvino int8: ", log, re.MULTILINE)
    assert engine == "onnxruntime"
    assert "race: " not in log


def test_an_engine_that_was_out_and_now_opens_is_measured_with_the_others(two, options, opened):
    known(two, options, 100)
    _, log = opened(two, options)
    assert "engine race: openvino fp32" in log
    assert "race: " not in opened(two, options)[1]


def test_an_explanation_has_the_measurements_their_time_and_method(two, options):
    assert explain_choice(two, options) is None
    ranking = known(two, options, 190.4, 381.2)
    assert explain_choice(two, options) == (
        f"measured {ranking.measured_on} by bench at batch 32: openvino fp32 381 images/s, onnxruntime fp32 190"
    )


def test_an_explanation_has_the_reason_against_the_fastest(bundle, options):
    known(bundle, options, 9, 80, 85)
    why = explain_choice(bundle, options)
    assert "openvino fp32 80.0 images/s, openvino bf16 85.0, onnxruntime fp32 9.0" in why
    assert why.endswith("; a lower precision has to be 1.1 × as fast")
