"""Defines the recipes: all values that determine a training run, as data. Runs nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.errors import RecipeError
from training.models.shapes import ModelConfig, ViTConfig
from tureen.errors import did_you_mean

DESCRIPTION = {"source", "expected", "command"}
FIELDS_WITHOUT_EFFECT_ON_WEIGHTS = {
    *DESCRIPTION,
    "evaluation_attack",
    "evaluation_steps",
    "evaluation_images",
    "evaluation_betas",
    "monitor_share",
}
"""Fields of a Recipe that do not change the trained weights.
`crop_fraction` changes the weights, because a training image is cropped like an evaluation image before augmentation.
"""


class Augmentation(BaseModel):
    """The random changes of training images. The default is no change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_scale: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="least share of the image area that a random resized crop keeps; 1: no such crop",
    )
    shift_pixels: int = Field(default=0, ge=0, description="random translation of each image, pixels")
    rotation_degrees: float = Field(
        default=0.0, ge=0, le=180, description="random rotation of each image about its centre, in both directions"
    )
    brightness: float = Field(
        default=0.0, ge=0, lt=1, description="random factor of all pixels of an image, from 1 − this to 1 + this"
    )
    flip: bool = Field(default=False, description="mirror every second image, left to right")
    randaugment_ops: int = Field(default=0, ge=0, description="number of operations of RandAugment")
    randaugment_magnitude: int = Field(default=9, ge=0, le=30, description="strength of the operations of RandAugment")
    erasing: float = Field(default=0.0, ge=0, le=1, description="probability of a random rectangle of noise")
    mixup: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="parameter of the Beta distribution of MixUp"
    )
    cutmix: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="parameter of the Beta distribution of CutMix"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of a label that goes to all classes")


class Recipe(BaseModel):
    """All values that determine a training run: model, data and method. A recipe also has expected cost and result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str = Field(description="origin of the method and of the values")
    expected: str = Field(description="cost and result, if measured")
    command: str = Field(description="the `tureen train` command that runs this recipe")

    dataset: Literal["digits", "folder"] = Field(description="digits: of scikit-learn; folder: the images of --data")
    group_by: str | None = Field(
        default=None, description="keeps groups of images in one part, unless the option --group-by is given"
    )
    crop_fraction: float = Field(
        default=1.0, gt=0, le=1, description="share of the shorter side that evaluation keeps; see PreprocessSpec"
    )
    augmentation: Augmentation = Augmentation()
    model: ModelConfig
    start: Literal["random", "pretrained"] = Field(
        default="random", description="pretrained: the weights of --init, which also give the shape of the model"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of all random numbers of the run")

    epochs: int = Field(gt=0, description="passes over the training images")
    batch_size: int = Field(
        gt=0, description="clean images per step, over all processes; as many adversarial images are added"
    )
    accumulate: int = Field(default=1, gt=0, description="number of parts in which a batch is computed, to save memory")
    learning_rate: float = Field(gt=0, description="peak, reached after warm-up, then cosine to zero (AdamW)")
    warmup: float = Field(ge=0, le=1, description="share of all steps over which the learning rate rises")
    adam_betas: tuple[float, float] = Field(
        default=(0.9, 0.999), description="decay rates of the moving averages of AdamW"
    )
    weight_decay: float = Field(ge=0, description="of linear layers and convolutions")
    clip_norm: float = Field(gt=0, description="maximum norm of the gradient over all weights")
    ema_decay: float = Field(
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which the checkpoint holds; lower in the first steps",
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(description="auto: bf16 if the CPU or GPU supports it")

    alpha: float = Field(
        ge=0, le=1, description="weight of the clean loss in Eq. 1: 1 is nominal training, 0 adversarial training"
    )
    objective: Literal["adversarial", "trades"] = Field(
        default="adversarial",
        description="robust loss; adversarial: cross-entropy on attacked images; trades: cross-entropy on clean images "
        "and the divergence of the predictions for attacked images (Zhang et al., ICML 2019)",
    )
    trades_weight: float = Field(
        default=6.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the divergence in the objective trades: 1/λ in the paper, β in its code",
    )
    epsilon_255: float = Field(ge=0, le=255, description="radius under l∞, in 1/255 of the pixel range")
    epsilon_start: float = Field(
        default=0.0, ge=0, lt=1, description="share of all steps before the radius grows; there is no attack until then"
    )
    epsilon_ramp: float = Field(ge=0, le=1, description="share of all steps over which the radius grows from 0")
    attack_steps: int = Field(gt=0, description="PGD steps in training")
    attack_steps_in_ramp: int | None = Field(
        default=None, gt=0, description="PGD steps while the radius grows; null: the same as afterwards"
    )
    monitor_share: float = Field(
        default=0.05, gt=0, le=1, description="share of all steps between two checks for catastrophic overfitting"
    )
    attack_step: float = Field(gt=0, description="size of a PGD step in training, as a share of the radius")

    evaluation_attack: str = Field(
        default="apgd", description="attack in evaluation, a name in training.attacks.catalogue"
    )
    evaluation_steps: int = Field(default=40, gt=0, description="number of steps of the attack in evaluation")
    evaluation_images: int = Field(default=1000, gt=0, description="maximum number of test images")
    evaluation_betas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # β of the accuracy rows; 0 and 1 are required

    @model_validator(mode="after")
    def _numbers_fit(self) -> Recipe:
        if not {0.0, 1.0} <= set(self.evaluation_betas):
            raise ValueError("evaluation_betas must hold 0 and 1, the two modes")
        if self.epsilon_start + self.epsilon_ramp > 1:
            raise ValueError("epsilon_start and epsilon_ramp together must be at most 1")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError("adam_betas must be at least 0 and below 1")
        if not all(0 <= beta <= 1 for beta in self.evaluation_betas):
            raise ValueError("evaluation_betas must be in [0, 1]")
        return self

    def settings(self, *, without: Set[str] = frozenset()) -> dict[str, Any]:
        """Returns the values by the key that --set takes, such as "model.depth". without: fields to leave out."""
        settings: dict[str, Any] = {}
        for key, value in self.model_dump(exclude=set(without)).items():
            nested = {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
            settings |= nested
        return settings

    def fingerprint(self) -> str:
        """Returns the SHA-256, hexadecimal, of all fields that change the trained weights."""
        values = self.model_dump_json(exclude=FIELDS_WITHOUT_EFFECT_ON_WEIGHTS)
        return hashlib.sha256(values.encode()).hexdigest()


DIGITS = Recipe(
    name="digits",
    source=(
        "Rebuffi, Croce & Gowal, Revisiting adapters with adversarial training, ICLR 2023: two class tokens, Eq. 1. "
        "Model, schedule and attack are ours, chosen for two CPU cores. The digits of scikit-learn share writers among "
        "all parts, so the result does not hold for new writers."
    ),
    expected=(
        "66 to 92 s of training on two virtual cores of a Xeon; 99 % clean at β = 0, 60 % under AutoAttack at β = 1, "
        "means of three seeds (python -m benchmarks.digits --attack autoattack)"
    ),
    command="tureen train digits --out runs/digits",
    dataset="digits",
    model=ViTConfig(image_size=8, patch_size=4, width=128, depth=4, heads=2, mlp_ratio=2, classes=10),
    epochs=80,
    batch_size=64,
    learning_rate=3e-3,
    warmup=0.2,
    weight_decay=0.05,
    clip_norm=1.0,
    ema_decay=0.99,
    augmentation=Augmentation(shift_pixels=1),
    precision="fp32",
    alpha=0.5,
    epsilon_255=38,
    epsilon_ramp=0.5,
    attack_steps=2,
    attack_step=0.75,
    evaluation_steps=20,
)

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
GTSRB_MEAN, GTSRB_STD = (0.343, 0.313, 0.322), (0.272, 0.261, 0.267)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PAPER = "Rebuffi, Croce & Gowal, Revisiting adapters with adversarial training, ICLR 2023"

CIFAR10 = Recipe(
    name="cifar10",
    source=(
        f"{PAPER}: two class tokens, Eq. 1, ε = 4/255. Everything else is ours: a small ViT with a convolutional stem "
        "(Singh, Croce & Hein, NeurIPS 2023), light augmentation and a ramp of ε for a short run (Debenedetti et al., "
        "SaTML 2023)."
    ),
    expected="meant for ten minutes on one data-centre GPU; not measured yet",
    command="tureen train cifar10 --data cifar10 --out runs/cifar10",
    dataset="folder",
    augmentation=Augmentation(shift_pixels=4, flip=True),
    model=ViTConfig(
        image_size=32,
        patch_size=4,
        width=384,
        depth=8,
        heads=6,
        classes=10,
        stem="conv",
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
    ),
    epochs=60,
    batch_size=512,
    learning_rate=1.5e-3,
    warmup=0.1,
    weight_decay=0.05,
    clip_norm=1.0,
    ema_decay=0.999,
    precision="auto",
    alpha=0.5,
    epsilon_255=4,
    epsilon_ramp=0.3,
    attack_steps=2,
    attack_step=0.75,
    evaluation_images=10_000,
)

CIFAR10_CPU = CIFAR10.model_copy(
    update={
        "name": "cifar10-cpu",
        "expected": (
            "84 minutes on one thread of a busy two-core Xeon; 71 % clean at β = 0, 35 % under APGD-20 at β = 1 "
            "(docs/cifar10.md)"
        ),
        "command": "tureen train cifar10-cpu --data cifar10 --out runs/cifar10-cpu",
        # 16 patches instead of 64, and a single attack step: a quarter of the work per image.
        "model": CIFAR10.model.model_copy(
            update={"patch_size": 8, "width": 256, "depth": 6, "heads": 4, "mlp_ratio": 2.0}
        ),
        "epochs": 8,
        "batch_size": 64,
        "warmup": 0.2,
        "ema_decay": 0.998,
        "attack_steps": 1,
        "attack_step": 1.25,
        "evaluation_steps": 20,
        "evaluation_images": 1000,
    }
)

SIGNS = Recipe(
    name="signs",
    source=(
        f"{PAPER}: two class tokens, Eq. 1. Everything else is ours: ε = 8/255, a small ViT with a convolutional stem "
        "(Singh, Croce & Hein, NeurIPS 2023) whose classifier reads the class token, light augmentation and a ramp of "
        "ε (Debenedetti et al., SaTML 2023). Meant for the 43 traffic signs of GTSRB "
        "(Stallkamp et al., Neural Networks 2012), resized to 32 × 32. Frames of one track are nearly the same image, "
        "so a track is in one part only. Signs are not mirrored: arrows and digits have a direction."
    ),
    expected="65 minutes on two virtual cores of a busy EPYC without AMX; 97 % clean at β = 0 on all test images, 43 % "
    "under APGD-20 with ε = 8/255 at β = 1 (docs/signs.md)",
    command="tureen train signs --data gtsrb --out runs/signs",
    dataset="folder",
    group_by=r"[^/]+/\d+[_.]",  # train/CLASS/TRACK_FRAME.webp, and test/CLASS/NUMBER.webp
    augmentation=Augmentation(shift_pixels=2, rotation_degrees=10, brightness=0.3),
    model=ViTConfig(
        image_size=32,
        patch_size=8,
        width=256,
        depth=6,
        heads=4,
        mlp_ratio=2.0,
        classes=43,
        stem="conv",
        pool="token",
        mean=GTSRB_MEAN,
        std=GTSRB_STD,
    ),
    epochs=10,
    batch_size=64,
    learning_rate=1.5e-3,
    warmup=0.1,
    weight_decay=0.05,
    clip_norm=1.0,
    ema_decay=0.999,
    precision="auto",
    alpha=0.5,
    epsilon_255=8,
    epsilon_ramp=0.5,
    attack_steps_in_ramp=1,
    attack_steps=2,
    attack_step=0.75,
    evaluation_steps=20,
)

SIGNS_GPU = SIGNS.model_copy(
    update={
        "name": "signs-gpu",
        "expected": "meant for ten minutes on one data-centre GPU; not measured yet",
        "command": "tureen train signs-gpu --data gtsrb --out runs/signs-gpu",
        # 64 patches instead of 16, wider and deeper: twelve times the work per image.
        "model": SIGNS.model.model_copy(update={"patch_size": 4, "width": 384, "depth": 8, "heads": 6}),
        "epochs": 30,
        "batch_size": 256,
        "attack_steps_in_ramp": None,
        "evaluation_images": 12_630,
    }
)

IMAGENET_B16 = Recipe(
    name="imagenet-b16",
    source=(
        f"{PAPER}: ViT-B/16, two class tokens, Eq. 1, ε = 4/255, 300 epochs, AdamW with (0.9, 0.95), weight decay 0.3, "
        "cosine schedule, RandAugment. Only the pages up to section 3.3 of the paper were available. Other sources: "
        "mean of the patches as input of the classifier, batch, learning rate, warm-up, moving average, MixUp, CutMix, "
        "label smoothing and crops (He et al., CVPR 2022, ViT-B from scratch; without its stochastic depth), α, the "
        "attack in training and the ramp of ε."
    ),
    expected="the paper reports 83.76 % clean accuracy in clean mode; this recipe has not been run yet",
    command="torchrun --nproc-per-node 8 -m tureen.cli train imagenet-b16 --data imagenet --out runs/imagenet-b16",
    dataset="folder",
    crop_fraction=0.875,
    augmentation=Augmentation(
        crop_scale=0.08,
        flip=True,
        randaugment_ops=2,
        randaugment_magnitude=9,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
    ),
    model=ViTConfig(
        image_size=224,
        patch_size=16,
        width=768,
        depth=12,
        heads=12,
        classes=1000,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    epochs=300,
    batch_size=4096,
    learning_rate=1.6e-3,
    warmup=20 / 300,
    adam_betas=(0.9, 0.95),
    weight_decay=0.3,
    clip_norm=1.0,
    ema_decay=0.9999,
    precision="auto",
    alpha=0.5,
    epsilon_255=4,
    epsilon_ramp=0.1,
    attack_steps=2,
    attack_step=0.75,
    evaluation_images=5000,
)

FINETUNE = IMAGENET_B16.model_copy(
    update={
        "name": "finetune",
        "source": (
            f"{PAPER}: two class tokens and Eq. 1. Both tokens start as the class token of the single-token ViT that "
            "--init names. Robust training gains from clean weights: Singh, Croce & Hein, NeurIPS 2023. All other "
            "values are ours."
        ),
        "expected": "not measured; the shape of the model is that of the weights",
        "command": "tureen train finetune --init vit.safetensors --data photos --out runs/finetune",
        "start": "pretrained",
        "augmentation": Augmentation(crop_scale=0.3, flip=True, label_smoothing=0.1),
        "epochs": 20,
        "batch_size": 128,
        "learning_rate": 1e-4,
        "warmup": 0.1,
        "adam_betas": (0.9, 0.999),
        "weight_decay": 0.05,
        "ema_decay": 0.999,
        "epsilon_ramp": 0.3,
        "evaluation_images": 1000,
    }
)

RECIPES = {recipe.name: recipe for recipe in (DIGITS, CIFAR10, CIFAR10_CPU, SIGNS, SIGNS_GPU, IMAGENET_B16, FINETUNE)}


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Returns the recipe `name`, changed by settings such as "epochs=10" or "model.depth=2".

    Raises RecipeError if there is no recipe `name`, and the errors of `with_settings`.
    """
    if name not in RECIPES:
        raise RecipeError(f"there is no recipe {name!r}: choose {', '.join(RECIPES)}{did_you_mean(name, RECIPES)}")
    return with_settings(RECIPES[name], settings)


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Returns the recipe, changed by settings of the form "key=value", such as "model.depth=2".

    Raises RecipeError for a setting without "=", for an unknown key, and for a value that its field does not accept.
    """
    name, values = recipe.name, recipe.model_dump()
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise RecipeError(f"{setting!r} is not KEY=VALUE")
        *parents, last = key.split(".")
        target: Any = values
        for part in parents:
            target = target.get(part) if isinstance(target, dict) else None
        if not isinstance(target, dict) or last not in target or isinstance(target[last], dict):
            raise RecipeError(f"recipe {name} has no {key!r}{did_you_mean(key, recipe.settings())}")
        target[last] = value.split(",") if isinstance(target[last], tuple) else value
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{'.'.join(map(str, first['loc'])) or name}: {first['msg']}") from error
