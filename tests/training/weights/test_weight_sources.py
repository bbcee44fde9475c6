import hashlib
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
    assert locate_weights(f"hf-hub:{REPOSITORY}").file.name == "pytorch_model.bin"


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
    (located.file.parent / "config.json").unlink()
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
    with pytest.raises(CheckpointError, match="hf-hub:ada has none of the files"):
        locate_weights("hf-hub:ada")


def test_a_private_repository_needs_the_token(hub_cache, monkeypatch):
    hub_cache.commit(REPOSITORY, {"config.json": json.dumps({}).encode(), "model.safetensors": b"weights"})
    hub_cache.private.add(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CheckpointError, match="log in with `hf auth login`"):
        locate_weights(f"hf-hub:{REPOSITORY}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert locate_weights(f"hf-hub:{REPOSITORY}").file.read_bytes() == b"weights"


def test_a_directory_has_the_weights_under_either_name_and_safetensors_come_first(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert locate_weights(tmp_path).file == tmp_path / "pytorch_model.bin"
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert locate_weights(tmp_path).file == tmp_path / "model.safetensors"


def test_a_model_that_timm_saves_by_default_is_the_same_as_its_safetensors(timm, tmp_path):
    original = randomised(timm.create_model("deit3_small_patch16_224", **SHAPE))
    for name, is_safe in (("default", False), ("safe", True)):
        timm.models.save_for_hf(original, tmp_path / name, safe_serialization=is_safe)
    default, safe = (load_pretrained(tmp_path / name) for name in ("default", "safe"))
    assert default.model.config == safe.model.config
    torch.testing.assert_close(default.model.state_dict(), safe.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("location", ["hf://ada/deit3", "hf:ada/deit3", "https://huggingface.co/ada/deit3"])
def test_the_address_of_something_else_is_refused_with_that_of_weights(location):
    with pytest.raises(
        CheckpointError, match=rf"{location} does not name weights: .* their address is hf-hub:OWNER/NAME"
    ):
        locate_weights(location)


def test_a_location_that_does_not_exist_is_refused_with_every_kind(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist: give a file .*hf-hub:OWNER/NAME or timm:NAME"):
        locate_weights(tmp_path / "nowhere")


def test_the_origin_of_a_file_has_no_path_of_this_machine(tmp_path):
    (tmp_path / "vit.pth").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert locate_weights(tmp_path / "vit.pth").provenance("init") == {"init": "vit.pth", "init_sha256": digest}


def test_the_origin_on_the_hub_has_the_commit_that_a_branch_names(hub_cache):
    commit = hub_cache.commit(REPOSITORY, {"model.safetensors": b"weights"})
    digest = hashlib.sha256(b"weights").hexdigest()
    for location in (f"hf-hub:{REPOSITORY}", f"hf-hub:{REPOSITORY}@main", f"hf-hub:{REPOSITORY}@{commit}"):
        assert locate_weights(location).provenance("init") == {
            "init": location,
            "init_address": f"hf-hub:{REPOSITORY}@{commit}",
            "init_sha256": digest,
        }


def test_the_origin_of_a_name_of_timm_has_the_repository_and_its_commit(timm, hub_cache):
    commit = hub_cache.commit("timm/deit3_small_patch16_224.fb_in1k", {"model.safetensors": b"weights"})
    origin = locate_weights("timm:deit3_small_patch16_224").provenance("weights")
    assert origin["weights"] == "timm:deit3_small_patch16_224"
    assert origin["weights_address"] == f"hf-hub:timm/deit3_small_patch16_224.fb_in1k@{commit}"


def test_a_package_whose_import_fails_is_named_with_another_way(tmp_path, monkeypatch):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=r"torchvision::nms does not exist\).* or give the weights as hf-hub:"):
        locate_weights("timm:vit_tiny_patch16_224")
