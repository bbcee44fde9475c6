import re
from pathlib import Path

from tests.tureen.bench.conftest import engine
from tureen.bench.table import benchmark_text


def test_a_skipped_batch_is_a_dash_with_a_note(measured):
    benchmark, _ = measured
    engines = [engine("a fp32", {1: 5, 2: 9}), engine("b fp32", {1: 50, 2: 90, 4: 100.4})]
    text = benchmark_text(benchmark.model_copy(update={"engines": engines}), Path("bundle"))
    assert re.search(r"a fp32 +1 +5\.0 +9\.0 +—\n", text)
    assert re.search(r"b fp32 +1 +50\.0 +90\.0 +100\n", text)
    assert "raise --seconds" in text
