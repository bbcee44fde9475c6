"""Every way to name a bundle, and the packages that each way imports."""

import subprocess
import sys

import pytest

import tureen
from tests.remote_hosts import REPOSITORY, files_of
from tureen.bundle.examples import EXAMPLES
from tureen.errors import BundleError
from tureen.remote.locate import locate_bundle

PROGRAM = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))
from tureen.errors import BundleAddressError
from tureen.remote.locate import locate_bundle
try:
    print(locate_bundle({bundle!r}))
except BundleAddressError as error:
    print(error)
print([name for name in ("fsspec", "huggingface_hub", "s3fs") if sys.modules.get(name)])
"""


def run(bundle, *absent):
    program = PROGRAM.format(bundle=str(bundle), absent=absent)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


def test_a_path_and_an_example_are_found_as_before(tmp_path, bundle):
    assert locate_bundle(bundle) == bundle
    assert locate_bundle("cifar10") == EXAMPLES / "cifar10"
    with pytest.raises(BundleError, match="there is no such path"):
        locate_bundle(tmp_path / "absent")
    assert locate_bundle(tmp_path / "absent", must_exist=False) == tmp_path / "absent"


def test_a_program_loads_a_bundle_of_the_hub(hub, bundle, cache):
    hub.commit(REPOSITORY, files_of(bundle))
    with tureen.load(f"hf://{REPOSITORY}", engine="onnxruntime") as soup:
        assert soup.bundle.path.is_relative_to(cache)


def test_a_path_imports_no_package_of_an_address():
    assert run("cifar10") == [str(EXAMPLES / "cifar10"), "[]"]


@pytest.mark.parametrize(
    ("address", "absent", "extra"),
    [
        ("hf://ada/digits", "huggingface_hub", "hub"),
        ("s3://bucket/digits", "s3fs", "s3"),
        ("file:///srv/digits", "fsspec", "hub"),
    ],
)
def test_an_absent_package_is_named_with_its_extra(address, absent, extra, cache):
    said, _ = run(address, absent)
    assert said == f"{address} needs the package {absent}, which is not installed: pip install 'tureen[{extra}]'"
