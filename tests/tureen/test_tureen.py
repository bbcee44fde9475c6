"""The public names of `tureen`, and what importing it imports."""

import subprocess
import sys
from pathlib import Path

import pytest

import tureen

ROOT = Path(__file__).parents[2]
WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = sys.modules["PIL"] = None  # an import of either raises ImportError
import tureen
assert set(tureen.__all__) <= set(dir(tureen))
print(tureen.Prediction(label="7", index=7, probability=0.5).label)
try:
    tureen.load
except ImportError as error:
    print(error.name)
"""


@pytest.mark.parametrize("name", tureen.__all__)
def test_every_public_name_exists(name):
    assert getattr(tureen, name) is getattr(tureen, name)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'tureen' has no attribute 'lod'"):
        tureen.lod  # noqa: B018


def test_numpy_and_pillow_are_imported_at_the_first_use_of_a_name_that_needs_them():
    shown = subprocess.check_output([sys.executable, "-c", WITHOUT_NUMPY], cwd=ROOT, text=True)
    assert shown.split() == ["7", "numpy"]
