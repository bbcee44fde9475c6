import json

import pytest

from training.errors import CheckpointError
from training.weights.library_settings import DINOV2_EPS, HALF, IMAGENET_MEAN, TRANSFORMERS_EPS, library_settings

NAMES = {"blocks.0.proj.weight": "in the file"}
SCALED = NAMES | {"blocks.0.scale1": "in the file"}


@pytest.mark.parametrize(
    ("library", "names", "mean", "eps"),
    [
        ("timm", NAMES, HALF, 1e-6),
        ("timm", SCALED, IMAGENET_MEAN, 1e-6),
        ("transformers", NAMES, HALF, TRANSFORMERS_EPS),
        ("transformers", SCALED, IMAGENET_MEAN, DINOV2_EPS),
        ("torchvision", NAMES, IMAGENET_MEAN, 1e-6),
    ],
)
def test_without_files_the_settings_are_the_defaults_of_the_family(tmp_path, library, names, mean, eps):
    settings, assumed = library_settings(library, names, tmp_path / "vit.safetensors", width=384)
    assert (settings["heads"], settings["mean"], settings["norm_eps"]) == (6, mean, eps)
    assert all("assumed" in message for message in assumed)


def test_a_setting_that_no_model_here_has_is_refused_with_the_values_that_are_supported(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
    with pytest.raises(CheckpointError, match="has model_type 'vit_mae': Tureen supports 'vit' and 'dinov2'"):
        library_settings("transformers", NAMES, tmp_path / "vit.safetensors", width=384)
