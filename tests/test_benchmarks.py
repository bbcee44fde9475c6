"""Benchmarks run in a fresh clone: a copy of the tree without photographs beside it and without a demo run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.workload import synthetic_photographs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BENCHMARKS = sorted({name for page in PAGES for name in re.findall(r"python -m benchmarks\.(\w+)", page.read_text())})
PRINT_HELP = """
import contextlib, io, runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=False)
        except SystemExit as end:
            assert end.code == 0, name
    assert "usage: " in output.getvalue(), name
    print(name)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the packages that benchmarks need."""
    root = tmp_path_factory.mktemp("work") / "clone"
    for package in ("benchmarks", "export", "serve", "tests", "training", "tureen"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def run(clone, *arguments, timeout_s=280):
    """Return the stdout of a Python process in the clone; asserts exit status 0."""
    result = subprocess.run([sys.executable, *arguments], cwd=clone, capture_output=True, text=True, timeout=timeout_s)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_benchmark_that_a_page_names_prints_its_usage(clone):
    assert {"serving", "batch", "jobs", "propagation"} <= set(BENCHMARKS)
    assert run(clone, "-c", PRINT_HELP, *BENCHMARKS).split() == BENCHMARKS


def test_make_bench_runs_every_benchmark_that_its_section_and_the_readme_name():
    recipe = (ROOT / "Makefile").read_text().partition("\nbench:")[2]
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    section = page.partition("\n## What `make bench` prints\n")[2].partition("\n## ")[0]
    in_section = set(re.findall(r"python -m benchmarks\.(\w+)", section))
    in_readme = set(re.findall(r"python -m benchmarks\.(\w+)", (ROOT / "README.md").read_text()))
    assert set(re.findall(r"python -m benchmarks\.(\w+)", recipe)) == in_section
    assert in_readme
    assert in_readme <= in_section


def test_a_benchmark_without_the_photographs_prints_that_it_uses_synthetic_images(clone):
    output = run(clone, "-c", "from benchmarks.workload import load_photographs; load_photographs(count=2)")
    assert "images: 2 synthetic" in output


def test_synthetic_images_have_the_size_of_photographs():
    sizes = [len(image) for image in synthetic_photographs(5)]
    assert 100_000 < sum(sizes) / len(sizes) < 130_000


@pytest.mark.parametrize("name", ["precisions", "tune"])
def test_a_benchmark_without_its_run_names_the_command_that_creates_one(clone, name):
    result = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "none"], cwd=clone, capture_output=True, text=True, timeout=280
    )
    assert (result.returncode, "Traceback" in result.stderr) == (2, False)
    assert "`tureen demo --train digits --no-serve` creates" in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("arguments", "expected_output"),
    [
        (("throughput", "--seconds", "0.1"), "cifar10"),
        (("serving", "--only", "limit", "--seconds", "0.5", "--rounds", "1"), "images: 200 synthetic"),
        (("batch", "--rounds", "1", "--divide", "100"), "of the example bundle, repeated"),
        (("many_tokens", "--tokens", "64", "--seconds", "0.2"), "HTTP: 64 tokens / one token"),
        (
            ("add_tokens", "--tokens", "5", "--workers", "1", "--seconds", "0.5", "--rounds", "1"),
            "requests lost",
        ),
        (("propagation", "--changes", "3", "--seconds", "0.2", "--rounds", "1"), "throughput during changes"),
        (("engines", "--models", "ti", "--quick"), "ViT-Ti/16"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_benchmark_runs_at_small_scale_in_a_fresh_clone(clone, arguments, expected_output):
    assert expected_output in run(clone, "-m", f"benchmarks.{arguments[0]}", *arguments[1:], timeout_s=1700)
