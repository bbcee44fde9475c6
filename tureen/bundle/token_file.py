"""A token file: one learned token for the backbone of one bundle, in a single file NAME.token.

    token     float32 (D,)     replaces the class token
    golden    float32 (G, K)   PyTorch's logits at this token for the golden pixels of the bundle

The file is in the format safetensors. Its metadata has the entry "tureen", the JSON text of a `TokenRecord`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from tureen.atomic_file import write_atomically
from tureen.bundle.files import read_vectors
from tureen.bundle.manifest import BACKBONE, Accuracy
from tureen.errors import BundleError, TokenFileError
from tureen.tokens import CLEAN, ROBUST, TOKEN_NAME

if TYPE_CHECKING:
    from tureen.bundle.bundle import Bundle

SUFFIX: Final = ".token"
METADATA: Final = "tureen"
MAX_TOKEN_BYTES: Final = 16 * 2**20  # 64 golden images of 50,000 classes have 13 MB
MAX_HEADER_BYTES: Final = 2**20

TokenName = Annotated[str, StringConstraints(pattern=f"^{TOKEN_NAME}$")]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TokenAccuracy(_Record):
    """The accuracy of the learned token and of the best β, on the same images.

    Each image was left out when the token and the β that classify it were chosen.
    """

    n: int = Field(gt=0, description="number of images")
    token: Accuracy
    best_beta: Accuracy
    wins: int = Field(ge=0, description="images that only the token classifies rightly")
    losses: int = Field(ge=0, description="images that only the best β classifies rightly")
    p_value: float = Field(ge=0, le=1, description="of a one-sided sign test of the wins against the losses")
    attack: str | None = Field(default=None, description="attack on each image, with its steps; null: no attack")
    epsilon_255: float = Field(default=0, ge=0, description="radius of the attack under l∞, in 1/255")


class TokenRecord(_Record):
    """Describes a token: the backbone that it needs, its origin and its measured accuracy."""

    schema_version: Literal[1] = 1
    name: TokenName
    model: str = Field(description="name of the bundle that it was learned for")
    backbone_sha256: Sha256 = Field(description="of the bundle's backbone.onnx; the token fits no other")
    best_beta: float = Field(ge=0, le=1, description="the β that the learning started from")
    steps: int = Field(ge=0, description="steps of learning")
    images: int = Field(gt=0, description="images that the token was learned from")
    images_sha256: Sha256 = Field(description="of their pixels and labels")
    is_robust: bool = Field(description="whether it was learned under an attack")
    seed: int
    accuracy: list[TokenAccuracy] = Field(min_length=1, description="first without an attack")


@dataclass(frozen=True)
class Token:
    """A learned token in memory."""

    record: TokenRecord
    vector: NDArray[np.float32]  # (D,)
    golden_logits: NDArray[np.float32]  # (G, K), for the golden pixels of the bundle

    @property
    def sha256(self) -> str:
        """The SHA-256 of the vector, hexadecimal."""
        return hashlib.sha256(self.vector.astype("<f4").tobytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Returns the content of a token file."""
        arrays = {"token": self.vector, "golden": self.golden_logits}
        return safetensors.numpy.save(arrays, metadata={METADATA: self.record.model_dump_json()})

    def check_bundle(self, bundle: Bundle) -> None:
        """Raises TokenFileError if the token does not fit the bundle."""
        manifest, record = bundle.manifest, self.record
        if record.backbone_sha256 != manifest.files[BACKBONE].sha256:
            raise TokenFileError(
                f"the token {record.name} was learned for another backbone, of the model {record.model}: learn it for "
                f"{manifest.name} {manifest.version} with `tureen adapt`"
            )
        shapes = (manifest.width,), (len(bundle.golden.pixels), len(manifest.labels))
        if (self.vector.shape, self.golden_logits.shape) != shapes:
            raise TokenFileError(f"the token {record.name} has arrays of another shape than the bundle needs")


def write_token(path: Path, token: Token) -> None:
    """Writes the token to the file `path`, atomically. Raises OSError if the file cannot be written."""
    write_atomically(path, token.to_bytes())


def read_token(path: Path) -> Token:
    """Returns the token in the file `path`. Raises TokenFileError if there is none, or if it is damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise TokenFileError(f"{path} cannot be read: {error.strerror}") from error
    return parse_token(data, str(path))


def read_tokens(directory: Path, limit: int) -> Iterator[Token]:
    """Yields the tokens in the files NAME.token of a directory, in the order of the file names.

    Reads a file when its token is taken. limit: maximum of files. Raises TokenFileError if the directory cannot be
    read, if it has more files, if a file is damaged, or if two files have a token of the same name.
    """
    try:
        files = sorted(file for file in directory.iterdir() if file.suffix == SUFFIX)
    except OSError as error:
        raise TokenFileError(f"the directory of tokens {directory} cannot be read: {error.strerror}") from error
    if len(files) > limit:
        raise TokenFileError(f"{directory} has {len(files):,} token files, the limit is {limit:,}")
    names: set[str] = set()
    for file in files:
        token = read_token(file)
        if token.record.name in names:
            raise TokenFileError(f"{file}: another file of the directory has a token {token.record.name!r} too")
        names.add(token.record.name)
        yield token


def parse_token(data: bytes, source: str) -> Token:
    """Returns the token in the bytes of a token file. source: the name of the file, for messages.

    Raises TokenFileError if the bytes are not a token file, if its record is not valid, if an array has another dtype
    or number of dimensions, if a number is not finite, or if the token has the name "clean" or "robust".
    """
    if len(data) > MAX_TOKEN_BYTES:
        raise TokenFileError(f"{source} has {len(data):,} bytes, the limit is {MAX_TOKEN_BYTES:,}")
    try:
        arrays = read_vectors(Path(source), data)
        record = TokenRecord.model_validate_json(_metadata(data)[METADATA], strict=True)
        vector, golden = arrays["token"], arrays["golden"]
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "fields"
        raise TokenFileError(f"{source}: {field}: {first['msg']}; learn the token again") from error
    except (BundleError, KeyError, ValueError, struct.error) as error:
        raise TokenFileError(f"{source} is not a token file: `tureen adapt` writes one") from error
    for name, array, dimensions in (("token", vector, 1), ("golden", golden, 2)):
        if array.dtype != np.float32 or array.ndim != dimensions or not array.size or not np.isfinite(array).all():
            raise TokenFileError(
                f"{source}: {name} is not a float32 array of {dimensions} dimensions with finite numbers"
            )
    if record.name in (CLEAN, ROBUST):
        raise TokenFileError(f"{source}: the name {record.name} belongs to a token of every bundle: choose another")
    return Token(record, vector, golden)


def _metadata(data: bytes) -> Mapping[str, str]:
    (length,) = struct.unpack("<Q", data[:8])
    if length > MAX_HEADER_BYTES:
        raise ValueError("the header is too long")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__")
    if not isinstance(metadata, dict):
        raise ValueError("the file has no metadata")
    return metadata
