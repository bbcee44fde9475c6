"""Runs the steps of co-training: trains one model on clean and adversarial images together.

Can save the state of a run to a file after each step. A run that is restored from this file gives the same result as an
uninterrupted run. Writes no other file, and does not display progress.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.data.augment import augment_images, mix_images
from training.data.datasets import Dataset, Images
from training.data.loading import Batch, BatchOrder, Loader, MemoryLoader, StreamLoader
from training.distributed import Processes
from training.errors import CheckpointError, DivergedError
from training.loss import combined_loss, cotraining_losses
from training.models.registry import Model, build_model
from training.models.vit import images_from_pixels
from training.recipes import Recipe
from training.resume import START_AGAIN, read_saved_run
from training.schedules import scheduled_attack_steps, scheduled_epsilon, scheduled_learning_rate
from tureen.atomic_file import write_atomically

ADAMW_STATE = {"step", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True)
class StepProgress:
    """The result of a group of training steps.

    step, epoch, learning_rate: values after the last step. epsilon_255: radius of the attack after the last step, in
    1/255. clean_loss, robust_loss: mean of each loss over the steps; NaN for a loss with the weight 0.
    images_per_second: of all processes together.
    """

    step: int
    epoch: float
    clean_loss: float
    robust_loss: float
    epsilon_255: float
    learning_rate: float
    images_per_second: float


def bf16_autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which the model computes in the precision of the recipe, bf16 or fp32.

    The precision "auto" means bf16 if the device has fast bf16, or else fp32.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported()
    else:
        has_bf16 = bool(torch.cpu.get_capabilities().get("amx_bf16"))  # without AMX, bf16 is no faster than fp32
    if recipe.precision == "bf16" or (recipe.precision == "auto" and has_bf16):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


class Cotraining:
    """A training run in progress: model, moving average of the weights, optimiser, and the number of finished steps.

    The same recipe, data and device give the same run, interrupted or not. The random numbers of a step depend only on
    the seed, the step and the rank of the process. In a distributed run, each process trains on an equal share of every
    batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        device: torch.device,
        *,
        processes: Processes | None = None,
        workers: int = 0,
        is_compiled: bool = False,
        start: Model | None = None,
    ) -> None:
        """Builds model and optimiser on `device`.

        processes: those of a distributed run; None: this process alone. workers: number of processes that decode
        streamed images. is_compiled: whether to compile the model with torch.compile. start: the model whose weights
        are copied, with the shape that the recipe sets; None: random weights.
        """
        self.recipe = recipe
        self.device = device
        self.step = 0
        self.seconds = 0.0  # spent in steps, over all starts of the program
        self._data, self._labels = data.fingerprint(), data.labels
        self._sums = torch.zeros(2, device=device)  # of both losses, in the last call of run_epoch
        self.processes = processes or Processes()
        torch.manual_seed(recipe.seed)
        self.model = build_model(recipe.model).to(device)
        if start is not None:
            self.model.load_state_dict(start.state_dict())
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self._inner: nn.Module = torch.compile(self.model) if is_compiled else self.model  # type: ignore[assignment]
        self._outer = DistributedDataParallel(self._inner) if self.processes.count > 1 else self._inner
        self._generator = torch.Generator(device)
        self.optimiser = _optimiser(self.model, recipe)
        self._order = BatchOrder(recipe, len(data.train), self.processes.rank, self.processes.count)
        self._loader: Loader = (
            MemoryLoader(data.train, device)
            if isinstance(data.train, Images)
            else StreamLoader(data.train, recipe, device, workers)
        )
        self._batches: Iterator[Batch] | None = None

    def close(self) -> None:
        """Ends the training. A distributed run calls it before it leaves the process group.

        Otherwise DistributedDataParallel is the last owner of a Gloo group. Its end then waits, with Python's global
        lock, for the threads of the group, and one of those may wait for the lock (pytorch/pytorch#56297).
        """
        del self._outer

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    @property
    def images_per_step(self) -> int:
        """The number of images of this process in a step."""
        return self._order.images_per_step

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def is_finished(self) -> bool:
        return self.step >= self.steps

    @property
    def is_sound(self) -> bool:
        """Whether the loss was finite in every step of the last call of `run_epoch`."""
        return bool(combined_loss(self._sums[0], self._sums[1], self.recipe.alpha).isfinite())

    def run_epoch(self, at_most: int | None = None, should_stop: Callable[[], bool] = lambda: False) -> StepProgress:
        """Trains to the next multiple of `at_most` steps in the epoch, or to its end. Returns the progress.

        If `at_most` is None, trains to the end of the epoch. should_stop: function that is called after each step, and
        that may save the state. If `should_stop` returns True, the training stops and this method returns. Raises
        DivergedError if the mean loss is NaN or infinite.
        """
        within = self.step % self.steps_per_epoch
        left = self.steps_per_epoch - within
        steps = left if at_most is None else min(left, at_most - within % at_most)
        first = self.step
        started = time.perf_counter()
        self._sums.zero_()
        images = 0
        for _ in range(steps):
            pixels, labels = self._next_batch()
            images += len(labels)
            self._sums += self._train(pixels, labels)
            self.step += 1
            if should_stop():
                break
        losses = self.processes.mean(self._sums / (self.step - first))
        clean_loss, robust_loss = losses.tolist()
        seconds = time.perf_counter() - started
        self.seconds += seconds
        share = self.step / self.steps
        progress = StepProgress(
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            clean_loss=clean_loss,
            robust_loss=robust_loss,
            epsilon_255=scheduled_epsilon(self.recipe, share) * 255,
            learning_rate=scheduled_learning_rate(self.recipe, share),
            images_per_second=images * self.processes.count / seconds,
        )
        if not combined_loss(losses[0], losses[1], self.recipe.alpha).isfinite():
            raise DivergedError(
                f"the loss is not finite in steps {first} to {self.step}: "
                "lower learning_rate or epsilon_255, or lengthen warmup or epsilon_ramp"
            )
        return progress

    def run_trial(self, step: int) -> StepProgress:
        """Trains one step with the learning rate and the attack of `step`, to measure it. Returns the progress.

        The images continue in their order. After the last image of the run they begin again.
        """
        self.step = step
        return self.run_epoch(1)

    def _next_batch(self) -> Batch:
        if self._batches is None:
            self._batches = self._loader.batches(self._order, self.step)
        batch = next(self._batches, None)
        if batch is None:  # after trials
            self._batches = self._loader.batches(self._order, 0)
            batch = next(self._batches)
        return batch

    def _train(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Runs one step on B images. Returns the clean and the robust loss as one tensor, (2,).

        pixels: uint8 (B, H, W, 3). labels: int64 (B,).
        """
        recipe, share = self.recipe, self.step / self.steps
        self._generator.manual_seed(_seed(recipe.seed, self.step, self.processes.rank))
        images = augment_images(images_from_pixels(pixels), recipe.augmentation, self._generator)
        images, targets = mix_images(images, labels, recipe.augmentation, recipe.model.classes, self._generator)
        for group in self.optimiser.param_groups:
            # At the middle of the step, neither the first nor the last rate is 0.
            group["lr"] = scheduled_learning_rate(recipe, (self.step + 0.5) / self.steps)
        self.optimiser.zero_grad()
        sums = torch.zeros(2, device=self.device)
        parts = list(zip(images.chunk(recipe.accumulate), targets.chunk(recipe.accumulate), strict=True))
        for index, (part, part_targets) in enumerate(parts):
            is_last = index == len(parts) - 1
            # Processes exchange gradients once a step, with the last part.
            synchronisation = nullcontext() if is_last or self.processes.count == 1 else self._outer.no_sync()  # type: ignore[operator]
            with synchronisation:
                with bf16_autocast(recipe, self.device):
                    losses = cotraining_losses(
                        self._inner,
                        part,
                        part_targets,
                        recipe=recipe,
                        epsilon=scheduled_epsilon(recipe, share),
                        attack_steps=scheduled_attack_steps(recipe, share),
                        generator=self._generator,
                        forward=self._outer,
                    )
                weight = len(part) / len(images)
                (weight * combined_loss(*losses, recipe.alpha)).backward()
                sums += weight * torch.stack(losses).detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimiser.step()
        sums += 0 * norm  # NaN if the gradient is NaN, even if the loss was finite
        decay = min(recipe.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            update = get_ema_multi_avg_fn(decay)
            update(list(self.average.parameters()), list(self.model.parameters()), self.step)
            for average, buffer in zip(self.average.buffers(), self.model.buffers(), strict=True):
                average.copy_(buffer)  # statistics of a BatchNorm, which are moving averages already
        return sums

    @property
    def state_bytes(self) -> int:
        """The size of the tensors that `save` writes, after the first step."""
        return sum(tensor.nbytes for tensor in self._state().values())

    def _state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
        return tensors

    def save(self, path: Path, options: Mapping[str, object] | None = None) -> None:
        """Writes the state of the run to the safetensors file `path`, atomically. `restore` reads the file.

        options: the options of the run besides its recipe. `training.resume.read_saved_run` returns them later.
        """
        metadata = {
            "recipe": self.recipe.model_dump_json(),
            "options": json.dumps(dict(options or {})),
            "labels": json.dumps(self._labels),
            "data": self._data,
            "step": str(self.step),
            "steps": str(self.steps),
            "seconds": repr(self.seconds),
        }
        write_atomically(path, save({name: tensor.contiguous() for name, tensor in self._state().items()}, metadata))

    def restore(self, path: Path) -> None:
        """Loads the state that `save` wrote to the file `path`.

        Raises CheckpointError if the state is damaged or incomplete, or belongs to another recipe or to other images.
        """
        saved = read_saved_run(path)
        try:
            with safe_open(path, framework="pt", device=str(self.device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {START_AGAIN}") from error
        if saved.recipe.fingerprint() != self.recipe.fingerprint():
            raise CheckpointError(f"{path} is of another recipe or other settings: resume with those of the run")
        if metadata.get("data") != self._data:
            raise CheckpointError(f"{path} was trained on other images: resume with the same --data")
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _without_prefix("optimiser.", tensors).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        self.step = int(metadata["step"])
        self.seconds = float(metadata["seconds"])
        parameters = sum(len(group["params"]) for group in self.optimiser.param_groups)
        try:
            if self.step and any(set(state[index]) != ADAMW_STATE for index in range(parameters)):
                raise KeyError("optimiser")
            self.model.load_state_dict(_without_prefix("model.", tensors))
            self.average.load_state_dict(_without_prefix("average.", tensors))
            self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path} lacks some of the run's state: {START_AGAIN}") from error
        self._batches = None


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Returns an AdamW optimiser. Weight decay applies only to the weights of linear and convolutional layers."""
    decayed = [module.weight for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    names = {id(weight) for weight in decayed}
    others = [parameter for parameter in model.parameters() if id(parameter) not in names]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.adam_betas, fused=True)


def _seed(*numbers: int) -> int:
    """Returns a 32-bit seed that depends on all `numbers`. On a CPU, torch ignores the higher bits of a longer seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors whose names start with `prefix`, without the prefix in their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
