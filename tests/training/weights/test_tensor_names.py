from pathlib import Path

import pytest

from training.errors import CheckpointError
from training.weights.tensor_names import our_names

FILE = Path("vit.safetensors")


@pytest.mark.parametrize(
    ("library", "names"),
    [
        ("timm", ["patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.11.mlp.fc1.bias", "head.weight"]),
        (
            "transformers",
            [
                "vit.embeddings.patch_embeddings.projection.weight",
                "vit.embeddings.cls_token",
                "vit.embeddings.position_embeddings",
                "vit.encoder.layer.11.intermediate.dense.bias",
                "classifier.weight",
            ],
        ),
        (
            "torchvision",
            [
                "conv_proj.weight",
                "class_token",
                "encoder.pos_embedding",
                "encoder.layers.encoder_layer_11.mlp.linear_1.bias",
                "heads.head.weight",
            ],
        ),
    ],
)
def test_each_library_has_its_names_for_the_same_tensors(library, names):
    ours = ["patch_embed.weight", "cls_token", "positions", "blocks.11.fc1.bias", "head.weight"]
    assert our_names(names, FILE) == (library, dict(zip(ours, names, strict=True)))


def test_a_tensor_without_a_place_is_refused_with_its_name_and_the_library():
    with pytest.raises(CheckpointError, match=r"'blocks\.0\.ls3\.gamma' does not exist .* model of timm without"):
        our_names(["patch_embed.proj.weight", "blocks.0.ls3.gamma"], FILE)


def test_two_tensors_for_one_place_are_refused():
    with pytest.raises(CheckpointError, match=r"'norm\.weight'"):
        our_names(["patch_embed.proj.weight", "fc_norm.weight", "norm.weight"], FILE)


def test_another_model_is_refused():
    with pytest.raises(CheckpointError, match=r"vit\.safetensors is no Vision Transformer of timm"):
        our_names(["conv1.weight", "layer1.0.conv1.weight"], FILE)
