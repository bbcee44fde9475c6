import re

from tests.tureen.bench.conftest import run


def test_the_table_shows_engines_reasons_and_commands(damaged, tmp_path):
    result = run(damaged, "--threads", 1, "--max-batch", 2, "--seconds", 0.1, "--cache-dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # progress is for a terminal
    for shown in ("onnxruntime fp32", "openvino fp32", "left out: openvino int8", "p99", f"Saved in {tmp_path}"):
        assert shown in result.stdout
    assert len(re.findall(rf"  tureen serve {damaged} --engine \S+ --precision fp32", result.stdout)) == 2
