"""Finds the file of weights that a location names, and downloads it if it is on the Hugging Face hub.

PATH                              a file of weights, or a directory with model.safetensors
hf-hub:OWNER/NAME[@REVISION]      a model repository of the hub
timm:NAME                         the repository of the hub that timm uses for the model NAME

The copy is in the cache of huggingface_hub, with the JSON files of the repository beside it. Imports huggingface_hub
and timm when a location needs them. Does not read the files.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from types import ModuleType

from training.checkpoint import MODEL
from training.errors import CheckpointError
from training.weights.library_settings import CONFIG, PREPROCESSOR
from tureen.errors import did_you_mean
from tureen.vendor_telemetry import disable_vendor_telemetry

HUB = "hf-hub:"
TIMM = "timm:"
HUB_WEIGHTS = (MODEL, "pytorch_model.bin")  # names of weights in a repository, in order of preference
TIMEOUT_S = 10.0  # of the request that asks for the commit of a file

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def is_remote(location: Path | str) -> bool:
    """Returns whether `location` names weights on the hub. A file or directory of this machine is preferred."""
    return str(location).startswith((HUB, TIMM)) and not os.path.exists(location)


def named_architecture(location: Path | str) -> str | None:
    """Returns the architecture in timm that `location` names; None: it names none. Several may share a repository."""
    text = str(location)
    return text.removeprefix(TIMM).partition(".")[0] if is_remote(text) and text.startswith(TIMM) else None


def locate_weights(location: Path | str) -> Path:
    """Returns the file of weights at `location`. Downloads it if it is not yet in the cache of huggingface_hub.

    If the hub cannot be reached, returns the copy in the cache. A file of this machine need not exist. Raises
    CheckpointError if the location does not name weights, if the hub refuses them, or if a package is not installed.
    """
    if not is_remote(location):
        path = Path(location)
        return path / MODEL if path.is_dir() else path
    text = str(location)
    if text.startswith(HUB):
        return _downloaded(text, text.removeprefix(HUB))
    return _downloaded(text, _repository_of_timm(text, text.removeprefix(TIMM)))


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
    found = next((file for weights in HUB_WEIGHTS if (file := _file(location, name, revision, weights))), None)
    if found is None:
        raise CheckpointError(f"{location} has none of the files {', '.join(HUB_WEIGHTS)}: choose another repository")
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
        raise CheckpointError(f"{location} needs the package {package}, whose import fails here: {error}") from error
