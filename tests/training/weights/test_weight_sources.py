import json
import sys

import pytest
import safetensors.torch
import torch

from tests.hub_server import TOKEN
from tests.randomised import randomised
from training.errors import CheckpointError
from training.weights.pretrained import load_pretrained
from training.weights.weight_sources import is_remote, locate_weights

REPOSITORY = "ada/deit3"
SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 4, "num_classes": 7}


@pytest.fixture
def hub_cache(hub, tmp_path, monkeypatch):
    """The hub, whose client has an empty cache in a temporary directory."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return hub


def files_of(model, timm, folder):
    """Return the files that timm saves for the hub, by name."""
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_weights_on_the_hub_are_the_same_model_as_their_files(timm, hub_cache, tmp_path):
    original = randomised(timm.create_model("deit3_small_patch16_224", **SHAPE))
    (folder := tmp_path / "files").mkdir()
    commit = hub_cache.commit(REPOSITORY, files_of(original, timm, folder))
    loaded, expected = load_pretrained(f"hf-hub:{REPOSITORY}"), load_pretrained(folder)
    assert loaded.model.config == expected.model.config
    assert loaded.assumed == expected.assumed == ()
    torch.testing.assert_close(loaded.model.state_dict(), expected.model.state_dict(), rtol=0, atol=0)
    hub_cache.commit(REPOSITORY, {"config.json": b"{}"})
    assert load_pretrained(f"hf-hub:{REPOSITORY}@{commit}").assumed == ()


def test_a_name_of_timm_is_the_repository_that_timm_uses(timm, hub_cache, tmp_path):
    original = randomised(timm.create_model("deit3_small_patch16_224", img_size=32, depth=1, num_classes=7))
    (folder := tmp_path / "files").mkdir()
    hub_cache.commit("timm/deit3_small_patch16_224.fb_in1k", files_of(original, timm, folder))
    loaded = load_pretrained("timm:deit3_small_patch16_224")
    assert torch.equal(loaded.model.clean_token, original.cls_token.flatten())
    assert loaded.model.config.heads == 6


def test_weights_without_safetensors_and_without_settings_come_in_too(hub_cache, tmp_path):
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "weights.bin")
    hub_cache.commit(REPOSITORY, {"pytorch_model.bin": (tmp_path / "weights.bin").read_bytes()})
    assert locate_weights(f"hf-hub:{REPOSITORY}").name == "pytorch_model.bin"


def test_a_hub_that_cannot_be_reached_is_no_obstacle_once_the_files_are_here(hub_cache, monkeypatch):
    from huggingface_hub import constants

    hub_cache.commit(REPOSITORY, {"model.safetensors": safetensors.torch.save({"a": torch.zeros(1)})})
    downloaded = locate_weights(f"hf-hub:{REPOSITORY}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate_weights(f"hf-hub:{REPOSITORY}") == downloaded
    with pytest.raises(CheckpointError, match=r"cannot be reached, and the cache has no model\.safetensors"):
        locate_weights("hf-hub:ada/other")


def test_settings_that_are_not_in_the_cache_are_not_taken_for_absent(hub_cache, monkeypatch):
    from huggingface_hub import constants

    weights = safetensors.torch.save({"a": torch.zeros(1)})
    hub_cache.commit(REPOSITORY, {"model.safetensors": weights, "config.json": b"{}"})
    located = locate_weights(f"hf-hub:{REPOSITORY}")
    (located.parent / "config.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"the cache has no config\.json"):
        locate_weights(f"hf-hub:{REPOSITORY}")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("hf-hub:ada", "is not the address of a model: give hf-hub:OWNER/NAME"),
        ("hf-hub:ada/nothing", "does not exist, or needs credentials"),
        (f"hf-hub:{REPOSITORY}@nowhere", "has no revision 'nowhere'"),
        (f"hf-hub:{REPOSITORY}", r"has none of the files model\.safetensors, pytorch_model\.bin"),
    ],
)
def test_what_the_hub_lacks_is_named(hub_cache, location, said):
    hub_cache.commit(REPOSITORY, {"README.md": b"empty"})
    with pytest.raises(CheckpointError, match=said):
        locate_weights(location)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_tiny_patch16_22", "on the hub; did you mean 'vit_tiny_patch16_224'"),
        ("deit3_small_patch16_224.none", r"on the hub: choose deit3_small_patch16_224\.fb_in1k, "),
        ("vit_base_patch16_plus_240", "on the hub"),  # an architecture without weights
    ],
)
def test_a_name_without_weights_is_refused_with_similar_ones(timm, name, said):
    with pytest.raises(CheckpointError, match=said):
        locate_weights(f"timm:{name}")


def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CheckpointError, match=r"needs the package timm, .*pip install 'tureen\[timm\]'"):
        locate_weights("timm:vit_tiny_patch16_224")


def test_a_directory_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_remote("hf-hub:ada")
    (tmp_path / "hf-hub:ada").mkdir()
    assert not is_remote("hf-hub:ada")
    assert not is_remote("vit.safetensors")
    assert locate_weights("hf-hub:ada").name == "model.safetensors"


def test_a_private_repository_needs_the_token(hub_cache, monkeypatch):
    hub_cache.commit(REPOSITORY, {"config.json": json.dumps({}).encode(), "model.safetensors": b"weights"})
    hub_cache.private.add(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CheckpointError, match="log in with `hf auth login`"):
        locate_weights(f"hf-hub:{REPOSITORY}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert locate_weights(f"hf-hub:{REPOSITORY}").read_bytes() == b"weights"
