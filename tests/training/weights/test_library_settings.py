import json

import pytest

from training.errors import CheckpointError
from training.weights.library_settings import CLIP_MEAN, HALF, IMAGENET_MEAN, library_settings

NAMES = {"blocks.0.proj.weight": "in the file"}
SCALED = NAMES | {"blocks.0.scale1": "in the file"}
CLIP_NAMES = NAMES | {"norm_pre.weight": "in the file"}


@pytest.mark.parametrize(
    ("library", "names", "mean", "eps"),
    [
        ("timm", NAMES, HALF, 1e-6),
        ("timm", SCALED, IMAGENET_MEAN, 1e-6),
        ("transformers", NAMES, HALF, 1e-12),
        ("transformers", SCALED, IMAGENET_MEAN, 1e-6),
        ("transformers", CLIP_NAMES, CLIP_MEAN, 1e-5),
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


@pytest.mark.parametrize(
    ("config", "architecture", "activation"),
    [
        ({"architecture": "vit_base_patch16_clip_224"}, None, "gelu"),
        ({"architecture": "vit_base_patch16_clip_quickgelu_224"}, None, "quick_gelu"),
        ({"architecture": "vit_base_patch16_clip_224"}, "vit_base_patch16_clip_quickgelu_224", "quick_gelu"),
        ({"architecture": "vit_base_patch16_clip_224", "model_args": {"act_layer": "quick_gelu"}}, None, "quick_gelu"),
        ({"hidden_act": "quick_gelu"}, None, "quick_gelu"),
    ],
)
def test_the_activation_of_clip_follows_from_its_name_in_timm(tmp_path, config, architecture, activation):
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "vit.safetensors"
    assert library_settings("timm", CLIP_NAMES, file, width=384, architecture=architecture)[0]["mlp"] == activation


def test_an_unknown_activation_of_clip_is_required(tmp_path):
    with pytest.raises(CheckpointError, match=r'write \{"hidden_act": "quick_gelu"\} \(that of OpenAI\)'):
        library_settings("timm", CLIP_NAMES, tmp_path / "vit.safetensors", width=384)
