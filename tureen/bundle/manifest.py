"""Defines the records of a bundle's manifest.json, and the names of its files and engines.

Does not read or write files. `tureen.bundle.bundle` reads and writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tureen.bundle.strength_curve import UNMEASURED_STRENGTH, StrengthCurve
from tureen.errors import SingleTokenError, printable, truncated
from tureen.preprocess import PreprocessSpec
from tureen.tokens import CLEAN_BETA, Strength

SCHEMA_VERSION: Final = 3
# 2 added engines/, plans, served accuracy and single tokens; 3 added strength and calibration. All have a default.
READABLE_SCHEMAS: Final = (1, 2, 3)
BACKBONE = "backbone.onnx"
ENGINES_DIRECTORY = "engines"

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

SHIFT: Final = "shift"  # the family of the shifts that are not common corruptions

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Norm = Literal["linf", "l2", "l1"]
EngineName = Literal["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "tensorrt", "tensorrt-rtx"]
FileName = Annotated[str, StringConstraints(pattern=rf"^({ENGINES_DIRECTORY}/)?[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Accuracy(_Record):
    """The share of images that are classified correctly, with its 95 % Wilson interval.

    value: the share. low, high: the bounds of the interval. All are in [0, 1].
    """

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)


class AccuracyRow(_Record):
    """The accuracy at one β on held-out images, without an attack (clean) and under an attack (robust).

    The attack is white-box, on the model at the β of this row.
    """

    beta: float
    n: int = Field(gt=0, description="number of images")
    clean: Accuracy
    robust: Accuracy
    attack: str = Field(description="name and number of steps, such as APGD-40 (CE, targeted DLR)")
    epsilon_255: float = Field(ge=0, description="radius of the attack in `norm`, in 1/255 of the pixel range")
    norm: Norm = "linf"


class StrengthRow(AccuracyRow):
    """The accuracy on test images at one strength, and the robust accuracy that validation images predict for it."""

    strength: float = Field(ge=0, le=1)
    predicted_robust: float = Field(ge=0, le=1, description="by isotonic regression over the strengths")
    n_fitted: int = Field(gt=0, description="number of validation images that fitted the prediction")


class AttackCheck(_Record):
    """The result of a check of the attack: whether the attack has a property that every sound attack has.

    The check runs at one β on a few of the images.
    """

    name: str = Field(description="the property")
    beta: float
    norm: Norm = Field(default="linf", description="of the attack")
    n: int = Field(gt=0, description="number of images")
    has_passed: bool
    figures: dict[str, float] = Field(description="the measurements, as shares of the images")
    sentence: str = Field(description="the meaning of a failure")


def failed_checks(checks: Iterable[AttackCheck], *betas: float, norm: Norm = "linf") -> list[str]:
    """Returns the names of the checks that failed at one of `betas`, each name once.

    norm: only checks of the attack under this norm count. After a failure the true robust accuracy at that β is lower
    than the measured one.
    """
    failed = (c for c in checks if c.beta in betas and c.norm == norm and not c.has_passed)
    return list(dict.fromkeys(check.name for check in failed))


class SuspectCell(_Record):
    """A cell of the transfer matrix that shows that an attack was too weak.

    The model at the β `served` fails significantly more often under the attack on another β, or on all β together, than
    under the attack on `served` itself.
    """

    attacked: float | None = Field(description="the β attacked; none: all together")
    served: float = Field(description="the β of the soup that was broken")
    p_value: float = Field(ge=0, le=1, description="of a sign test on the images that only one of the attacks breaks")


class TransferMatrix(_Record):
    """The robust accuracy for each pair of β: the attack is on the first β, and the model serves the second β.

    All pairs use the same images.
    """

    betas: list[float] = Field(min_length=1, description="T β, attacked and served")
    n: int = Field(gt=0, description="number of images")
    attack: str = Field(description="name and number of steps, such as PGD-40")
    epsilon_255: float = Field(ge=0, description="radius of the attack under l∞, in 1/255 of the pixel range")
    robust: list[list[float]] = Field(description="T rows, one per β attacked, of T columns, one per β served")
    joint_attack: str = Field(description="name and number of steps of the attack on all β together")
    joint: list[float] = Field(description="the row of the attack on all β together")
    worst: list[Accuracy] = Field(
        description="for each β served, the share of images that no row breaks, including the joint one"
    )
    suspects: list[SuspectCell] = Field(description="cells that are significantly below the diagonal of their column")


class ShiftRow(_Record):
    """The accuracy at one β, without an attack, on images that one corruption or shift has changed."""

    name: str = Field(description="of the corruption or shift")
    family: str = Field(description="noise, blur, weather or digital; or shift")
    beta: float
    n: int = Field(gt=0, description="number of images")
    accuracy: dict[int, float] = Field(min_length=1, description="by severity, 1 (slight) to 5")


class ClassCounts(_Record):
    """Numbers of images by class at one β, in the order of the labels.

    `robust` is under the attack of the `AccuracyRow` at this β.
    """

    beta: float
    images: list[int]
    clean: list[int] = Field(description="classified right without the attack")
    robust: list[int] = Field(description="classified right both without and under the attack")


class Evaluation(_Record):
    """Optional measurements of a model, beyond the accuracy at each β under l∞ in `Manifest.accuracy`."""

    checks: list[AttackCheck] = []
    classes: list[ClassCounts] = Field(default=[], description="one for each mode, β ascending")
    strengths: list[StrengthRow] = Field(default=[], description="accuracy by strength, ascending")
    matrix: TransferMatrix | None = None
    epsilon_curve: list[AccuracyRow] = Field(default=[], description="a row for each radius and β, radii ascending")
    shifts: list[ShiftRow] = []
    other_norms: list[AccuracyRow] = Field(default=[], description="accuracy under attacks in l2 and l1, a row per β")
    ensembles: list[AccuracyRow] = Field(
        default=[],
        description="of the probabilities of both modes, mixed by β: two forward passes per image, a soup takes one",
    )


class ServedAccuracy(_Record):
    """The accuracy of an engine at one β, and the accuracy of PyTorch in fp32 (`…_fp32`) on the same images.

    All are shares in [0, 1]. transferred: the accuracy on adversarial images of an attack on the model in PyTorch at
    this β. The attack is not on the engine itself, because a compiled graph has no gradients.
    """

    beta: float
    n: int = Field(gt=0, description="number of images")
    clean: float = Field(ge=0, le=1)
    clean_fp32: float = Field(ge=0, le=1)
    transferred: float = Field(ge=0, le=1)
    transferred_fp32: float = Field(ge=0, le=1)
    attack: str = Field(description="name and number of steps, such as PGD-40")
    epsilon_255: float = Field(ge=0, description="radius of the attack under l∞, in 1/255 of the pixel range")


class ParityRow(_Record):
    """The differences between the logits of an engine and those of PyTorch, on images at several β.

    The manifest has a row only for an engine whose differences are within the limits of export.
    """

    engine: str
    precision: Precision
    artefact: FileName = Field(default=BACKBONE, description="the file that the engine runs")
    engine_version: str
    max_abs_diff: float = Field(ge=0, description="largest logit difference")
    mean_abs_diff: float = Field(ge=0, description="mean logit difference")
    top1_agreement: float = Field(ge=0, le=1, description="lowest share over the β of images with the same first label")
    n: int = Field(gt=0, description="number of images at each β")
    betas: list[float]
    batch_sizes: list[int]
    accuracy: list[ServedAccuracy] = Field(default=[], description="a row per β, if labels were available")


class PlanRecord(_Record):
    """The engine, version, GPU and batch sizes that a compiled plan needs. The plan does not run with others."""

    engine: str
    precision: Precision
    graph_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the backbone.onnx whose weights the plan holds")
    runtime_version: str = Field(description="of the runtime that built it")
    device: str = Field(description="name of the GPU that it was built on; empty: built without one")
    compute_capabilities: list[str] = Field(min_length=1, description='that it runs on, such as "9.0"')
    batch: tuple[int, int, int] = Field(description="smallest, best and largest batch")


class FileRecord(_Record):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0, description="bytes")


class CalibrationRow(_Record):
    """The temperature at one β, and the expected calibration error with and without this temperature.

    The probabilities are the softmax of the logits divided by the temperature (Guo et al., ICML 2017). The temperature
    is fitted on one part of the images. The errors are measured on another part.
    """

    beta: float = Field(ge=0, le=1)
    temperature: float = Field(ge=0.01, le=100)
    n_fitted: int = Field(gt=0, description="number of images that fitted the temperature")
    n: int = Field(gt=0, description="number of other images, which measured the errors")
    error_before: float = Field(ge=0, le=1, description="expected calibration error of the softmax, 15 bins")
    error: float = Field(ge=0, le=1, description="expected calibration error with the temperature")
    images: Literal["validation and test", "random halves"] = Field(
        default="random halves", description="the images that fitted the temperature, and the others"
    )


class Temperatures(_Record):
    """The temperature at several β. Between them the temperature is interpolated linearly.

    If `betas` is empty, the temperature is 1 at every β.
    """

    betas: tuple[float, ...] = Field(default=(), description="ascending")
    values: tuple[float, ...] = Field(default=(), description="of each of `betas`")

    @property
    def is_calibrated(self) -> bool:
        """Whether a temperature was fitted at any β."""
        return bool(self.betas)

    def at(self, betas: Sequence[float | None]) -> NDArray[np.float64]:
        """Returns the temperature at each β, float64 (len(betas),).

        A model with one token has the β None. Its temperature is the one at β = 0.
        """
        if not self.betas:
            return np.ones(len(betas))
        return np.interp([CLEAN_BETA if beta is None else beta for beta in betas], self.betas, self.values)


UNCALIBRATED: Final = Temperatures()


NOTE: Final = "note"
"""The key in the provenance of a Markdown text for the model card, such as the source of the images."""
LICENSE: Final = "license"
"""The key in the provenance of the identifier of the license, such as "apache-2.0"."""
LICENSE_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}"


class Manifest(_Record):
    schema_version: Literal[1, 2, 3] = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN, description="the model's name")
    version: str = Field(pattern=NAME_PATTERN)
    width: int = Field(gt=0, description="D, the width of a token")
    labels: list[str] = Field(min_length=2, description="K names, in the order of the logits")
    preprocess: PreprocessSpec
    default_beta: float = Field(ge=0, le=1, description="the β of a request without one")
    opset: int
    files: dict[FileName, FileRecord]
    parity: list[ParityRow]
    plans: dict[FileName, PlanRecord] = Field(default={}, description="what each compiled plan needs")
    is_cotrained: bool = Field(
        default=True, description="false: an unchanged single-token model, whose token is both clean and robust"
    )
    has_two_tokens: bool = Field(
        default=True, description="false: no request may choose β; without co-training a model may still accept any β"
    )
    accuracy: list[AccuracyRow] = Field(description="a row per β; empty only for an unmeasured single-token model")
    evaluation: Evaluation = Evaluation()
    strength: StrengthCurve = Field(default=UNMEASURED_STRENGTH, description="the map between strength and β")
    calibration: list[CalibrationRow] = Field(default=[], description="a row for each β, ascending; empty: no fit")
    provenance: dict[str, Any] = Field(description="how it was made: versions, recipe, seed, command")

    def beta_of(self, value: float | Strength, least: float = 0.0, most: float = 1.0) -> float:
        """Returns the β that `value` gives: a number is β itself, and `self.strength` maps a `Strength` to β.

        least, most: as for `StrengthCurve.beta_at`. Raises SingleTokenError for a strength if the model has one token.
        """
        if not isinstance(value, Strength):
            return value
        if not self.has_two_tokens:
            raise SingleTokenError("strength")
        return self.strength.beta_at(value.value, least, most)

    @property
    def temperatures(self) -> Temperatures:
        """The temperatures in the rows of `calibration`, by β."""
        rows = self.calibration
        return Temperatures(betas=tuple(row.beta for row in rows), values=tuple(row.temperature for row in rows))

    @model_validator(mode="after")
    def _check_tokens(self) -> Manifest:
        if self.is_cotrained and not self.accuracy:
            raise ValueError("accuracy has no row, but a co-trained model needs one for each β")
        if self.is_cotrained and not self.has_two_tokens:
            raise ValueError("has_two_tokens is false, but a co-trained model has two")
        return self

    @model_validator(mode="after")
    def _check_calibration(self) -> Manifest:
        if any(lower.beta >= upper.beta for lower, upper in pairwise(self.calibration)):
            raise ValueError("calibration has rows whose β do not ascend")
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> Manifest:
        if len(set(self.labels)) < len(self.labels):
            repeated = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(
                f"labels has {printable(truncated(repeated, 40))!r} twice; give each output a label that no other has"
            )
        return self

    @model_validator(mode="after")
    def _check_classes(self) -> Manifest:
        for counts in self.evaluation.classes:
            if {len(counts.images), len(counts.clean), len(counts.robust)} != {len(self.labels)}:
                raise ValueError(f"evaluation.classes does not have {len(self.labels)} classes at β = {counts.beta:g}")
        return self

    @model_validator(mode="after")
    def _check_parity(self) -> Manifest:
        engines = [(row.engine, row.precision) for row in self.parity]
        if len(set(engines)) < len(engines):
            raise ValueError("parity has two rows of one engine and precision")
        return self


def graph_name(precision: Precision) -> FileName:
    """Returns the name of the file with the ONNX graph in a precision: backbone.onnx for fp32.

    Such as "engines/backbone-int8.onnx" for int8.
    """
    return BACKBONE if precision == "fp32" else f"{ENGINES_DIRECTORY}/backbone-{precision}.onnx"


def plan_name(engine: EngineName, precision: Precision) -> FileName:
    """Returns the file name of the plan of an engine in a precision, such as "engines/tensorrt-fp16.plan"."""
    return f"{ENGINES_DIRECTORY}/{engine}-{precision}.plan"


def is_plan(name: str) -> bool:
    """Returns whether `name` is the name of a compiled plan. All other files that engines run are ONNX graphs."""
    return name.endswith(".plan")
