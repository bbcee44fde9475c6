"""Reads the tensors in a file of weights: safetensors or PyTorch. Runs no code that the file contains.

Knows nothing about libraries, models or the names of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from training.checkpoint import MODEL
from training.errors import CheckpointError

Weights = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".ckpt", ".bin")
# Keys of the weights in files of training scripts, such as that of DeiT, in order of preference.
WRAPPINGS = ("state_dict", "model")
ENTRIES_SHOWN = 6
# Files that are not weights, by their first bytes.
NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights: run `git lfs pull`",
    b"<!DOCTYPE": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
    b"\x89HDF": "an HDF5 file of Keras: convert it to a state dict of PyTorch",
    b"\x1f\x8b": "a gzip archive: unpack it first",
}


def read_tensors(file: Path) -> Weights:
    """Returns the tensors in a file by their names, on the CPU.

    Raises CheckpointError if the file is missing or damaged, if its suffix is not in SUFFIXES, or if it has no state
    dict. Raises CheckpointError if the file contains objects that run code when they are read.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: give a file of weights, or a directory with {MODEL}")
    if not file.name.lower().endswith(SUFFIXES):
        raise CheckpointError(f"{file} has an unsupported suffix: use {', '.join(SUFFIXES)}")
    with file.open("rb") as opened:
        head = opened.read(512)
    if not head:
        raise CheckpointError(f"{file} is empty")
    if found := next((kind for start, kind in NOT_WEIGHTS.items() if head.startswith(start)), None):
        raise CheckpointError(f"{file} is {found}")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{file} is a tar archive: unpack it, and give the file of weights in it")
    try:
        if file.name.lower().endswith(".safetensors"):
            loaded: Any = safetensors.torch.load_file(file)
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises exceptions of many types
        if objects := _unsafe_globals(file):
            raise CheckpointError(
                f"{file} holds more than tensors: {_joined_names(objects)}. Reading these would run code of the file. "
                "If you trust it, load it and save only the state_dict() of the model, preferably as .safetensors"
            ) from error
        raise CheckpointError(f"{file} cannot be read: it is damaged, or not a file of PyTorch") from error
    weights = _state_dict(loaded)
    if weights is None:
        entries = [f"{key} ({_kind(value)})" for key, value in loaded.items()] if isinstance(loaded, dict) else []
        raise CheckpointError(
            f"{file} holds no state dict, but {_joined_names(entries) or _kind(loaded)}: save the state_dict() of the "
            "model"
        )
    return weights


def _state_dict(loaded: object) -> Weights | None:
    """Returns the state dict in `loaded`; None if there is none, or if it is unclear which of several is meant.

    A state dict is a dictionary of tensors by name. Returns `loaded` itself, or its entry with a key in WRAPPINGS, or
    its only entry that is a state dict.
    """
    if not isinstance(loaded, dict):
        return None
    if _is_state_dict(loaded):
        return loaded
    found = [key for key, value in loaded.items() if _is_state_dict(value)]
    usual = [key for key in WRAPPINGS if key in found]
    chosen = usual[0] if usual else found[0] if len(found) == 1 else None
    return None if chosen is None else loaded[chosen]


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _unsafe_globals(file: Path) -> list[str]:
    """Returns the names of the classes and functions that a pickle file uses and that are not safe to load.

    Returns an empty list if the file cannot be read.
    """
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # noqa: BLE001 - a damaged pickle raises exceptions of many types
        return []


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    if _is_state_dict(value):
        assert isinstance(value, dict)
        return f"{len(value)} tensors"
    return type(value).__name__


def _joined_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - ENTRIES_SHOWN} more" if len(names) > ENTRIES_SHOWN else ""
    return ", ".join(names[:ENTRIES_SHOWN]) + more
