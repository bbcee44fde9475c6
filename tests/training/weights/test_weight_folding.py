from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from training.errors import CheckpointError
from training.weights.weight_folding import fold_weights

FILE = Path("vit.safetensors")
WIDTH, HIDDEN, PATCH = 8, 12, 4


def weights(positions=10, **more):
    return {
        "patch_embed.weight": torch.randn(WIDTH, 3, PATCH, PATCH),
        "cls_token": torch.randn(1, 1, WIDTH),
        "positions": torch.randn(1, positions, WIDTH),
        "blocks.0.norm1.weight": torch.ones(WIDTH),
        "blocks.0.proj.weight": torch.randn(WIDTH, WIDTH),
        "blocks.0.proj.bias": torch.randn(WIDTH),
        "blocks.0.fc1.weight": torch.randn(HIDDEN, WIDTH),
        "blocks.0.fc2.weight": torch.randn(WIDTH, HIDDEN),
        **more,
    }


def test_the_shape_of_the_model_follows_from_its_tensors():
    assert fold_weights(weights(), FILE) == {
        "image_size": 12,
        "patch_size": PATCH,
        "width": WIDTH,
        "depth": 1,
        "registers": 0,
        "mlp_ratio": 1.5,
        "pre_norm": False,
        "qk_norm": False,
    }


def test_layer_scale_becomes_part_of_the_layer_before_it():
    scale, x = torch.randn(WIDTH), torch.randn(3, WIDTH)
    given = weights(**{"blocks.0.scale1": scale})
    before = scale * F.linear(x, given["blocks.0.proj.weight"], given["blocks.0.proj.bias"])
    fold_weights(given, FILE)
    assert "blocks.0.scale1" not in given
    torch.testing.assert_close(F.linear(x, given["blocks.0.proj.weight"], given["blocks.0.proj.bias"]), before)


def test_a_layer_without_its_scale_is_left_as_it_is():
    given = weights(**{"blocks.0.scale1": torch.randn(WIDTH)})
    before = given["blocks.0.fc2.weight"]
    fold_weights(given, FILE)
    assert given["blocks.0.fc2.weight"] is before


def test_a_first_layer_of_twice_the_width_is_that_of_a_gated_mlp():
    shape = fold_weights(weights(**{"blocks.0.fc1.weight": torch.randn(2 * HIDDEN, WIDTH)}), FILE)
    assert (shape["mlp"], shape["mlp_ratio"]) == ("swiglu", 1.5)


def test_clip_has_flat_tensors_and_no_bias_in_its_patch_embedding():
    token, positions = torch.randn(WIDTH), torch.randn(10, WIDTH)
    given = weights(cls_token=token, **{"norm_pre.weight": torch.ones(WIDTH)}) | {"positions": positions}
    assert fold_weights(given, FILE)["pre_norm"]
    assert torch.equal(given["clean_token"], token + positions[0])
    assert not given["patch_embed.bias"].any()


@pytest.mark.parametrize(("positions", "has_class_position"), [(9, False), (10, True)])
def test_the_class_token_has_a_position_unless_the_positions_are_a_square(positions, has_class_position):
    given = weights(positions)
    token, first = given["cls_token"].flatten(), given["positions"][0, 0]
    fold_weights(given, FILE)
    assert torch.equal(given["clean_token"], token + first if has_class_position else token)
    assert given["pos_embed"].shape == (1, 9, WIDTH)


@pytest.mark.parametrize(("positions", "positioned"), [(9, 0), (10, 1), (14, 5)])
def test_registers_keep_their_positions_if_they_have_any(positions, positioned):
    given = weights(positions, registers=torch.randn(1, 4, WIDTH))
    registers, first = given["registers"][0], given["positions"][0, 1:5]
    shape = fold_weights(given, FILE)
    assert (shape["registers"], shape["image_size"]) == (4, 12)
    assert torch.equal(given["registers"], registers + first if positioned == 5 else registers)


def test_positions_of_no_square_are_refused():
    with pytest.raises(CheckpointError, match="square of patches"):
        fold_weights(weights(8), FILE)
