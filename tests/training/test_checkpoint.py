"""A checkpoint on disk: the same after loading, and an error for any file that is missing or changed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.data.datasets import Images
from training.errors import CheckpointError
from training.models.vit import DualTokenViT
from training.recipes import load_recipe
from tureen.bundle.manifest import Accuracy, AccuracyRow
from tureen.preprocess import PreprocessSpec

FILES = ["test.npz", "validation.npz"]


@pytest.fixture
def saved(tmp_path):
    """The directory of a checkpoint, and the checkpoint."""
    torch.manual_seed(0)
    recipe = load_recipe("digits", ["model.width=16", "model.depth=1"])
    share = Accuracy(value=0.5, low=0.4, high=0.6)
    checkpoint = Checkpoint(
        model=DualTokenViT(recipe.model),
        test=Images(np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3), np.array([3, 1])),
        recipe=recipe,
        labels=[str(index) for index in range(10)],
        preprocess=PreprocessSpec(image_size=8),
        accuracy=[
            AccuracyRow(beta=beta, n=2, clean=share, robust=share, attack="PGD-40", epsilon_255=38) for beta in (0, 1)
        ],
        provenance={"seed": 0},
        validation=Images(np.full((1, 8, 8, 3), 7, dtype=np.uint8), np.array([5])),
        name="numbers",
    )
    save_checkpoint(tmp_path / "run", checkpoint)
    return tmp_path / "run", checkpoint


def test_a_checkpoint_is_loaded_as_it_was_saved(saved):
    path, checkpoint = saved
    assert sorted(file.name for file in path.iterdir()) == ["checkpoint.json", "model.safetensors", *FILES]
    loaded = load_checkpoint(path)
    assert not loaded.model.training
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    for part in ("test", "validation"):
        np.testing.assert_array_equal(getattr(loaded, part).pixels, getattr(checkpoint, part).pixels)
        np.testing.assert_array_equal(getattr(loaded, part).labels, getattr(checkpoint, part).labels)
    for field in ("recipe", "labels", "preprocess", "accuracy", "evaluation", "provenance", "name"):
        assert getattr(loaded, field) == getattr(checkpoint, field)


def test_without_validation_images_there_is_no_file_of_them(saved, tmp_path):
    _, checkpoint = saved
    save_checkpoint(tmp_path / "other", replace(checkpoint, validation=None))
    assert not (tmp_path / "other" / "validation.npz").exists()
    assert load_checkpoint(tmp_path / "other").validation is None


def test_the_single_part_of_an_older_checkpoint_is_its_test_part(saved):
    path, checkpoint = saved
    (path / "test.npz").rename(path / "held_out.npz")
    (path / "validation.npz").unlink()
    record = json.loads((path / "checkpoint.json").read_text())
    digests = record["sha256"]
    digests["held_out.npz"] = digests.pop("test.npz")
    del digests["validation.npz"]
    (path / "checkpoint.json").write_text(json.dumps(record))
    loaded = load_checkpoint(path)
    assert loaded.validation is None
    np.testing.assert_array_equal(loaded.test.pixels, checkpoint.test.pixels)
    save_checkpoint(path, loaded)  # as `tureen evaluate --save` does
    assert load_checkpoint(path).validation is None


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", *FILES])
def test_a_missing_file_is_named(saved, name):
    path, _ = saved
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"is not a finished checkpoint: it has no {name}"):
        load_checkpoint(path)


def test_a_checkpoint_that_was_changed_is_refused(saved):
    path, _ = saved
    model = bytearray((path / "model.safetensors").read_bytes())
    model[-1] ^= 1
    (path / "model.safetensors").write_bytes(model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not match its digest"):
        load_checkpoint(path)
    (path / "checkpoint.json").write_text("{}")
    with pytest.raises(CheckpointError, match="another version"):
        load_checkpoint(path)


def test_a_path_that_is_no_directory_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        load_checkpoint(tmp_path / "file")
