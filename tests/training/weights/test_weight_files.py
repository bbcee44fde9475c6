import pytest
import safetensors.torch
import torch

from training.errors import CheckpointError
from training.weights.weight_files import read_tensors


def test_tensors_are_read_with_their_type_and_name(tmp_path):
    weights = {"a": torch.randn(2, 3), "b.c": torch.randn(4).bfloat16()}
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    torch.save(weights, tmp_path / "weights.pt")
    for name in ("weights.safetensors", "weights.pt"):
        torch.testing.assert_close(read_tensors(tmp_path / name), weights, rtol=0, atol=0)


def test_a_missing_or_damaged_file_and_an_unknown_suffix_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match=r"weights\.safetensors does not exist"):
        read_tensors(path)
    safetensors.torch.save_file({"a": torch.zeros(3)}, path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="damaged"):
        read_tensors(path)
    with pytest.raises(CheckpointError, match="suffix"):
        read_tensors(path.rename(tmp_path / "weights.npz"))


class _Trap:
    def __reduce__(self):
        return (open, ("touched", "w"))


def test_a_pickle_is_read_for_its_tensors_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    torch.save({"weights": _Trap()}, path)
    with pytest.raises(CheckpointError, match=r"holds more than tensors: io\.open\. Reading these would run code"):
        read_tensors(path)
    assert not (tmp_path / "touched").exists()
    torch.save({"model": {"epochs": 3}}, path)
    with pytest.raises(
        CheckpointError, match=r"no state dict, but model \(dict\): save the state_dict\(\) of the model"
    ):
        read_tensors(path)
    torch.save({"student": {"w": torch.zeros(1)}, "teacher": {"w": torch.zeros(1)}, "epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"but student \(1 tensors\), teacher \(1 tensors\), epoch \(int\)"):
        read_tensors(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(CheckpointError, match="no state dict, but list"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["weights.pth", "model_best.pth.tar", "last.ckpt", "WEIGHTS.PT"])
@pytest.mark.parametrize("wrapping", ["model", "state_dict", "model_state_dict"])
def test_weights_are_found_in_the_file_of_a_training_script(tmp_path, wrapping, name):
    weights = {"head.weight": torch.randn(5, 4), "head.bias": torch.randn(5)}
    torch.save({wrapping: weights, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / name)
    torch.testing.assert_close(read_tensors(tmp_path / name), weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer, not the weights"),
        (b"<!DOCTYPE html><title>Sign in</title>", "is a web page: download the file itself"),
        (b"\x00" * 257 + b"ustar" + b"\x00" * 300, "is a tar archive"),
        (b"nothing known", "is damaged, or not a file of PyTorch"),
    ],
    ids=["empty", "pointer", "page", "tar", "else"],
)
def test_another_file_in_place_of_weights_is_named(tmp_path, content, said):
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_tensors(tmp_path / "last.ckpt")
