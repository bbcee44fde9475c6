import importlib.metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tureen.commands.package_versions import Needed, package_report, parse_requirement, version_state

VERSIONS = ["1", "1.0", "1.0rc1", "1.0.1", "1.10", "1.9", "2.0.dev3", "2.0", "2024.10.1", "2.5.1+cu124", "0.53"]


@pytest.mark.parametrize(
    ("line", "needed"),
    [
        ("numpy>=2.1", Needed("numpy", ">=2.1", None)),
        ('fastapi>=0.134; extra == "serve"', Needed("fastapi", ">=0.134", "serve")),
        ("uvicorn<0.55,>=0.53; extra == 'serve'", Needed("uvicorn", "<0.55,>=0.53", "serve")),
        ("uvloop>=0.21; (sys_platform != 'win32') and extra == 'serve'", Needed("uvloop", ">=0.21", "serve")),
        ("psycopg[binary] (>=3.2) ; extra == 'postgres'", Needed("psycopg", ">=3.2", "postgres")),
        ('tureen[export,train]; extra == "demo"', Needed("tureen", "", "demo", ("export", "train"))),
        ("torch", Needed("torch", "", None)),
        ("", None),
    ],
)
def test_a_line_of_the_metadata_has_a_package_its_bounds_and_its_extra(line, needed):
    assert parse_requirement(line) == needed


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bound", ["1", "1.0.1", "2.0", "1.10"])
def test_versions_are_compared_as_packaging_compares_them(version, bound):
    expected = "below" if Version(version) < Version(bound) else "ok"
    assert version_state(version, f">={bound}") == expected


@pytest.mark.parametrize(
    ("version", "state"), [(None, "missing"), ("0.52.9", "below"), ("0.53", "ok"), ("0.55", "above"), ("1", "above")]
)
def test_a_package_is_within_its_bounds_or_not(version, state):
    assert version_state(version, ">=0.53,<0.55") == state


def test_a_version_or_bound_of_another_form_is_no_finding():
    assert version_state("unknown", ">=1") == "ok"
    assert version_state("1.0", "~=2.0") == "ok"
    assert version_state("1.0", "") == "ok"


def test_the_report_has_the_installed_packages_that_the_metadata_names():
    report = package_report()
    assert report.problem is None
    by_name = {one.name: one for one in report.packages}
    for line in importlib.metadata.requires("tureen"):
        requirement = Requirement(line)
        if requirement.name in by_name:
            assert by_name[requirement.name].version == importlib.metadata.version(requirement.name)
    assert by_name["numpy"].state == "ok"
    assert report.extras["serve"] == []
    assert "dev" not in report.extras


def test_a_distribution_that_is_not_installed_is_a_problem():
    report = package_report("tureen-that-does-not-exist")
    assert (report.packages, report.extras) == ([], {})
    assert "not installed as a package" in report.problem
