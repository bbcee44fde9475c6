"""`tureen train --dry-run`: measures a few steps of a training, and computes what all would take. Writes nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import torch

from training.attacks.catalogue import max_gradients
from training.attacks.gradient import loss_gradient
from training.attacks.names import attack_label
from training.cotrain import Cotraining, bf16_autocast
from training.data.datasets import Dataset, Images
from training.distributed import process_group
from training.evaluation.accuracy import BATCH, forward_at_beta, image_batches
from training.evaluation.attack_checks import max_check_gradients
from training.models.shapes import ViTConfig
from training.preparation import RunOptions, prepare_training, with_defaults
from training.recipes import Recipe
from training.reporting.loggers import require_packages
from training.reporting.progress import duration
from training.schedules import attack_phases, loss_passes
from tureen.machine import process_memory
from tureen.tokens import CLEAN_BETA

MEASURED_STEPS = 3
SLOW_PHASE_S = 10.0  # after this time the steps of a phase that were made are enough
SMALL_BATCH = 32  # of images whose gradient is timed on a CPU
MIB, MB = 2**20, 10**6


@dataclass(frozen=True)
class PhaseCost:
    """The steps of a training with the same number of attack steps. 0: no attack."""

    attack_steps: int
    steps: int
    seconds_per_step: float
    seconds_per_epoch: float


@dataclass(frozen=True)
class TrainingCost:
    """What a training would take.

    image, tokens, logits: shapes in the largest pass of a step through the model: of the images, of the class token
    with the patches (None for a ResNet), and of the logits. accumulate: number of such passes in a step. phases: of the
    schedule, in its order. training_seconds: of all steps. reading_seconds: measured, before the first step.
    evaluation: what is measured after the last step. evaluation_seconds: at most; None if unknown. peak_bytes: memory
    of this process; None if the system has no /proc. peak_gpu_bytes: of tensors on the GPU; None without a GPU.
    state_bytes: of the saved state. checkpoint_bytes: at most.
    """

    recipe: str
    classes: int
    training_images: int
    validation_images: int
    test_images: int
    image: tuple[int, ...]
    tokens: tuple[int, ...] | None
    logits: tuple[int, ...]
    accumulate: int
    parameters: int
    device: str
    precision: str
    processes: int
    threads: int
    epochs: int
    steps_per_epoch: int
    phases: list[PhaseCost]
    training_seconds: float
    reading_seconds: float
    evaluation: str
    evaluation_seconds: float | None
    peak_bytes: int | None
    peak_gpu_bytes: int | None
    state_bytes: int
    checkpoint_bytes: int

    def __str__(self) -> str:
        steps = self.epochs * self.steps_per_epoch
        shapes = [f"images {self.image}", *([f"tokens {self.tokens}"] if self.tokens else []), f"logits {self.logits}"]
        passes = f", {self.accumulate} times a step" if self.accumulate > 1 else ""
        peaks = {"of this process": self.peak_bytes, "of the GPU": self.peak_gpu_bytes}
        memory = [f"{peak / MIB:,.0f} MiB {name}" for name, peak in peaks.items() if peak is not None]
        lines = [
            f"images   {self.training_images:,} to train on in {self.classes} classes, {self.validation_images:,} for "
            f"validation, {self.test_images:,} to test on",
            f"model    {self.parameters:,} parameters; {', '.join(shapes)}{passes}",
            f"device   {self.device}, {self.precision}, {self.threads} threads, {self.processes} processes",
            f"\n{'attack':<9}{'steps':>12}{'s per step':>14}{'per epoch':>12}",
        ]
        for phase in self.phases:
            attack = f"{phase.attack_steps} step{'s' * (phase.attack_steps != 1)}" if phase.attack_steps else "none"
            lines.append(
                f"{attack:<9}{phase.steps:>12,}{phase.seconds_per_step:>14.4f}{duration(phase.seconds_per_epoch):>12}"
            )
        longest = self.evaluation_seconds
        evaluation_time = "an unknown time" if longest is None else f"at most about {duration(longest)}"
        lines += [
            f"\ntime     about {duration(self.training_seconds)} for {steps:,} steps, {self.epochs} epochs of "
            f"{self.steps_per_epoch:,}",
            f"         {duration(self.reading_seconds)} before them, to read the images and build the model",
            f"         {evaluation_time} after them, to measure the accuracy: {self.evaluation}",
            f"memory   {' and '.join(memory)} at the peak",
            f"disk     {self.state_bytes / MB:,.1f} MB for the saved state, twice that while it is written",
            f"         at most {self.checkpoint_bytes / MB:,.1f} MB for the checkpoint",
        ]
        return "\n".join(lines)


def measure_cost(recipe: Recipe, options: RunOptions) -> TrainingCost | None:
    """Returns what the training would take, measured by three steps of each phase. Writes no file.

    Reads the images as `training.run.run` does, and raises the same errors. Under torchrun every process calls this
    function; all but the first return None.
    """
    recipe, options = with_defaults(recipe, options)
    require_packages(options.loggers)
    with process_group() as (processes, device):
        started = time.perf_counter()
        training, data = prepare_training(recipe, options, processes, device, is_new=True)
        reading_seconds = time.perf_counter() - started
        with closing(training):
            phases = list(_measured_phases(training, must_warm_up=options.is_compiled))
            return _cost(training, data, phases, reading_seconds) if processes.is_first else None


def _measured_phases(training: Cotraining, *, must_warm_up: bool) -> Iterator[PhaseCost]:
    for attack_steps, steps in attack_phases(training.recipe, training.steps).items():
        if training.processes.is_first:
            attack = f"an attack of {attack_steps} step{'s' * (attack_steps != 1)}" if attack_steps else "no attack"
            print(f"measuring training steps with {attack}", file=sys.stderr, flush=True)
        seconds = seconds_of_a_step(training, steps.start, must_warm_up=must_warm_up)
        yield PhaseCost(attack_steps, len(steps), seconds, seconds * training.steps_per_epoch)


def seconds_of_a_step(training: Cotraining, step: int, *, must_warm_up: bool) -> float:
    """Returns the mean time of a few training steps, each made as the step number `step`.

    The first step allocates, fills the queue of images, and compiles the model if the run does. It counts only if it
    was so slow that no other follows. must_warm_up: at least one step follows the first.
    """
    seconds: list[float] = []
    while len(seconds) <= MEASURED_STEPS:
        before = training.seconds
        training.run_trial(step)
        seconds.append(training.seconds - before)
        is_slow = training.processes.largest(int(sum(seconds) > SLOW_PHASE_S))  # the same in all processes
        if is_slow and len(seconds) > must_warm_up:
            break
    counted = seconds[1:] or seconds
    return sum(counted) / len(counted)


def _evaluation_seconds(training: Cotraining, images: Images) -> float | None:
    """Returns the longest time that the attacks on the test images and their checks take; None if it is unknown.

    Measures the gradient of a batch. Counts the gradients as if no attack broke an image.
    """
    recipe, is_cuda = training.recipe, training.device.type == "cuda"
    attack, steps, classes = recipe.evaluation_attack, recipe.evaluation_steps, recipe.model.classes
    gradients = max_gradients(attack, steps, classes)
    checks = max_check_gradients(len(images), recipe.evaluation_betas, attack=attack, steps=steps, classes=classes)
    if gradients is None or checks is None:
        return None
    x, labels = (part[: BATCH if is_cuda else SMALL_BATCH] for part in next(image_batches(images, training.device)))
    forward = forward_at_beta(training.average, CLEAN_BETA)
    for _ in range(1 + is_cuda):  # a GPU loads its kernels in the first pass
        started = time.perf_counter()
        loss_gradient(forward, x, labels).sum().item()
        seconds = (time.perf_counter() - started) / len(x)
    return seconds * (len(images) * len(recipe.evaluation_betas) * gradients + checks)


def _cost(training: Cotraining, data: Dataset, phases: list[PhaseCost], reading_seconds: float) -> TrainingCost:
    recipe, model, shape = training.recipe, training.average, training.recipe.model
    is_cuda = training.device.type == "cuda"
    images = -(-training.images_per_step // recipe.accumulate)
    rows = images * max(loss_passes(recipe, phase.attack_steps) for phase in phases)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return TrainingCost(
        recipe=recipe.name,
        classes=len(data.labels),
        training_images=len(data.train),
        validation_images=len(data.validation),
        test_images=len(data.test),
        image=(rows, 3, shape.image_size, shape.image_size),
        tokens=(rows, 1 + shape.patches, shape.width) if isinstance(shape, ViTConfig) else None,
        logits=(rows, shape.classes),
        accumulate=recipe.accumulate,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=torch.cuda.get_device_name() if is_cuda else "cpu",
        precision="bf16" if isinstance(bf16_autocast(recipe, training.device), torch.autocast) else "fp32",
        processes=training.processes.count,
        threads=torch.get_num_threads(),
        epochs=recipe.epochs,
        steps_per_epoch=training.steps_per_epoch,
        phases=phases,
        training_seconds=sum(phase.steps * phase.seconds_per_step for phase in phases),
        reading_seconds=reading_seconds,
        evaluation=f"{attack_label(recipe.evaluation_attack, recipe.evaluation_steps)} on {len(data.test):,} images at "
        f"{len(recipe.evaluation_betas)} β, and its checks",
        evaluation_seconds=_evaluation_seconds(training, data.test),
        peak_bytes=process_memory("VmHWM"),
        peak_gpu_bytes=torch.cuda.max_memory_allocated() if is_cuda else None,
        state_bytes=training.state_bytes,
        checkpoint_bytes=weights + data.test.pixels.nbytes + data.validation.pixels.nbytes,
    )
