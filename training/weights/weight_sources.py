"""Finds the file of weights that a location names, and downloads it if it is on the Hugging Face hub.

PATH                              a file of weights, or a directory with one
hf-hub:OWNER/NAME[@REVISION]      a model repository of the hub
timm:NAME                         the repository of the hub that timm uses for the model NAME

The copy is in the cache of huggingface_hub, with the JSON files of the repository beside it. Imports huggingface_hub
and timm when a location needs them. Does not read the files.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from training.checkpoint import MODEL
from training.errors import CheckpointError
from training.weights.library_settings import CONFIG, PREPROCESSOR
from tureen.errors import did_you_mean
from tureen.vendor_telemetry import disable_vendor_telemetry

HUB = "hf-hub:"
TIMM = "timm:"
WEIGHTS = (MODEL, "pytorch_model.bin")  # names of weights in a directory or a repository, in order of preference
TIMEOUT_S = 10.0  # of the request that asks for the commit of a file

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ADDRESS = re.compile(r"(?:hf|https?):")  # of a bundle, a data set or a web page, none of which is weights


@dataclass(frozen=True)
class LocatedWeights:
    """A file of weights on this machine, and the location that names it.

    location: as the user gave it. repository: "OWNER/NAME" on the hub; None for a file of this machine. architecture:
    the name of the model in timm, if the location has it. Several models may share a repository.
    """

    location: str
    file: Path
    repository: str | None = None
    architecture: str | None = None

    @property
    def name(self) -> str:
        """The name of the file without its folders, or the location on the hub."""
        return self.file.name if self.repository is None else self.location

    def provenance(self, key: str) -> dict[str, str]:
        """Returns the origin of the weights as entries of a provenance, whose names begin with `key`.

        The entries are the name, the address on the hub with the commit if both are known, and the SHA-256 of the file.
        No entry has a path of this machine, because a provenance is published.
        """
        commit, address = self.file.parent.name, {}
        if self.repository is not None and _COMMIT.fullmatch(commit):
            address = {f"{key}_address": f"{HUB}{self.repository}@{commit}"}
        with self.file.open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
        return {key: self.name, **address, f"{key}_sha256": digest}


def is_remote(location: Path | str) -> bool:
    """Returns whether `location` names weights on the hub. A file or directory of this machine is preferred."""
    return str(location).startswith((HUB, TIMM)) and not os.path.exists(location)


def has_weights(directory: Path) -> bool:
    """Returns whether a directory has a file of weights with a name in WEIGHTS."""
    return any((directory / name).is_file() for name in WEIGHTS)


def locate_weights(location: Path | str) -> LocatedWeights:
    """Returns the file of weights at `location`. Downloads it if it is not yet in the cache of huggingface_hub.

    If the hub cannot be reached, returns the copy in the cache. Raises CheckpointError if the location does not name
    weights, if the hub refuses them, or if a package is not installed.
    """
    text = str(location)
    if not is_remote(text):
        return LocatedWeights(text, _local_file(text))
    if text.startswith(HUB):
        repository = text.removeprefix(HUB)
        return LocatedWeights(text, _downloaded(text, repository), repository.partition("@")[0])
    name = text.removeprefix(TIMM)
    repository = _repository_of_timm(text, name)
    return LocatedWeights(text, _downloaded(text, repository), repository, name.partition(".")[0])


def _local_file(location: str) -> Path:
    """Returns the file of weights at a path of this machine. Raises CheckpointError if there is none."""
    path = Path(location)
    if path.is_dir():
        if not has_weights(path):
            raise CheckpointError(f"{path} has none of the files {', '.join(WEIGHTS)}: give a file of weights")
        return next(path / name for name in WEIGHTS if (path / name).is_file())
    if path.exists():
        return path
    if _ADDRESS.match(location):
        raise CheckpointError(
            f"{location} does not name weights: on the Hugging Face hub their address is {HUB}OWNER/NAME"
        )
    raise CheckpointError(
        f"{location} does not exist: give a file of weights, a directory with {MODEL}, {HUB}OWNER/NAME or {TIMM}NAME"
    )


def _repository_of_timm(location: str, name: str) -> str:
    """Returns the repository of the hub that timm uses for the model `name`, such as "timm/vit_tiny_patch16_224"."""
    timm = _imported("timm", location, extra="timm")
    try:
        config = timm.get_pretrained_cfg(name)
    except Exception:  # noqa: BLE001 - timm raises RuntimeError and others for an unknown name
        config = None
    if config is None or not config.hf_hub_id or config.hf_hub_filename:
        model = name.partition(".")[0]
        names = timm.list_pretrained()
        same_model = [known for known in names if known.partition(".")[0] == model]
        similar = did_you_mean(model, (known.partition(".")[0] for known in names))
        hint = f": choose {', '.join(same_model)}" if same_model else similar
        raise CheckpointError(f"timm has no weights of {name!r} on the hub{hint}")
    return str(config.hf_hub_id)


def _downloaded(location: str, repository: str) -> Path:
    match = _REPOSITORY.fullmatch(repository)
    if match is None:
        raise CheckpointError(f"{location} is not the address of a model: give {HUB}OWNER/NAME[@REVISION]")
    name, revision = match.groups()
    found = next((file for weights in WEIGHTS if (file := _file(location, name, revision, weights))), None)
    if found is None:
        raise CheckpointError(f"{location} has none of the files {', '.join(WEIGHTS)}: choose another repository")
    for settings in (CONFIG, PREPROCESSOR):
        _file(location, name, revision, settings)
    return found


def _file(location: str, repository: str, revision: str | None, name: str) -> Path | None:
    """Returns a file of a repository, in the cache; None if the repository does not have it."""
    disable_vendor_telemetry()
    hub = _imported("huggingface_hub", location, extra="hub")
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        return Path(hub.hf_hub_download(repository, name, revision=revision, etag_timeout=TIMEOUT_S))
    except errors.LocalEntryNotFoundError as error:
        if hub.try_to_load_from_cache(repository, name, revision=revision) is hub._CACHED_NO_EXIST:
            return None
        raise CheckpointError(
            f"{location}: the hub cannot be reached, and the cache has no {name}: check the network"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{location} needs consent to its terms: give it on the hub, then log in") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{location} has no revision {revision!r}: check its name") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{location} does not exist, or needs credentials: check the name, log in with `hf auth login`, or set "
            "HF_TOKEN"
        ) from error
    except Exception as error:  # of httpx and of the file system
        raise CheckpointError(f"{location}: {name} cannot be downloaded ({type(error).__name__}): try again") from error


def _imported(package: str, location: str, *, extra: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{location} needs the package {error.name}, which is not installed: pip install 'tureen[{extra}]'"
        ) from error
    except Exception as error:  # an extension that was built for another version of torch raises RuntimeError
        raise CheckpointError(
            f"{location} needs the package {package}, whose import fails here ({error}): if it names torchvision, "
            f"install torch and torchvision from the same index, or give the weights as {HUB}OWNER/NAME"
        ) from error
