"""`tureen batch` and a server's jobs with the packages of [serve,cpu] alone: all but Parquet and URLs."""

import importlib.metadata
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement

from tests.serve.jobs.conftest import BUNDLE, ROOT

WITHOUT = """
import importlib.metadata, sys
allowed = set(sys.argv.pop(1).split(","))
owners = importlib.metadata.packages_distributions()

class Absent:
    def find_spec(self, name, path=None, target=None):
        dists = [dist.lower().replace("_", "-") for dist in owners.get(name.partition(".")[0], ())]
        if dists and not allowed.intersection(dists):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
BATCH = WITHOUT + "from tureen.cli import main; sys.exit(main())"
SUBMIT = (
    WITHOUT
    + """
from pathlib import Path
from serve.errors import InputError
from serve.jobs.rooted_files import RootedFiles
from serve.jobs.job_store import JobRequest
from serve.jobs.runner import check_paths
folder = Path(sys.argv[1])
for format in ("csv", "jsonl", "parquet", None):
    request = JobRequest(input=str(folder / "photos"), output=str(folder / "out"), format=format)
    try:
        check_paths(RootedFiles([folder], [folder]), request)
        print("taken")
    except InputError as error:
        print(error)
"""
)


def installed_with(*extras):
    """The distributions that pip would bring for these extras of ours, as far as they are here."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    ahead = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    found = {"tureen"}
    while ahead:
        needed = Requirement(ahead.pop())
        name = needed.name.lower().replace("_", "-")
        if name in found or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        ahead += importlib.metadata.requires(name) or []
    return found


def run(code, *arguments):
    allowed = ",".join(sorted(installed_with("serve", "cpu")))
    return subprocess.run(
        [sys.executable, "-c", code, allowed, *map(str, arguments)], capture_output=True, text=True, timeout=200
    )


def test_batch_runs_with_serve_and_cpu_alone_and_names_the_extra_for_parquet(photos, tmp_path):
    result = run(BATCH, "batch", BUNDLE, photos, tmp_path / "out", "--format", "csv", "--engine", "onnxruntime")
    assert (result.returncode, "23 rows of 23 images" in result.stdout) == (0, True), result.stderr
    result = run(BATCH, "batch", BUNDLE, photos, tmp_path / "other")
    assert (result.returncode, "pyarrow is not installed: install Tureen with its extra [batch]" in result.stderr) == (
        1,
        True,
    )
    assert not (tmp_path / "other").exists()


def test_a_server_without_pyarrow_refuses_parquet_when_it_is_submitted(photos, tmp_path):
    result = run(SUBMIT, tmp_path)
    assert result.returncode == 0, result.stderr
    refused = "this server has no pyarrow for Parquet: ask for the format jsonl or csv"
    assert result.stdout.splitlines() == ["taken", "taken", refused, refused]
