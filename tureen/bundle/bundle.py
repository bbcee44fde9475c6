"""Reads, verifies and writes bundles. A bundle is a directory that export writes and the server loads:

    manifest.json        describes the model and the other files: SHA-256, measured parity, measured accuracy
    tokens.safetensors   named token vectors, float32 (D,): "clean" and "robust", equal if the model has one token
    backbone.onnx        pixels uint8 (B, H, W, 3), cls_token float32 (B, D) -> logits float32 (B, K)
    engines/             optional: the backbone in other precisions, and plans, each compiled for one kind of GPU
    NAME.token           optional: a learned token with its accuracy, origin and golden logits; any number of them
    golden.npz           pixels uint8 (G, H, W, 3), betas float32 (T,), logits float32 (T, G, K) by PyTorch
    README.md            the model card

Knows the names and shapes of the tensors of the graph in backbone.onnx. Does not know how a graph is made or run.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from tureen.atomic_file import sync_directory, sync_file
from tureen.bundle.files import MISSING, invalid_content, read_arrays, read_file, read_vectors, read_verified
from tureen.bundle.gallery import GALLERY, BundleGallery, parse_gallery
from tureen.bundle.graph import GraphFile, TensorInfo
from tureen.bundle.graph_check import check_graph
from tureen.bundle.manifest import (
    BACKBONE,
    ENGINES_DIRECTORY,
    READABLE_SCHEMAS,
    SCHEMA_VERSION,
    FileRecord,
    Manifest,
    ParityRow,
    is_plan,
)
from tureen.bundle.token_file import SUFFIX, Token, parse_token
from tureen.errors import BundleError, BundleFileError, TokenFileError

MANIFEST = "manifest.json"
RUN_RECORD = "checkpoint.json"  # training.checkpoint.CHECKPOINT, which this package cannot import
TOKENS = "tokens.safetensors"
GOLDEN = "golden.npz"
MODEL_CARD = "README.md"
REQUIRED = (TOKENS, BACKBONE, GOLDEN)

# A bundle is not trusted: a file that exceeds its limit is refused before it is read.
MAX_MANIFEST_BYTES: Final = 16 * 2**20  # that of the example bundle has 4 KiB
MAX_GRAPH_BYTES: Final = 2**31 - 1  # the largest protobuf message, and so the largest ONNX file
MAX_PLAN_BYTES: Final = 2**32  # twice the weights of the largest graph
MAX_GOLDEN_BYTES: Final = 512 * 2**20  # ten images of 4096 × 4096, the largest that `PreprocessSpec` allows
MAX_OTHER_BYTES: Final = 16 * 2**20  # of any other file: a thousand tokens of width 4096, or a card
MAX_FILES: Final = 100  # in a bundle

PIXELS_INPUT = "pixels"
TOKEN_INPUT = "cls_token"  # noqa: S105 - not a password
LOGITS_OUTPUT = "logits"

Tokens = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Golden:
    """The golden rows of a bundle: generated images, and PyTorch's logits for them at several β.

    An engine must reproduce these logits before it serves.
    """

    pixels: NDArray[np.uint8]  # (G, H, W, 3)
    betas: NDArray[np.float32]  # (T,)
    logits: NDArray[np.float32]  # (T, G, K)

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, pixels=self.pixels, betas=self.betas, logits=self.logits)
        return buffer.getvalue()


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory, without its files in engines/. `artefact` reads and verifies those on demand."""

    path: Path  # its directory
    manifest: Manifest
    tokens: Tokens  # by name; each float32 (D,)
    graph: bytes  # backbone.onnx
    golden: Golden  # the golden rows, which an engine must reproduce
    gallery: BundleGallery | None = None  # pictures for the console; None if the bundle has no gallery.json
    learned_tokens: tuple[Token, ...] = ()  # of the files NAME.token, which are not in `tokens`

    @property
    def clean_token(self) -> NDArray[np.float32]:
        """The clean token, float32 (D,)."""
        return self.tokens["clean"]

    @property
    def robust_token(self) -> NDArray[np.float32]:
        """The robust token, float32 (D,)."""
        return self.tokens["robust"]

    def artefact(self, name: str) -> bytes:
        """Returns the verified bytes of a file that an engine runs. Each call reads a file in engines/ again.

        name: relative to the bundle, as in the manifest. Raises BundleError if:
        - the file is missing or differs from its record in the manifest
        - the file is a plan, and the manifest has no plan record for it
        - the file is a graph with other inputs and outputs than backbone.onnx
        """
        if name == BACKBONE:
            return self.graph
        if name not in self.manifest.files:
            raise BundleError(f"{self.path / MANIFEST} does not list {name}: export the model again")
        if is_plan(name) and name not in self.manifest.plans:
            raise BundleError(f"{self.path / MANIFEST} has no record of the plan {name}: export the model again")
        data = read_listed_file(self.path, name, self.manifest.files[name])
        if not is_plan(name):
            check_backbone_graph(self.path / name, data, self.manifest)
        return data

    def parity(self, engine: str, precision: str) -> ParityRow | None:
        """Returns the measured parity of an engine in a precision; None if the manifest has no row for them."""
        rows = (row for row in self.manifest.parity if (row.engine, row.precision) == (engine, precision))
        return next(rows, None)


def record_files(files: Mapping[str, bytes]) -> dict[str, FileRecord]:
    """Returns the size and SHA-256 of each file by name, for `Manifest.files`. files: the bytes by name."""
    return {name: FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for name, data in files.items()}


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """Writes a bundle: the files and the manifest go to a temporary directory, which is then renamed to `path`.

    files: the bytes by name, without the manifest. Syncs the files to the disk before the rename. After a failure
    `path` is unchanged and the temporary directory is removed. Raises BundleError if `path` exists and `overwrite` is
    false, if `path` exists and is not a bundle, or if the manifest does not describe the files.
    """
    if path.exists() and not overwrite:
        raise BundleError(f"{path} exists already: choose another directory, or allow overwriting it")
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} is not a bundle, so it is not overwritten: choose another directory")
    if manifest.files != record_files(files):
        raise BundleError("the manifest does not describe the files to be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary directory also takes the replaced bundle, which is removed with it.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir(mode=0o755)
        if any(name.startswith(f"{ENGINES_DIRECTORY}/") for name in files):
            (fresh / ENGINES_DIRECTORY).mkdir(mode=0o755)
        manifest_json = (manifest.model_dump_json(indent=2) + "\n").encode()
        for name, data in {**files, MANIFEST: manifest_json}.items():
            with (fresh / name).open("wb") as file:
                file.write(data)
                sync_file(file)
        for directory in (fresh / ENGINES_DIRECTORY, fresh):
            if directory.exists():
                sync_directory(directory)
        replaced = Path(scratch) / "replaced"
        if path.exists():
            path.rename(replaced)
        try:
            fresh.rename(path)
        except OSError:
            if replaced.exists():
                replaced.rename(path)
            raise
        sync_directory(path.parent)


def load_bundle(path: Path | str) -> Bundle:
    """Returns the verified bundle at `path`.

    Verifies:
    - the schema version
    - the size and SHA-256 of every file outside engines/
    - the shape and dtype of every array
    - that backbone.onnx is one file with the expected inputs and outputs
    - that gallery.json, if the manifest lists it, has valid fields and labels of the bundle
    - that each learned token was learned for backbone.onnx, and that no two tokens have one name

    Reads each file once, so the returned content is the verified content. `Bundle.artefact` verifies the files in
    engines/, so a damaged file there affects only its engine. Raises BundleError if a check fails or a file cannot be
    read. The message names the file and says what to do.
    """
    path = Path(path)
    manifest = read_manifest(path)
    check_listed_names(path / MANIFEST, manifest)
    gallery, learned = None, list[Token]()
    for name, record in manifest.files.items():
        if name not in REQUIRED and not name.startswith(f"{ENGINES_DIRECTORY}/"):
            content = read_listed_file(path, name, record)
            if name == GALLERY:
                gallery = parse_gallery(path / name, content, manifest.labels)
            if name.endswith(SUFFIX):
                try:
                    learned.append(parse_token(content, str(path / name)))
                except TokenFileError as error:
                    raise BundleError(str(error)) from error
    data = {name: read_listed_file(path, name, manifest.files[name]) for name in REQUIRED}
    tokens = read_vectors(path / TOKENS, data[TOKENS])
    for token in ("clean", "robust"):
        if token not in tokens:
            raise BundleError(f"{path / TOKENS} has no {token} token: export the model again")
    for token, vector in tokens.items():
        if vector.dtype != np.float32 or vector.shape != (manifest.width,) or not np.isfinite(vector).all():
            raise BundleError(f"{path / TOKENS}: the {token} token is not {manifest.width} finite float32 numbers")
    golden = _load_golden(path, data[GOLDEN], manifest)
    check_backbone_graph(path / BACKBONE, data[BACKBONE], manifest, opset=manifest.opset)
    bundle = Bundle(path, manifest, tokens, data[BACKBONE], golden, gallery, tuple(learned))
    names = [*tokens, *(token.record.name for token in learned)]
    if len(set(names)) < len(names):
        raise BundleError(f"{path} has two tokens of one name: export the model again")
    for learned_token in learned:
        try:
            learned_token.check_bundle(bundle)
        except TokenFileError as error:
            raise BundleError(f"{path}: {error}") from error
    return bundle


def add_tokens_to_bundle(bundle: Bundle, tokens: Sequence[Token], path: Path) -> None:
    """Writes a copy of a bundle with additional learned tokens to the directory `path`, which must not exist.

    Raises BundleError if `path` exists, if a file of the bundle cannot be read, or if the copy has too many files.
    Raises TokenFileError if a token was learned for another backbone, or if its name is taken.
    """
    taken = {*bundle.tokens, *(token.record.name for token in bundle.learned_tokens)}
    files = {name: read_listed_file(bundle.path, name, record) for name, record in bundle.manifest.files.items()}
    for token in tokens:
        name = token.record.name
        token.check_bundle(bundle)
        if name in taken:
            raise TokenFileError(f"the bundle already has a token {name!r}: rename one of them")
        taken.add(name)
        files[f"{name}{SUFFIX}"] = token.to_bytes()
    if len(files) > MAX_FILES:
        raise BundleError(f"the copy would have {len(files)} files, the limit is {MAX_FILES}: use --token-dir instead")
    write_bundle(path, bundle.manifest.model_copy(update={"files": record_files(files)}), files)


def read_manifest(path: Path | str) -> Manifest:
    """Returns the manifest of the bundle at `path`. Does not read the other files.

    Raises BundleError if the manifest is missing, unreadable, invalid, or of an unknown schema version.
    """
    return parse_manifest(Path(path) / MANIFEST, read_manifest_text(path))


def parse_manifest(file: Path | str, text: str) -> Manifest:
    """Returns the manifest in `text`. file: its path or address, for messages.

    Raises BundleError if the manifest is invalid, or of an unknown schema version.
    """
    version = _schema_version(file, text)
    if version not in READABLE_SCHEMAS:
        raise BundleError(
            f"{file} has schema version {version}, this Tureen reads versions up to {SCHEMA_VERSION}: "
            + ("upgrade Tureen" if version > SCHEMA_VERSION else "export the model again")
        )
    try:
        return Manifest.model_validate_json(text, strict=True)  # true and "0.5" are no figures
    except ValidationError as error:
        raise invalid_content(file, error) from error


def read_manifest_text(path: Path | str) -> str:
    """Returns the text of the manifest of the bundle at `path`. Does not parse the text.

    Raises BundleError if the manifest is missing, unreadable, too large, or not in UTF-8.
    """
    path = Path(path)
    try:
        return read_file(path, MANIFEST, MAX_MANIFEST_BYTES, "export the model again").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path / MANIFEST} is not a Tureen manifest: export the model again") from error
    except BundleFileError as error:
        if error.state == MISSING:
            reason = f"it has no {MANIFEST}"
            if (path / RUN_RECORD).exists():
                reason = (
                    f"it is a run of `tureen train`; export it first: tureen export {shlex.quote(str(path))} --out …"
                )
            raise BundleError(f"{path} is not a bundle: {reason}") from None
        raise


def check_listed_names(file: Path | str, manifest: Manifest) -> None:
    """Checks that the manifest lists every required file, and not more than MAX_FILES files.

    file: path or address of the manifest, for messages. Raises BundleError.
    """
    if len(manifest.files) > MAX_FILES:
        raise BundleError(f"{file} lists {len(manifest.files):,} files, the limit is {MAX_FILES}: export it again")
    for name in REQUIRED:
        if name not in manifest.files:
            raise BundleError(f"{file} does not list {name}: export the model again")


def _schema_version(file: Path | str, text: str) -> int:
    class Versioned(BaseModel):
        schema_version: int

    try:
        return Versioned.model_validate_json(text).schema_version
    except ValidationError as error:
        raise BundleError(f"{file} is not a Tureen manifest: export the model again") from error


def read_listed_file(path: Path, name: str, record: FileRecord) -> bytes:
    """Returns the verified bytes of the file `name` of the bundle at `path`.

    record: the expected size and SHA-256. Raises BundleFileError if the file cannot be read, differs from the record,
    or exceeds the limit for its kind of file.
    """
    max_bytes, advice = size_limit(name)
    return read_verified(path, name, size=record.size, sha256=record.sha256, max_bytes=max_bytes, advice=advice)


def size_limit(name: str) -> tuple[int, str]:
    """Returns the largest permitted size in bytes of the file `name` of a bundle, and the advice for a larger one."""
    if name.endswith(".onnx"):
        advice = "weights beyond one ONNX file are not supported; export a smaller model, or in a lower precision"
        return MAX_GRAPH_BYTES, advice
    if is_plan(name):
        return MAX_PLAN_BYTES, "export a smaller model, or in a lower precision"
    return MAX_GOLDEN_BYTES if name == GOLDEN else MAX_OTHER_BYTES, "export the model again"


def check_backbone_graph(file: Path, data: bytes, manifest: Manifest, *, opset: int | None = None) -> GraphFile:
    """Checks the inputs, outputs and opset of a backbone's ONNX graph. Returns the description of the graph.

    file: the path for messages. data: the bytes of the graph. manifest: gives the expected image size, width and number
    of classes. opset: the expected version; None: any. Raises BundleError, as `graph_check.check_graph` does.
    """
    size = manifest.preprocess.image_size
    inputs = [
        TensorInfo(name=PIXELS_INPUT, dtype="uint8", shape=["batch", size, size, 3]),
        TensorInfo(name=TOKEN_INPUT, dtype="float32", shape=["batch", manifest.width]),
    ]
    outputs = [TensorInfo(name=LOGITS_OUTPUT, dtype="float32", shape=["batch", len(manifest.labels)])]
    return check_graph(file, data, inputs=inputs, outputs=outputs, opset=opset)


def _load_golden(path: Path, data: bytes, manifest: Manifest) -> Golden:
    golden = Golden(**read_arrays(path / GOLDEN, data, ("pixels", "betas", "logits")))
    size = manifest.preprocess.image_size
    images, betas = golden.pixels.size // (size * size * 3), golden.betas.size
    expected: list[tuple[NDArray[Any], type, tuple[int, ...]]] = [
        (golden.pixels, np.uint8, (images, size, size, 3)),
        (golden.betas, np.float32, (betas,)),
        (golden.logits, np.float32, (betas, images, len(manifest.labels))),
    ]
    if not images or not betas or any(array.dtype != dtype or array.shape != shape for array, dtype, shape in expected):
        raise BundleError(f"{path / GOLDEN} does not fit the manifest: export the model again")
    return golden
