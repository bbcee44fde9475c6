"""What a bundle's manifest says: the records of manifest.json, and what its files and engines are called.

Knows neither files nor arrays; `tureen.bundle.bundle` reads and writes them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tureen.errors import printable, truncated
from tureen.preprocess import PreprocessSpec

SCHEMA_VERSION: Final = 2
READABLE_SCHEMAS: Final = (1, 2)  # 2 added what has a default here: engines/, plans, served accuracy, single tokens
BACKBONE = "backbone.onnx"
ENGINES_DIRECTORY = "engines"

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

SHIFT: Final = "shift"  # the family of what is not one of the common corruptions

Precision = Literal["fp32", "bf16", "fp16", "int8"]
EngineName = Literal["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "tensorrt", "tensorrt-rtx"]
FileName = Annotated[str, StringConstraints(pattern=rf"^({ENGINES_DIRECTORY}/)?[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Accuracy(_Record):
    """A share of images classified rightly, with its 95 % Wilson interval; all three in [0, 1]."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)


class AccuracyRow(_Record):
    """What one β is worth, measured on held-out images; the attack is white-box on the very soup of this row."""

    beta: float
    n: int = Field(gt=0, description="number of images")
    clean: Accuracy
    robust: Accuracy
    attack: str = Field(description="name and number of steps, such as PGD-40")
    epsilon_255: float = Field(ge=0, description="radius of the attack under l∞, in 1/255 of the pixel range")


class Check(_Record):
    """Something that holds of an attack whose figures mean anything, tried at one β on a few of the images."""

    name: str = Field(description="what ought to hold")
    beta: float
    n: int = Field(gt=0, description="number of images")
    has_passed: bool
    figures: dict[str, float] = Field(description="what was measured, as shares of the images")
    sentence: str = Field(description="what it means where the check fails")


class Suspect(_Record):
    """An attack at another β that breaks a soup better than the attack on that very soup: which was too weak."""

    attacked: float | None = Field(description="the β attacked; none: all at once, the sum of their losses")
    served: float = Field(description="the β whose soup fell")
    p_value: float = Field(ge=0, le=1, description="of a sign test on the images that one attack breaks alone")


class TransferMatrix(_Record):
    """Robust accuracy where the attack was made for one β and the soup served is another, all on the same images."""

    betas: list[float] = Field(min_length=1, description="T β, attacked and served")
    n: int = Field(gt=0, description="number of images")
    attack: str = Field(description="name and number of steps, such as PGD-40")
    epsilon_255: float = Field(ge=0, description="radius of the attack under l∞, in 1/255 of the pixel range")
    robust: list[list[float]] = Field(description="T rows, one for each β attacked, of T columns, one for each served")
    joint_attack: str = Field(description="name and number of steps of the attack on all β at once")
    joint: list[float] = Field(description="the row of the attack on the sum of the losses at all β")
    worst: list[Accuracy] = Field(
        description="for each β served, the images that no row breaks, the joint one included"
    )
    suspects: list[Suspect] = Field(description="cells lower than the diagonal of their column by more than chance")


class ShiftRow(_Record):
    """Accuracy at one β on images under one corruption or shift, without an attack."""

    name: str = Field(description="of the corruption or shift")
    family: str = Field(description="noise, blur, weather or digital; or shift")
    beta: float
    n: int = Field(gt=0, description="number of images")
    accuracy: dict[int, float] = Field(min_length=1, description="by severity, 1 (slight) to 5")


class Evaluation(_Record):
    """What was measured beyond the accuracy at each β; empty where it was not."""

    checks: list[Check] = []
    matrix: TransferMatrix | None = None
    epsilon_curve: list[AccuracyRow] = Field(default=[], description="a row for each radius and β, radii ascending")
    shifts: list[ShiftRow] = []
    ensembles: list[AccuracyRow] = Field(
        default=[],
        description="of both modes' probabilities, mixed by β: two forward passes an image, a soup takes one",
    )


class ServedAccuracy(_Record):
    """What an engine makes of one β, beside PyTorch in fp32 on the very same images; shares in [0, 1].

    Transferred: on adversarial images made for PyTorch's soup at this β. What an attack on the engine itself would
    leave is not known: a compiled graph has no gradients.
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
    """How far an engine's logits are from PyTorch's, on real images at several β; only admitted ones are listed."""

    engine: str
    precision: Precision
    artefact: FileName = Field(default=BACKBONE, description="the file that the engine runs")
    engine_version: str
    max_abs_diff: float = Field(ge=0, description="largest logit difference")
    mean_abs_diff: float = Field(ge=0, description="mean logit difference")
    top1_agreement: float = Field(ge=0, le=1, description="lowest share of equal first labels over the β")
    n: int = Field(gt=0, description="number of images at each β")
    betas: list[float]
    batch_sizes: list[int]
    accuracy: list[ServedAccuracy] = Field(default=[], description="a row a β, where labels were at hand")


class PlanRecord(_Record):
    """What a compiled plan is bound to; it is refused anywhere else."""

    engine: str
    precision: Precision
    graph_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the backbone.onnx whose weights it holds")
    runtime_version: str = Field(description="of the runtime that built it")
    device: str = Field(description="name of the GPU that it was built on; empty: built without one")
    compute_capabilities: list[str] = Field(min_length=1, description='that it runs on, such as "9.0"')
    batch: tuple[int, int, int] = Field(description="least, best and largest batch")


class FileRecord(_Record):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0, description="bytes")


class Manifest(_Record):
    schema_version: Literal[1, 2] = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN, description="the model's name")
    version: str = Field(pattern=NAME_PATTERN)
    width: int = Field(gt=0, description="D, the width of a token")
    labels: list[str] = Field(min_length=2, description="K names, in the order of the logits")
    preprocess: PreprocessSpec
    default_beta: float = Field(ge=0, le=1, description="the β of a request that names none")
    opset: int
    files: dict[FileName, FileRecord]
    parity: list[ParityRow]
    plans: dict[FileName, PlanRecord] = Field(default={}, description="what each compiled plan is bound to")
    is_cotrained: bool = Field(
        default=True, description="false: a single-token model as it came, its one token both clean and robust"
    )
    has_two_tokens: bool = Field(
        default=True, description="false: no request may choose β; a model that is not co-trained may still take any"
    )
    accuracy: list[AccuracyRow] = Field(description="a row a β; empty only where a single-token model was not measured")
    evaluation: Evaluation = Evaluation()
    provenance: dict[str, Any] = Field(description="what made it: versions, recipe, seed, command")

    @model_validator(mode="after")
    def _tokens_fit(self) -> Manifest:
        if self.is_cotrained and not self.accuracy:
            raise ValueError("accuracy has no row, which only a model that is not co-trained may lack")
        if self.is_cotrained and not self.has_two_tokens:
            raise ValueError("has_two_tokens is false, but a co-trained model has two")
        return self

    @model_validator(mode="after")
    def _labels_differ(self) -> Manifest:
        if len(set(self.labels)) < len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(
                f"labels has {printable(truncated(twice, 40))!r} twice; give each output a label that no other has"
            )
        return self

    @model_validator(mode="after")
    def _parity_is_told_once(self) -> Manifest:
        told = [(row.engine, row.precision) for row in self.parity]
        if len(set(told)) < len(told):
            raise ValueError("parity has two rows of one engine and precision")
        return self


def graph_name(precision: Precision) -> FileName:
    """The file that holds the backbone's ONNX graph in a precision; backbone.onnx is the fp32 one."""
    return BACKBONE if precision == "fp32" else f"{ENGINES_DIRECTORY}/backbone-{precision}.onnx"


def plan_name(engine: EngineName, precision: Precision) -> FileName:
    """The file that holds a plan compiled for that engine in a precision."""
    return f"{ENGINES_DIRECTORY}/{engine}-{precision}.plan"


def is_plan(name: str) -> bool:
    """Whether a file of that name holds a compiled plan; any other that an engine runs holds an ONNX graph."""
    return name.endswith(".plan")
