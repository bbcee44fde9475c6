import subprocess
import sys

import pytest
from pydantic import ValidationError

from training.models.shapes import ResNetConfig, ViTConfig


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValidationError, match="width 10 is not a multiple of heads 3"):
        ViTConfig(image_size=8, patch_size=4, width=10, depth=1, heads=3, classes=2)


def test_the_patches_of_an_image_are_counted():
    assert ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=2, classes=2).patches == 4


def test_parameters_of_each_mode_beside_shared_statistics_need_a_batch_norm():
    with pytest.raises(ValidationError, match="norm layer keeps no statistics"):
        ResNetConfig(depth=18, image_size=8, classes=3, norm="layer", adapter="dual_params")


def test_the_recipes_are_read_without_torch():
    code = "import sys, training.recipes; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
